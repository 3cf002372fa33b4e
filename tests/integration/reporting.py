"""A Ray with one worker that reports every metric of the catalogue; it ends with its stdin.

``python reporting.py <Ray's folder>``. Ray reports every second here instead of every ten.
"""

import sys
import time
from pathlib import Path

import ray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cluster.handles import answer, end, start
from cluster.metrics import RayMeter
from contracts import metrics as m
from contracts.metrics import CATALOGUE, Meter

TAGS = {
    "task": "book", "worker": "book-0", "state": "working", "stage": "1 imagine",
    "store": "real", "learner": "policy", "model": "policy",
}  # fmt: skip


class Reporter:
    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def once(self) -> None:
        """Counts that the tests know."""
        for outcome, count in (("accepted", 6), ("rejected", 1), ("error", 1)):
            self._meter.count(m.VERDICTS, count, task="book", outcome=outcome)
        self._meter.set(m.HEARTBEAT_AGE, 400, task="book", worker="book-0")
        self._meter.count(m.WORKER_RESTARTS, 2, task="book")
        for outcome in ("stored", "failed"):
            self._meter.count(m.TRAJECTORIES, task="book", worker="book-0", outcome=outcome)

    def often(self) -> None:
        for metric in CATALOGUE:
            if metric in (m.VERDICTS, m.HEARTBEAT_AGE, m.WORKER_RESTARTS):
                continue
            tags = {tag: TAGS.get(tag, "stored") for tag in metric.tags}
            match metric.kind:
                case "counter":
                    self._meter.count(metric, 1, **tags)
                case "gauge":
                    self._meter.set(metric, 1, **tags)
                case "histogram":
                    self._meter.observe(metric, 0.25, **tags)


def main() -> None:
    ray.init(
        num_cpus=1,
        object_store_memory=100 * 2**20,
        include_dashboard=True,  # it writes the file for Prometheus
        dashboard_port=0,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}},
        _temp_dir=sys.argv[1],
        _system_config={"metrics_report_interval_ms": 1000},
    )
    reporter = start(Reporter, RayMeter(), num_cpus=0)
    answer(reporter.once.remote())
    while not _closed():
        answer(reporter.often.remote())
    end(reporter)
    ray.shutdown()


def _closed() -> bool:
    import select  # noqa: PLC0415

    time.sleep(0.2)
    return bool(select.select([sys.stdin], [], [], 0)[0])


if __name__ == "__main__":
    main()
