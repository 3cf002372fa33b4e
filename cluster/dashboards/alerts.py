"""The alert rules, and ``alerts.yml`` made from them.

``python -m cluster.dashboards.alerts`` writes that file anew; a test compares it.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster.dashboards.panels import ACCEPTED, ERROR, gauge, grown
from contracts import metrics

FILE = Path(__file__).with_name("alerts.yml")


@dataclass(frozen=True, slots=True)
class Alert:
    """``lasting``: for how long the query must find something, in Prometheus' words."""

    name: str
    query: str
    lasting: str
    summary: str
    what_to_do: str


ALERTS = (
    Alert(
        "VlawWorkerSilent",
        f"{gauge(metrics.HEARTBEAT_AGE)} > 300",
        "1m",
        "Imagination worker {{ $labels.worker }} was not heard of for {{ $value }} s.",
        "It is replaced by itself. If this comes back, look at its log in the Ray dashboard.",
    ),
    Alert(
        "VlawNoProgress",
        f"({gauge(metrics.STAGE)} == 1) and on (stage) "
        f"(max by (stage) (max_over_time(ray_{metrics.STAGE_DONE.name}[10m])) == "
        f"min by (stage) (min_over_time(ray_{metrics.STAGE_DONE.name}[10m])))",
        "20m",
        "Stage {{ $labels.stage }} has not moved for 30 minutes.",
        "Look at the run's page and at the logs of the stage's processes. At "
        "cluster.stall_timeout_s the run ends by itself, and the same command continues it.",
    ),
    Alert(
        "VlawNobodyWorks",
        f"({gauge(metrics.QUEUE_DEPTH)} > 0) unless on (task) "
        f'(max by (task) (ray_{metrics.WORKERS.name}{{state="working"}}) > 0)',
        "10m",
        "Task {{ $labels.task }} has {{ $value }} trajectories to imagine and no worker on them.",
        "Look at what the nodes have free: ray status, or python -m cluster.scale status.",
    ),
    Alert(
        "VlawScoringErrors",
        f"{grown(metrics.VERDICTS, 'task', ERROR, '15m')} / "
        f"{grown(metrics.VERDICTS, 'task', '', '15m')} > 0.05",
        "0m",
        "{{ $value | humanizePercentage }} of task {{ $labels.task }} could not be scored.",
        "Look at the scorer's log. They are scored again by the next score stage; none of them "
        "counts as a failure.",
    ),
    Alert(
        "VlawManyRestarts",
        f"{grown(metrics.WORKER_RESTARTS, 'task', '', '15m')} > 3",
        "0m",
        "{{ $value }} imagination workers of task {{ $labels.task }} were replaced in 15 minutes.",
        "Mostly memory: give fewer imagination.slots, or a larger cluster.worker_gpus.",
    ),
    Alert(
        "VlawNothingAccepted",
        f"({grown(metrics.VERDICTS, 'task', '', '1h')} > 50) unless on (task) "
        f"({grown(metrics.VERDICTS, 'task', ACCEPTED, '1h')} > 0)",
        "0m",
        "None of the last {{ $value }} trajectories of task {{ $labels.task }} was accepted.",
        "Look at the P('yes') panel: the policy fails there, or alpha is out of reach.",
    ),
)


def rules() -> dict[str, object]:
    """Prometheus' model of the rules; every session counts."""
    return {
        "groups": [
            {
                "name": "vlaw",
                "rules": [
                    {
                        "alert": alert.name,
                        "expr": alert.query.replace('SessionName=~"$session"', "").replace(
                            "{,", "{"
                        ),
                        "for": alert.lasting,
                        "labels": {"severity": "warning"},
                        "annotations": {
                            "summary": alert.summary,
                            "description": alert.what_to_do,
                        },
                    }
                    for alert in ALERTS
                ],
            }
        ]
    }


def text() -> str:
    """``alerts.yml``."""
    return yaml.safe_dump(rules(), sort_keys=False, width=1000)


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
