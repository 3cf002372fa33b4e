"""The reward model against the person who labelled: the paper's Table 3, for the sample as it is
and for all imagined trajectories that it was drawn from."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from contracts.statistics import Confusion, Interval, wilson
from contracts.types import Verdict
from services.audit_labels import AuditLabel
from services.audit_sample import Sample
from services.calibration import ALL_TASKS, judgements
from services.report_data import Calibration


@dataclass(frozen=True, slots=True)
class Rate:
    """An estimated share with its 95 % interval; NaN and [0, 1] where nothing is known.

    ``effective`` is the number of equally likely draws that would tell as much.
    """

    value: float
    interval: Interval
    effective: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated counts over the whole set that was sampled from, and their rates."""

    true_positive: float
    false_positive: float
    false_negative: float
    true_negative: float
    precision: Rate
    recall: Rate
    false_positive_rate: Rate


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table: a task (or all), a rule, the counts of the sample and the estimate.

    ``estimate`` is None while a stratum has no label; ``missing`` says which.
    """

    task: str
    rule: str
    labelled: int
    unsure: int
    population: int
    counts: Confusion
    estimate: Estimate | None
    missing: str


@dataclass(frozen=True, slots=True)
class _Judged:
    task: str
    weight: float
    verdict: Verdict
    success: bool


def rate(
    hit: Bool[np.ndarray, " n"], among: Bool[np.ndarray, " n"], weight: Float[np.ndarray, " n"]
) -> Rate:
    """Share of ``among`` that are hits, each counting ``weight`` (one over its chance of being
    drawn): sum(w, hit and among) / sum(w, among).

    The interval is Wilson's for Kish's effective number of draws, sum(w)^2 / sum(w^2) over
    ``among`` (Dean and Pagano, 2015, call it the modified Wilson interval); with equal weights it
    is Wilson's own. It takes no credit for having labelled a large part of a small set.
    """
    used = weight[among]
    if not len(used):
        return Rate(math.nan, Interval(0.0, 1.0), 0.0)
    share = float(weight[among & hit].sum() / used.sum())
    effective = float(used.sum() ** 2 / (used**2).sum())
    hits = min(share * effective, effective)
    return Rate(share, wilson(hits, effective), effective)


def estimated(
    accepted: Bool[np.ndarray, " n"],
    success: Bool[np.ndarray, " n"],
    weight: Float[np.ndarray, " n"],
) -> Estimate:
    cells = (accepted & success, accepted & ~success, ~accepted & success, ~accepted & ~success)
    counts = [float(weight[cell].sum()) for cell in cells]
    return Estimate(
        *counts,
        precision=rate(success, accepted, weight),
        recall=rate(accepted, success, weight),
        false_positive_rate=rate(accepted, ~success, weight),
    )


def table3(
    samples: Iterable[Sample],
    verdicts: Mapping[str, Verdict],
    labels: Mapping[str, AuditLabel],
) -> list[Line]:
    """Two lines per task with labels (likelier answer; P('yes') > alpha), then two of all together.

    A label weighs N / n: N trajectories in its stratum, n of them labelled success or failure.
    That assumes that the unsure ones of a stratum would have split like the others of it.
    """
    parts = [(sample, _judged(sample, verdicts, labels)) for sample in samples]
    parts = [(sample, judged) for sample, judged in parts if judged]
    lines = [line for sample, judged in parts for line in _lines([sample], judged, labels)]
    if len(parts) > 1:
        everything = [one for _, judged in parts for one in judged]
        lines += _lines([sample for sample, _ in parts], everything, labels)
    return lines


def _judged(
    sample: Sample, verdicts: Mapping[str, Verdict], labels: Mapping[str, AuditLabel]
) -> list[_Judged]:
    """Every decided label of a sample with its weight."""
    found: list[_Judged] = []
    for stratum in sample.strata:
        decided = [(name, _said(labels, name)) for name in stratum.drawn]
        known = [(name, success) for name, success in decided if success is not None]
        found += [
            _Judged(sample.task, stratum.size / len(known), verdicts[name], success)
            for name, success in known
        ]
    return found


def _said(labels: Mapping[str, AuditLabel], name: str) -> bool | None:
    return labels[name].success if name in labels else None


def _lines(
    samples: Sequence[Sample],
    judged: Sequence[_Judged],
    labels: Mapping[str, AuditLabel],
) -> list[Line]:
    task = samples[0].task if len(samples) == 1 else ALL_TASKS
    row = _calibration(samples, judged)
    weight = np.array([one.weight for one in judged])
    answers = (row.p_yes > row.mass - row.p_yes, row.p_yes > row.thresholds)
    drawn = [name for sample in samples for name in sample.order]
    unsure = sum(name in labels and labels[name].success is None for name in drawn)
    missing = ", ".join(name for sample in samples for name in _missing(sample, labels))
    return [
        Line(
            task,
            judgement.rule,
            len(judged),
            unsure,
            sum(sample.population for sample in samples),
            judgement.counts,
            None if missing else estimated(accepted, row.success, weight),
            missing,
        )
        for judgement, accepted in zip(judgements([row]), answers, strict=True)
    ]


def _missing(sample: Sample, labels: Mapping[str, AuditLabel]) -> list[str]:
    """Strata that hold trajectories and not one decided label."""
    return [
        f"{stratum.name} of {sample.task}"
        for stratum in sample.strata
        if stratum.size and all(_said(labels, name) is None for name in stratum.drawn)
    ]


def _calibration(samples: Sequence[Sample], judged: Sequence[_Judged]) -> Calibration:
    """The sample as held-out labels, so that both tables count by the same code."""
    alphas = {sample.task: sample.alpha for sample in samples}
    versions = sorted({sample.reward_version for sample in samples})
    return Calibration(
        version=", ".join(f"v{version}" for version in versions),
        alpha=samples[0].alpha,
        p_yes=np.array([one.verdict.p_yes for one in judged], np.float64),
        success=np.array([one.success for one in judged], bool),
        label_source="human",
        mass=np.array([one.verdict.mass for one in judged], np.float64),
        tasks=tuple(one.task for one in judged),
        alphas=alphas,
        target=math.nan,  # no threshold is looked for here
    )
