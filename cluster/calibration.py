"""Judges reward models on held-out labels: the trained one beside the one that it began as."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.context import Context
from cluster.scoring import scorer
from contracts.constants import NO_VERSION
from contracts.types import Label, Score
from learners.selection import held_out
from services.progress import Bar
from services.report_data import Calibration

STAGE = "calibrate"  # of the job; the loop's own stages are "<i> calibration"


@dataclass(frozen=True, slots=True)
class _Judge:
    name: str
    version: int  # NO_VERSION: the release that reward.qwen.path names, which no version is of


def calibration(run: Context, version: int, stage: str = STAGE) -> dict[str, Any]:
    """Score labelled real episodes that no reward model was trained on, by the model of that
    version and by the one before any training here, as in the paper's Table 3."""
    labels = _labels(run)
    judges = list(_judges(run, version))
    with run.reporter.stage(stage, len(labels) * len(judges), "clips") as bar:
        bar.hold(run.config.cluster.scorer_gpus)
        scores = [_scores(run, judge, list(labels), bar) for judge in judges] if labels else []
    store = run.reader("real")
    return {
        "version": version,
        "judges": [
            {
                "name": judge.name,
                "version": judge.version,
                "p_yes": [score.p_yes for score in of_judge],
                "mass": [score.mass for score in of_judge],
            }
            for judge, of_judge in zip(judges, scores, strict=bool(labels))
        ],
        "success": [label.success for label in labels.values()],
        "tasks": [store.provenance(name).task for name in labels],
        "label_source": ", ".join(sorted({label.source for label in labels.values()})),
    }


def _labels(run: Context) -> dict[str, Label]:
    store = run.reader("real")
    _, out = held_out(store.ids(), run.config.reward.holdout)
    labels = {name: store.label(name) for name in sorted(out)}
    return {name: label for name, label in labels.items() if label is not None}


def _judges(run: Context, version: int) -> Iterator[_Judge]:
    """What there was before training, if that is more than random weights, and the version."""
    config = run.config.reward
    before = "zero-shot" if config.kind == "qwen" else "as given"
    if config.checkpoint != "scratch":
        yield _Judge(f"v0 ({before})", 0)
    elif config.kind == "qwen" and config.qwen.path:
        yield _Judge(f"release ({before})", NO_VERSION)
    if version > 0:
        yield _Judge(f"v{version} (fine-tuned)", version)


def _scores(run: Context, judge: _Judge, names: list[str], bar: Bar) -> list[Score]:
    """In the order of ``names``. A scoring error ends the stage: it is no answer."""
    found: dict[str, Score] = {}
    with scorer(run, judge.version) as process:
        for some in process.all([("real", name) for name in names]):
            for (_, name), outcome in some:
                if isinstance(outcome, BaseException):
                    raise outcome
                found[name] = outcome
            bar.advance(len(some))
    return [found[name] for name in names]


def job(run: Context) -> None:
    """``job=calibrate``: judge the run's newest reward model anew, as often as it is asked.

    Raises:
        ValueError: there is no reward model, or no labelled episode is held out.
    """
    found = _versions(run)
    if not found and not list(_judges(run, NO_VERSION)):
        raise ValueError(
            f"job=calibrate: {run.folder} holds no reward model. Run the loop there first, or give "
            "reward.checkpoint=<folder>"
        )
    if not _labels(run):
        raise ValueError(
            f"job=calibrate: {run.folder} holds no labelled real episode that was kept out of "
            "training. Collect more (each_task.rollouts), or raise reward.holdout in a new run"
        )
    run.stages.again(STAGE, lambda: calibration(run, max(found, default=NO_VERSION)))


def _versions(run: Context) -> list[int]:
    facts: list[dict[str, Any]] = run.checkpoints.lineage()
    return [one["version"] for one in facts if one["kind"] == "reward"]


def calibrations(run: Context) -> Iterator[Calibration]:
    """Of every model that was judged, the newest judgement."""
    stages = [f"{i} calibration" for i in range(1, run.config.method.iterations + 1)]
    newest: dict[str, Calibration] = {}
    for stage in (*stages, STAGE):
        newest |= {row.version: row for row in _rows(run, stage)}
    yield from newest.values()


def _rows(run: Context, stage: str) -> Iterator[Calibration]:
    found: dict[str, Any] = run.stages.result(stage) or {"judges": []}
    for judge in found["judges"]:
        in_use = judge["version"] == found["version"]
        yield Calibration(
            judge["name"],
            run.config.each_task.alpha,
            np.array(judge["p_yes"], np.float64),
            np.array(found["success"], bool),
            found["label_source"],
            np.array(judge["mass"], np.float64),
            tuple(found["tasks"]),
            {task: run.config.for_task(task).alpha for task in found["tasks"]},
            run.config.reward.target_precision,
            # version i is trained in iteration i; where none was, version 0 judges from the first
            iteration=max(judge["version"], 1) if in_use else 0,
        )
