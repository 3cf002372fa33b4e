"""Intervals for rates, and how well a score separates success from failure; each defined once."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

Z_95 = 1.959963984540054  # two-sided 95 %


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float


def _check(successes: float | int, n: float | int) -> None:
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} episodes: must lie in 0..n")


def wilson(successes: float | int, n: float | int, z: float = Z_95) -> Interval:
    """Wilson's score interval of a proportion: honest at 0 of n and n of n, unlike p +- z s.

    ``(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)``. Nothing observed (n = 0) gives
    all of [0, 1]. Weighted samples have broken numbers of successes and effective draws.

    Raises:
        ValueError: successes outside 0..n.
    """
    _check(successes, n)
    if n == 0:
        return Interval(0.0, 1.0)
    p = successes / n
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Interval(max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale))


def difference(first: tuple[int, int], second: tuple[int, int]) -> Interval:
    """95 % interval of the rate of ``second`` minus that of ``first``, each (successes, n).

    Newcombe's hybrid score interval (Statistics in Medicine 17, 1998, method 10) of independent
    samples. With n = 0 on either side everything in [-1, 1] is possible.
    """
    a, b = wilson(*first), wilson(*second)
    if not first[1] or not second[1]:
        return Interval(-1.0, 1.0)
    p, q = first[0] / first[1], second[0] / second[1]
    gap = q - p
    below = math.hypot(q - b.low, a.high - p)
    above = math.hypot(b.high - q, p - a.low)
    return Interval(gap - below, gap + above)


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts at one threshold; "positive" means P('yes') > alpha."""

    alpha: float
    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def n(self) -> int:
        return self.true_positive + self.false_positive + self.false_negative + self.true_negative

    @property
    def accepted(self) -> int:
        return self.true_positive + self.false_positive

    @property
    def precision(self) -> float:
        """Share of the accepted that are successes; NaN when none is accepted."""
        return _share(self.true_positive, self.false_positive)

    @property
    def recall(self) -> float:
        """Share of the successes that are accepted; NaN without successes."""
        return _share(self.true_positive, self.false_negative)

    @property
    def false_positive_rate(self) -> float:
        """Share of the failures that are accepted; NaN without failures."""
        return _share(self.false_positive, self.true_negative)

    @property
    def precision_interval(self) -> Interval:
        """95 %, Wilson, as the two below."""
        return wilson(self.true_positive, self.accepted)

    @property
    def recall_interval(self) -> Interval:
        return wilson(self.true_positive, self.true_positive + self.false_negative)

    @property
    def false_positive_interval(self) -> Interval:
        return wilson(self.false_positive, self.false_positive + self.true_negative)


def _share(part: int, rest: int) -> float:
    return part / (part + rest) if part + rest else math.nan


def counted(
    accepted: Bool[np.ndarray, " n"], success: Bool[np.ndarray, " n"], alpha: float
) -> Confusion:
    """The four counts of a decision; ``alpha`` only says by which threshold it was taken."""
    return Confusion(
        alpha,
        int((accepted & success).sum()),
        int((accepted & ~success).sum()),
        int((~accepted & success).sum()),
        int((~accepted & ~success).sum()),
    )


def confusion(
    p_yes: Float[np.ndarray, " n"], success: Bool[np.ndarray, " n"], alpha: float
) -> Confusion:
    """Eq. 3 against the labels. A NaN score (a scoring error) is never accepted."""
    return counted(p_yes > alpha, success, alpha)


def sweep(
    p_yes: Float[np.ndarray, " n"], success: Bool[np.ndarray, " n"], alphas: Sequence[float]
) -> list[Confusion]:
    return [confusion(p_yes, success, alpha) for alpha in alphas]


def roc(p_yes: Float[np.ndarray, " n"], success: Bool[np.ndarray, " n"]) -> list[Confusion]:
    """Every point of the ROC curve: a threshold at each score, from the strictest, which accepts
    nothing, to -infinity, which accepts all. NaN scores are left out."""
    known = ~np.isnan(p_yes)
    alphas = [*np.unique(p_yes[known])[::-1].tolist(), -math.inf]
    return sweep(p_yes[known], success[known], alphas)


def auc(p_yes: Float[np.ndarray, " n"], success: Bool[np.ndarray, " n"]) -> float:
    """Chance that a success outscores a failure, ties counting half. NaN scores are left out;
    NaN when one class is empty."""
    good, bad = p_yes[success & ~np.isnan(p_yes)], np.sort(p_yes[~success & ~np.isnan(p_yes)])
    if not len(good) or not len(bad):
        return math.nan
    below = np.searchsorted(bad, good, side="left") + np.searchsorted(bad, good, side="right")
    return float(below.mean() / 2 / len(bad))


def auc_interval(area: float, successes: int, failures: int, z: float = Z_95) -> Interval:
    """Score-type interval of an area under the ROC curve, honest at 0 and 1.

    All areas A with ``(area - A)^2 <= z^2 A (1-A) (2N-1 - (3N-3) / ((2-A)(1+A))) / (m n)``, where
    N = (m+n)/2: Newcombe, Statistics in Medicine 25 (2006) 559-573, method 5. Without one of the
    outcomes everything is possible.
    """
    if not successes or not failures:
        return Interval(0.0, 1.0)
    pairs, half = successes * failures, (successes + failures) / 2

    def inside(true: float) -> bool:
        spread = 2 * half - 1 - (3 * half - 3) / ((2 - true) * (1 + true))
        return (area - true) ** 2 <= z * z * true * (1 - true) * spread / pairs

    return Interval(_edge(inside, area, 0.0), _edge(inside, area, 1.0))


@dataclass(frozen=True, slots=True)
class Agreement:
    """Whether what is imagined from a start follows what really happened from it.

    ``area``: chance that a start from which a real episode succeeded has a greater accepted share
    of imagined trajectories than one from which it failed, ties counting half; NaN where only one
    outcome was seen. 0.5: imagination cannot tell starts apart, whatever its success rate.
    """

    area: float
    successes: int  # real starts, by outcome, from which something was imagined
    failures: int

    @property
    def interval(self) -> Interval:
        return auc_interval(self.area, self.successes, self.failures)


def agreement(accepted: Mapping[str, Sequence[bool]], success: Mapping[str, bool]) -> Agreement:
    """``accepted``: of each real start what the judge said of everything imagined from it.
    ``success``: what happened really; a start without a label is left out."""
    names = sorted(name for name, said in accepted.items() if said and name in success)
    share = np.array([np.mean(accepted[name]) for name in names], float)
    real = np.array([success[name] for name in names], bool)
    return Agreement(auc(share, real), int(real.sum()), int((~real).sum()))


def _edge(inside: Callable[[float], bool], within: float, outside: float) -> float:
    """Where ``inside`` turns false between a point that it holds for and the end of a range."""
    for _ in range(60):
        middle = (within + outside) / 2
        if inside(middle):
            within = middle
        else:
            outside = middle
    return within
