"""The numbers of a replay evaluation: means with intervals over episodes, Frechet distances, and
what became of successes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from contracts.constants import FRAME_HZ, VIEWS
from contracts.seeds import fold
from contracts.statistics import Confusion, Interval, confusion, wilson
from models.metrics.frechet import TooFewError, frechet_distance
from services.replay_report_data import COPY_FIRST, REAL, ReplayReport, VariantResults

VIEW_ROWS = ("wrist", "exterior_1", "exterior_2", "all")
DRAWS = 1000  # of the bootstrap


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over clips and its 95 % interval over episodes; NaN where there is none."""

    value: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class Distance:
    """A Frechet distance. ``half`` and ``floor`` are at equal n: imagined against real, and real
    against real, of two halves that share no episode. ``reason`` says why there is none."""

    value: float = math.nan
    n: int = 0
    half: float = math.nan
    floor: float = math.nan
    half_n: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One variant and view of Table 1. ``gain`` is the PSNR above the known frame's copy."""

    variant: str
    view: str
    clips: int
    episodes: int
    psnr: Mean
    ssim: Mean
    gain: Mean
    lpips: Mean | None
    fid: Distance | None
    fvd: Distance | None


def bootstrap(values: Float[np.ndarray, " n"], groups: Sequence[str], seed: int = 0) -> Interval:
    """95 % percentile interval of the mean of ``values``: whole groups are drawn with replacement.

    Clips of one episode resemble each other, so episodes are drawn, not clips. NaN with one group.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        return Interval(math.nan, math.nan)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    rng = np.random.default_rng(fold(seed, "bootstrap"))
    draws = rng.integers(len(names), size=(DRAWS, len(names)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(low), float(high))


def table(report: ReplayReport) -> list[Row]:
    """Every variant by view."""
    return [_row(report, one, view) for one in report.shown for view in VIEW_ROWS]


def _row(report: ReplayReport, variant: VariantResults, view: str) -> Row:
    groups = [item.episode for item, _ in variant.of("clip")]
    still = report.variant(COPY_FIRST)
    return Row(
        variant=variant.name,
        view=view,
        clips=len(groups),
        episodes=len(set(groups)),
        psnr=_mean(per_clip(variant, "psnr", view), groups),
        ssim=_mean(per_clip(variant, "ssim", view), groups),
        gain=_mean(per_clip(variant, "psnr", view) - per_clip(still, "psnr", view), groups),
        lpips=_mean(per_clip(variant, "lpips", view), groups)
        if "LPIPS" in report.weights
        else None,
        fid=distance(report, variant, "fid", view) if "FID" in report.weights else None,
        fvd=distance(report, variant, "fvd", view) if "FVD" in report.weights else None,
    )


def _mean(values: np.ndarray, groups: Sequence[str]) -> Mean:
    return Mean(float(values.mean()), bootstrap(values, groups))


def _views(view: str) -> list[int]:
    return list(range(len(VIEWS))) if view == "all" else [VIEWS.index(view)]


def per_clip(variant: VariantResults, metric: str, view: str) -> Float[np.ndarray, " clip"]:
    """Mean over a clip's frames (and over the views, for "all")."""
    found = [found[metric][:, _views(view)].mean() for _, found in variant.of("clip")]
    return np.asarray(found, np.float64)


def by_second(variant: VariantResults, metric: str, view: str) -> Float[np.ndarray, " second"]:
    """Mean over clips of each second ahead; the first holds the frames 0.2 s to 1.0 s."""
    frames = np.mean([f[metric][:, _views(view)].mean(axis=1) for _, f in variant.of("clip")], 0)
    seconds = -(-len(frames) // FRAME_HZ)
    return np.asarray([frames[FRAME_HZ * k : FRAME_HZ * (k + 1)].mean() for k in range(seconds)])


def distance(report: ReplayReport, variant: VariantResults, metric: str, view: str) -> Distance:
    """FID over frames or FVD over clips against the real ones."""
    real, groups = _samples(report.variant(REAL), metric, view)
    other, _ = _samples(variant, metric, view)
    try:
        value = frechet_distance(real, other)
    except TooFewError as error:
        return Distance(n=len(real), reason=str(error))
    first = _half(groups)
    try:
        half = frechet_distance(real[first], other[~first])
        floor = frechet_distance(real[first], real[~first])
    except TooFewError as error:
        return Distance(value, len(real), reason=f"no floor: {error} in each half")
    return Distance(value, len(real), half, floor, int(min(first.sum(), (~first).sum())))


def _samples(variant: VariantResults, metric: str, view: str) -> tuple[np.ndarray, list[str]]:
    """(sample, feature) rows and the episode of each."""
    rows, groups = [], []
    for item, found in variant.of("clip"):
        features = found[metric][..., _views(view), :].reshape(-1, found[metric].shape[-1])
        rows.append(features)
        groups += [item.episode] * len(features)
    return np.concatenate(rows), groups


def _half(groups: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Every second episode, so that no episode is in both halves."""
    names = list(dict.fromkeys(groups))
    first = set(names[::2])
    return np.asarray([name in first for name in groups])


@dataclass(frozen=True, slots=True)
class Outcome:
    """Success judged on replays against the truth. Positive: the replay is judged a success.

    ``optimism`` is the share of real failures that the replay shows as a success, ``pessimism``
    that of real successes which it shows as a failure.
    """

    variant: str
    task: str  # "" for all of them
    truth: str  # "label" or "judge": the same reward model on the real end
    counts: Confusion
    unlabelled: int

    @property
    def optimism(self) -> Mean:
        c = self.counts
        return _share(c.false_positive, c.false_positive + c.true_negative)

    @property
    def pessimism(self) -> Mean:
        c = self.counts
        return _share(c.false_negative, c.false_negative + c.true_positive)


def _share(part: int, whole: int) -> Mean:
    return Mean(part / whole if whole else math.nan, wilson(part, whole))


def outcomes(report: ReplayReport) -> list[Outcome]:
    """By variant, truth and task; the real clips first: the judge's own error."""
    if not report.judge or not report.variant(REAL).of("event"):
        return []
    tasks = sorted({one.task for one in report.episodes.values()})
    return [
        row
        for variant in report.variants
        for truth in ("label", "judge")
        if (variant.name, truth) != (REAL, "judge")
        for task in ("", *(tasks if len(tasks) > 1 else []))
        if (row := _outcome(report, variant, truth, task)).counts.n or not task
    ]


def _outcome(report: ReplayReport, variant: VariantResults, truth: str, task: str) -> Outcome:
    real = {item.episode: float(found["p_yes"]) for item, found in report.variant(REAL).of("event")}
    judged, true, unknown = [], [], 0
    for item, found in variant.of("event"):
        episode = report.episodes[item.episode]
        if task and episode.task != task:
            continue
        if truth == "label" and episode.label is None:
            unknown += 1
            continue
        judged.append(float(found["p_yes"]))
        labelled = episode.label is not None and episode.label.success
        true.append(labelled if truth == "label" else real[item.episode] > report.alpha)
    counts = confusion(np.asarray(judged, float), np.asarray(true, bool), report.alpha)
    return Outcome(variant.name, task, truth, counts, unknown)


def futures_accepted(report: ReplayReport, variant: VariantResults) -> tuple[int, int]:
    """(futures with P('yes') > alpha, futures that were judged)."""
    scores = [float(found["p_yes"]) for _, found in variant.of("future") if "p_yes" in found]
    return sum(score > report.alpha for score in scores), len(scores)
