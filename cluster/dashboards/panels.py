"""The panels of the Grafana dashboard, and ``vlaw.json`` made from them.

``python -m cluster.dashboards.panels`` writes that file anew; a test compares it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from contracts import metrics
from contracts.metrics import Metric

FILE = Path(__file__).with_name("vlaw.json")
Look = Literal["timeseries", "stat", "state-timeline", "heatmap"]
WINDOW = "$window"  # of rates; chosen on the dashboard
SESSION = '{SessionName=~"$session"}'  # a Prometheus outlives many Ray sessions
WIDTH, HEIGHT, COLUMNS = 8, 8, 24


@dataclass(frozen=True, slots=True)
class Query:
    text: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. ``unit`` is Grafana's name of a unit."""

    title: str
    about: str
    queries: tuple[Query, ...]
    unit: str = "short"
    look: Look = "timeseries"


def series(metric: Metric, where: str = "", part: str = "") -> str:
    """A metric as Ray exports it, of the chosen session; ``part``: ``_bucket`` of a histogram."""
    chosen = SESSION[:-1] + (f",{where}" if where else "") + "}"
    return f"ray_{metric.name}{part}{chosen}"


def rate(metric: Metric, by: str, where: str = "") -> str:
    """Growth per second. ``by=""``: of all together."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({series(metric, where)}[{WINDOW}]))"


def grown(metric: Metric, by: str, where: str = "", window: str = WINDOW) -> str:
    """By how much a counter grew, a counter that did not exist before included.

    ``increase`` does not see the first value of a new series, and every process is one.
    """
    grouped = f"sum by ({by})" if by else "sum"
    now = f"{grouped} ({series(metric, where)})"
    before = f"{grouped} ({series(metric, where)} offset {window})"
    return f"clamp_min({now} - ({before} or {now} * 0), 0)"


def gauge(metric: Metric, where: str = "") -> str:
    by = ", ".join(metric.tags)
    return f"max by ({by}) ({series(metric, where)})"


def quantiles(metric: Metric) -> tuple[Query, ...]:
    buckets = f"sum by (le) (rate({series(metric, part='_bucket')}[{WINDOW}]))"
    return tuple(
        Query(f"histogram_quantile({q}, {buckets})", f"{q:.0%} take less") for q in (0.5, 0.95)
    )


def heat(metric: Metric) -> str:
    return f"sum by (le) (increase({series(metric, part='_bucket')}[{WINDOW}]))"


JUDGED = 'outcome=~"accepted|rejected"'
ACCEPTED = 'outcome="accepted"'
ERROR = 'outcome="error"'
STORED = 'outcome="stored"'
DREAMING = 'stage=~".*(imagine|score)"'

IMAGINATION = (
    Panel(
        "Net frames per second",
        "New imagined time steps of all three views. The number to compare machines by.",
        (
            Query(rate(metrics.NET_FRAMES, "task"), "{{task}}"),
            Query(rate(metrics.NET_FRAMES, ""), "all"),
        ),
    ),
    Panel(
        "Trajectories per hour",
        "Imagined trajectories that were stored.",
        (Query(f"3600 * {rate(metrics.TRAJECTORIES, 'task', STORED)}", "{{task}}"),),
    ),
    Panel(
        "Workers",
        "Imagination workers of each task by state. Fewer working than wanted: look at the nodes.",
        (Query(gauge(metrics.WORKERS), "{{task}} {{state}}"),),
    ),
    Panel(
        "Queue",
        "Trajectories that wait for a worker, and those that one holds.",
        (
            Query(gauge(metrics.QUEUE_DEPTH), "{{task}} waiting"),
            Query(gauge(metrics.LEASED), "{{task}} leased"),
        ),
    ),
    Panel(
        "Accepted share",
        "Of the imagined trajectories with a score, those with P('yes') > alpha.",
        (
            Query(
                f"({grown(metrics.VERDICTS, 'task', ACCEPTED)} or "
                f"{grown(metrics.VERDICTS, 'task', JUDGED)} * 0) / "
                f"{grown(metrics.VERDICTS, 'task', JUDGED)}",
                "{{task}}",
            ),
        ),
        "percentunit",
    ),
    Panel(
        "GPU-seconds per accepted trajectory",
        "What one trajectory of D_syn+ costs: imagination and scoring, the rejected ones included.",
        (
            Query(
                f"{grown(metrics.GPU_SECONDS, '', DREAMING)} / "
                f"({grown(metrics.VERDICTS, '', ACCEPTED)} > 0)",
                "all tasks",
            ),
        ),
        "s",
    ),
    Panel(
        "World-model call",
        "Seconds of one call, which advances the slots of a worker together.",
        quantiles(metrics.WM_STEP_SECONDS),
        "s",
    ),
    Panel(
        "Policy call",
        "Seconds of one batched policy call inside the world model.",
        quantiles(metrics.POLICY_INFER_SECONDS),
        "s",
    ),
    Panel(
        "P('yes')",
        "Of imagined trajectories. A narrow band says that the reward model does not tell them "
        "apart.",
        (Query(heat(metrics.REWARD_P_YES), "{{le}}"),),
        look="heatmap",
    ),
    Panel(
        "World-model calls per second",
        "A worker that makes none while work waits is stuck.",
        (Query(rate(metrics.WM_STEPS, "task"), "{{task}}"),),
    ),
    Panel(
        "Clips per scorer batch",
        "Small batches mean that the scorer waits for work.",
        (Query(heat(metrics.REWARD_BATCH_SIZE), "{{le}}"),),
        look="heatmap",
    ),
    Panel(
        "Not scored, not stored",
        "Scoring errors, and trajectories that failed or were imagined twice.",
        (
            Query(grown(metrics.VERDICTS, "task", ERROR), "{{task}} scoring error"),
            Query(
                grown(metrics.TRAJECTORIES, "task, outcome", 'outcome!="stored"'),
                "{{task}} {{outcome}}",
            ),
        ),
    ),
    Panel(
        "Heartbeat age",
        "Seconds since a worker was last heard of. Look here, not at missing series.",
        (Query(gauge(metrics.HEARTBEAT_AGE), "{{worker}}"),),
        "s",
    ),
    Panel(
        "Restarts",
        "Workers that died or hung and were replaced; work of other processes that began again.",
        (
            Query(grown(metrics.WORKER_RESTARTS, "task"), "{{task}} worker"),
            Query(grown(metrics.RETRIES, "stage"), "{{stage}}: begun again"),
        ),
    ),
)

RUN = (
    Panel(
        "Stages",
        "Which stage of Algorithm 1 runs.",
        (Query(f"{gauge(metrics.STAGE)} == 1", "{{stage}}"),),
        look="state-timeline",
    ),
    Panel(
        "Progress",
        "Of each stage's units.",
        (Query(f"{gauge(metrics.STAGE_DONE)} / {gauge(metrics.STAGE_UNITS)}", "{{stage}}"),),
        "percentunit",
    ),
    Panel(
        "Versions",
        "Newest published version of each model.",
        (Query(gauge(metrics.VERSION), "{{model}}"),),
        "none",
        "stat",
    ),
    Panel("Loss", "Of each learner.", (Query(gauge(metrics.LEARNER_LOSS), "{{learner}}"),)),
    Panel(
        "Training step",
        "A slope that falls: look at the learner's data and its node.",
        (Query(gauge(metrics.LEARNER_STEP), "{{learner}}"),),
    ),
    Panel(
        "GPU-hours",
        "GPUs held by a stage times hours, of this session.",
        (
            Query(
                f"sum by (stage) ({series(metrics.GPU_SECONDS)}) / 3600",
                "{{stage}}",
            ),
        ),
        "none",
    ),
    Panel(
        "Stores",
        "Bytes on disk.",
        (Query(gauge(metrics.STORE_BYTES), "{{store}}"),),
        "bytes",
    ),
    Panel(
        "Trajectories stored",
        "Committed, by store.",
        (Query(gauge(metrics.STORE_TRAJECTORIES), "{{store}}"),),
    ),
    Panel(
        "Real episodes",
        "By outcome, of this session.",
        (
            Query(
                f"sum by (store, task, outcome) ({series(metrics.EPISODES)})",
                "{{store}} {{task}} {{outcome}}",
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """Grafana's model of the whole dashboard."""
    panels: list[dict[str, Any]] = []
    row = 0
    for title, group in (("Imagination", IMAGINATION), ("The run", RUN)):
        panels.append(_row(title, row, len(panels)))
        row += 1
        for place, panel in enumerate(group):
            down, across = divmod(place, COLUMNS // WIDTH)
            at = {"x": across * WIDTH, "y": row + down * HEIGHT, "w": WIDTH, "h": HEIGHT}
            panels.append(_panel(panel, at, len(panels)))
        row += -(-len(group) // (COLUMNS // WIDTH)) * HEIGHT
    return {
        "title": "VLAW",
        "uid": "vlaw",
        "schemaVersion": 38,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "tags": ["vlaw"],
        "templating": {"list": [_SOURCE, _SESSION, _WINDOW]},
        "panels": panels,
    }


_SOURCE = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
_SESSION = {
    "name": "session",
    "label": "Ray session",
    "type": "query",
    "datasource": {"type": "prometheus", "uid": "${datasource}"},
    "query": f"label_values(ray_{metrics.STAGE.name}, SessionName)",
    "refresh": 2,
    "sort": 2,
    "includeAll": True,
    "allValue": ".*",
    "current": {"text": "All", "value": "$__all"},
}
_WINDOW = {
    "name": "window",
    "label": "rates over",
    "type": "custom",
    "query": "1m,5m,15m,1h",
    "current": {"text": "5m", "value": "5m"},
}


def _row(title: str, y: int, number: int) -> dict[str, Any]:
    at = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
    return {"id": number + 1, "type": "row", "title": title, "gridPos": at, "panels": []}


def _panel(panel: Panel, at: dict[str, int], number: int) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    shape = "heatmap" if panel.look == "heatmap" else "time_series"
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": source,
            "expr": query.text,
            "legendFormat": query.legend,
            "format": shape,
        }
        for index, query in enumerate(panel.queries)
    ]
    return {
        "id": number + 1,
        "type": panel.look,
        "title": panel.title,
        "description": panel.about,
        "datasource": source,
        "gridPos": at,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": targets,
    }


def text() -> str:
    """``vlaw.json``."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
