"""What held-out labels say of a reward model: the paper's Table 3, which threshold to trust, and
how pure D_syn+ is."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from contracts.statistics import Z_95, Confusion, Interval, confusion, counted, wilson
from services.report_data import Calibration, Imagined

ALPHAS = tuple(round(0.05 * k, 2) for k in range(1, 20))
ALL_TASKS = "all tasks"
DIRECT = "direct answer: P('yes') > P('no')"
Z_JOINT = 2.3939797998185104  # three intervals hold together with 95 %: two-sided 1 - 0.05 / 3


@dataclass(frozen=True, slots=True)
class Judgement:
    """One row of the paper's Table 3: a model, a way to read its answer, and the counts."""

    model: str
    rule: str
    counts: Confusion


def judgements(rows: Iterable[Calibration]) -> list[Judgement]:
    """Every model with and without a threshold. Without one, the likelier answer counts."""
    found = []
    for row in rows:
        if not len(row.success):
            continue
        direct = counted(row.p_yes > row.mass - row.p_yes, row.success, math.nan)
        strict = counted(row.p_yes > row.thresholds, row.success, row.alpha)
        several = len(set(row.alphas.values())) > 1
        limit = "alpha of the task" if several else f"{row.alpha:g}"
        found.append(Judgement(row.version, DIRECT, direct))
        found.append(Judgement(row.version, f"P('yes') > {limit}", strict))
    return found


@dataclass(frozen=True, slots=True)
class Threshold:
    """The threshold of a task in use, and the one that the labels support for a precision.

    ``chosen`` is None where no threshold has a Wilson lower bound (of 95 %, two-sided) of its
    precision at ``target`` or above. It is the best of ``ALPHAS`` on the labels that it is judged
    by, so its bound is somewhat optimistic.
    """

    task: str
    successes: int
    failures: int
    target: float
    used: Confusion
    chosen: Confusion | None

    @property
    def needed(self) -> int:
        """Accepted successes without one false positive that would support the target."""
        return math.ceil(self.target * Z_95**2 / (1 - self.target))


def choose(
    p_yes: Float[np.ndarray, " n"], success: Bool[np.ndarray, " n"], target: float
) -> Confusion | None:
    """The lowest of ``ALPHAS`` whose precision is at least ``target`` by its lower bound: of those
    that are pure enough the one that keeps most."""
    found = (confusion(p_yes, success, alpha) for alpha in ALPHAS)
    return next(
        (one for one in found if one.accepted and one.precision_interval.low >= target), None
    )


def thresholds(row: Calibration) -> list[Threshold]:
    """One line per task, and one of all together where there are several."""
    tasks = np.array(row.tasks)
    names = sorted(set(row.tasks))
    lines = [_threshold(row, name, tasks == name, row.alphas[name]) for name in names]
    if len(names) > 1:
        lines.append(_threshold(row, ALL_TASKS, np.ones(len(tasks), bool), row.alpha))
    return lines


def _threshold(
    row: Calibration, task: str, mine: Bool[np.ndarray, " n"], alpha: float
) -> Threshold:
    p_yes, success = row.p_yes[mine], row.success[mine]
    return Threshold(
        task,
        int(success.sum()),
        int((~success).sum()),
        row.target,
        confusion(p_yes, success, alpha),
        choose(p_yes, success, row.target),
    )


@dataclass(frozen=True, slots=True)
class Purity:
    """Share of D_syn+ that succeeded in the world model's eyes, if the reward model errs there as
    it does on real held-out episodes. NaN where nothing was accepted or no rate is known."""

    iteration: int
    task: str
    accepted: int
    scored: int
    labels: Confusion  # on real held-out episodes, at the threshold in use
    success_rate: float  # of the imagined trajectories, by the same reasoning
    purity: float
    interval: Interval  # from the intervals of all three rates, together 95 %


def _pure(share: float, hit: float, false_alarm: float) -> float:
    """Bayes: of a ``share`` of accepted, how many are hits. With s = b t + (1-b) f for a success
    rate b, hits are b t / s = t (s-f) / (s (t-f)), cut to [0, 1]."""
    if share <= false_alarm:
        return 0.0
    if share >= hit:
        return 1.0
    return hit * (share - false_alarm) / (share * (hit - false_alarm))


def purity(labels: Confusion, accepted: int, scored: int) -> tuple[float, float, Interval]:
    """(success rate of the scored, purity of the accepted, its interval).

    Purity falls with both rates of the reward model and rises with the accepted share, so its
    interval is at the corners of theirs. A model whose hits might be no likelier than its false
    alarms tells nothing: 0 or 1 is possible.
    """
    hit, alarm = labels.recall, labels.false_positive_rate
    if not accepted or not hit > alarm:
        return math.nan, math.nan, Interval(0.0, 1.0)
    share = accepted / scored
    hits = wilson(labels.true_positive, labels.true_positive + labels.false_negative, Z_JOINT)
    alarms = wilson(labels.false_positive, labels.false_positive + labels.true_negative, Z_JOINT)
    shares = wilson(accepted, scored, Z_JOINT)
    low = _pure(shares.low, hits.high, alarms.high) if hits.high > alarms.high else 0.0
    high = _pure(shares.high, hits.low, alarms.low) if hits.low > alarms.low else 1.0
    rate = min(1.0, max(0.0, (share - alarm) / (hit - alarm)))
    return rate, _pure(share, hit, alarm), Interval(low, high)


def purities(rows: Sequence[Calibration], imagined: Iterable[Imagined]) -> list[Purity]:
    """D_syn+ of every task and iteration, by the reward model that judged it."""
    found = []
    for dream in imagined:
        judge = judge_of(rows, dream.iteration)
        if judge is None:
            continue
        lines = {line.task: line.used for line in thresholds(judge)}
        if dream.task in lines:
            labels, scored = lines[dream.task], dream.accepted + dream.rejected
            found.append(
                Purity(
                    dream.iteration,
                    dream.task,
                    dream.accepted,
                    scored,
                    labels,
                    *purity(labels, dream.accepted, scored),
                )
            )
    return found


def judge_of(rows: Sequence[Calibration], iteration: int) -> Calibration | None:
    """The calibration of the model that judged an iteration: the newest that was there by then."""
    known = [row for row in rows if 0 < row.iteration <= iteration]
    return max(known, key=lambda row: row.iteration, default=None)
