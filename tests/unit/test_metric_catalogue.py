"""The catalogue of metrics keeps the rules of Prometheus, and a meter refuses what it lacks."""

import re

import pytest

from contracts import metrics
from contracts.metrics import CATALOGUE, Meter, Metric, NoMeter


def test_every_metric_of_the_module_is_in_the_catalogue_once():
    declared = [value for value in vars(metrics).values() if isinstance(value, Metric)]
    assert list(CATALOGUE) == declared
    names = [metric.name for metric in CATALOGUE]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_a_metric_follows_the_rules_of_prometheus(metric):
    assert re.fullmatch(r"vlaw_[a-z_]+", metric.name)
    assert all(re.fullmatch(r"[a-z_]+", tag) for tag in metric.tags)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert bool(metric.boundaries) == (metric.kind == "histogram")
    assert list(metric.boundaries) == sorted(set(metric.boundaries))
    assert metric.help.endswith(".")


def test_the_names_that_others_were_promised_are_there():
    promised = """trajectories_total wm_steps_total wm_step_seconds policy_infer_seconds
        reward_batch_size reward_p_yes queue_depth workers worker_restarts_total gpu_seconds_total
        stage heartbeat_age_seconds"""
    assert {f"vlaw_{name}" for name in promised.split()} <= {metric.name for metric in CATALOGUE}


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (lambda meter: meter.count(metrics.NET_FRAMES, 4), r"tags \['task'\], got \[\]"),
        (lambda meter: meter.set(metrics.QUEUE_DEPTH, 4, job="draw"), r"\['task'\], got \['job'\]"),
        (lambda meter: meter.count(metrics.QUEUE_DEPTH, task="draw"), "is a gauge, not a counter"),
        (lambda meter: meter.observe(metrics.STAGE, 1.0, stage="x"), "is a gauge, not a histogram"),
    ],
)
def test_a_wrong_tag_or_kind_is_an_error_even_where_nobody_listens(report, message):
    meter = NoMeter()
    assert isinstance(meter, Meter)
    with pytest.raises(ValueError, match=message):
        report(meter)


def test_tags_come_out_as_text_in_the_declared_order():
    tags = {"outcome": "stored", "worker": 3, "task": "draw"}
    found = metrics.TRAJECTORIES.checked("counter", tags)
    assert list(found.items()) == [("task", "draw"), ("worker", "3"), ("outcome", "stored")]
