"""Charts as inline SVG. Colours are CSS classes t0..t3, so they follow the page's theme."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contracts.statistics import Interval
from services.report_data import Evaluation, Scores
from services.report_html import number, percent, text

WIDTH = 350.0  # of the viewBox: text of 11 units stays readable on a phone
HEIGHT = 220.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 12.0, 10.0, 40.0
MAX_POINTS = 300  # of one line: more cannot be seen
BINS = 20


@dataclass(frozen=True, slots=True)
class Series:
    """One line. ``tone`` picks the colour; a reference is dashed."""

    name: str
    tone: int
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps [low, high] to pixels [start, end], linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers (1, 2 or 5 times a power of ten) inside [low, high]."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [float(f"{k}e{p}") for p in powers for k in (1, 2, 5)]
    inside = [mark for mark in marks if low <= mark <= high]
    return inside if len(inside) <= 6 else [m for m in inside if f"{m:e}".startswith("1")]


def _range(values: list[float], log: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        return low / 1.15, high * 1.15
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def _svg(body: str, label: str, height: float = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{text(label)}">'
        f"{body}</svg>"
    )


def _text(x: float, y: float, words: str, anchor: str = "middle", kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{attribute}>{text(words)}</text>'


def _line(x: float, y: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most MAX_POINTS points, each the mean of neighbours; NaN if none of them is finite."""
    groups = np.array_split(np.arange(len(x)), min(len(x), MAX_POINTS)) if len(x) else []
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    finite = [group[np.isfinite(ys[group])] for group in groups]
    return (
        [float(xs[group].mean()) for group in groups],
        [float(ys[good].mean()) if len(good) else math.nan for good in finite],
    )


def _path(series: Series, x: Scale, y: Scale) -> str:
    """A line with a gap where a value is not finite, and a dot where it stands alone."""
    xs, ys = thinned(series.x, series.y)
    runs: list[list[str]] = [[]]
    for a, b in zip(xs, ys, strict=True):
        if math.isfinite(b) and not (y.log and b <= 0):
            runs[-1].append(f"{x(a):.1f},{y(b):.1f}")
        elif runs[-1]:
            runs.append([])
    kind = f"t{series.tone}" + (" dashed" if series.dashed else "")
    dots = [run[0].split(",") for run in runs if len(run) == 1]
    lines = [f'<polyline points="{" ".join(run)}" class="{kind}"/>' for run in runs if len(run) > 1]
    circles = [f'<circle cx="{a}" cy="{b}" r="3" class="{kind}"/>' for a, b in dots]
    return "".join(lines + circles)


def line_chart(series: Sequence[Series], x_label: str, y_label: str, log: bool = False) -> str:
    """Lines over a common x axis. Values that are not finite leave gaps.

    Returns "" when no value is finite (and, on a log axis, positive).
    """
    points = [
        (a, b)
        for s in series
        for a, b in zip(s.x, s.y, strict=True)
        if math.isfinite(b) and not (log and b <= 0)
    ]
    if not points:
        return ""
    x_low, x_high = _range([a for a, _ in points], False)
    x = Scale(x_low, x_high, LEFT, WIDTH - RIGHT)
    y_low, y_high = _range([b for _, b in points], log)
    y = Scale(y_low, y_high, HEIGHT - BOTTOM, TOP, log)
    parts = [_frame(x, y, x_label, y_label)]
    parts += [_path(s, x, y) for s in series]
    return _svg("".join(parts), f"{y_label} over {x_label}") + legend(series)


def _frame(x: Scale, y: Scale, x_label: str, y_label: str) -> str:
    marks = _log_ticks(y.low, y.high) if y.log else ticks(y.low, y.high)
    parts = [_line(LEFT, y(m), WIDTH - RIGHT, y(m), "rule") for m in marks]
    parts += [_text(LEFT - 6, y(m) + 4, number(m), "end") for m in marks]
    parts += [_text(x(m), HEIGHT - BOTTOM + 16, number(m)) for m in ticks(x.low, x.high)]
    parts.append(_line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_label, kind="label"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="label" text-anchor="middle" transform="rotate(-90)" x="{-middle:.1f}" '
        f'y="12">{text(y_label)}</text>'
    )
    return "".join(parts)


def legend(series: Sequence[Series]) -> str:
    if len(series) < 2:
        return ""
    keys = (
        f'<span class="key"><i class="t{s.tone}{" dashed" if s.dashed else ""}"></i>'
        f"{text(s.name)}</span>"
        for s in series
    )
    return f'<div class="legend">{"".join(keys)}</div>'


def histogram(scores: Scores) -> str:
    """Three rows of bars over P('yes') in [0, 1], each scaled to its own highest; alpha marked."""
    rows = [
        ("real, success", 0, scores.real_success),
        ("real, failure", 1, scores.real_failure),
        ("imagined", 2, scores.imagined),
    ]
    tall = 54.0
    x = Scale(0.0, 1.0, 14.0, WIDTH - 14.0)
    height = TOP + 3 * (tall + 24) + BOTTOM - 4
    parts = []
    for index, (name, tone, values) in enumerate(rows):
        base = TOP + (index + 1) * (tall + 24)
        parts.append(_bars(values, tone, x, (base, tall)))
        parts.append(_text(14.0, base - tall - 6, _above(name, values, scores.alpha), "start"))
    bottom = TOP + 3 * (tall + 24)
    parts.append(_line(x(scores.alpha), TOP + 20, x(scores.alpha), bottom, "alpha"))
    parts += [_text(x(m), bottom + 15, number(m)) for m in (0.0, 0.25, 0.5, 0.75, 1.0)]
    label = f"P('yes'); dashed: alpha = {scores.alpha:g}"
    parts.append(_text(WIDTH / 2, height - 3, label, kind="label"))
    return _svg("".join(parts), f"histograms of P(yes), {scores.task}", height)


def _above(name: str, values: np.ndarray, alpha: float) -> str:
    good = values[np.isfinite(values)]
    if not len(good):
        return f"{name}: none"
    return f"{name}: n = {len(good)}, {percent(float((good > alpha).mean()))} above alpha"


def _bars(values: np.ndarray, tone: int, x: Scale, base_tall: tuple[float, float]) -> str:
    base, tall = base_tall
    counts, edges = np.histogram(values[np.isfinite(values)], bins=BINS, range=(0.0, 1.0))
    parts = [_line(x(0.0), base, x(1.0), base, "axis")]
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            up = tall * count / counts.max()
            wide = x(high) - x(low) - 1
            parts.append(
                f'<rect x="{x(low):.1f}" y="{base - up:.1f}" width="{wide:.1f}" '
                f'height="{up:.1f}" class="t{tone}"><title>{low:.2f} to {high:.2f}: {count}</title>'
                "</rect>"
            )
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class Mark:
    """A share with its interval, on a line of its own; NaN: not evaluated. ``words`` show on it."""

    name: str
    value: float
    interval: Interval
    words: str
    tone: int = 0


def intervals(rows: Sequence[Evaluation]) -> str:
    """Success rates with their 95 % Wilson intervals on one axis from 0 to 100 %."""
    marks = [
        Mark(r.stage, r.rate, r.interval, f"{r.stage}: {r.successes} of {r.n}", int(r.control))
        for r in rows
    ]
    return whiskers(marks, f"success rates, {rows[0].task}")


def whiskers(marks: Sequence[Mark], label: str, low: float = 0.0, high: float = 1.0) -> str:
    """Shares on one axis from ``low`` to ``high``; zero is dashed where it lies inside."""
    step, left = 30.0, 34.0 + 5.8 * max(10, *(len(mark.name) for mark in marks))
    x = Scale(low, high, left, WIDTH - 20)
    bottom = TOP + step * len(marks) + 4
    parts = []
    for m in (low + (high - low) * quarter / 4 for quarter in range(5)):
        parts.append(_line(x(m), TOP, x(m), bottom, "alpha" if low < 0 and m == 0 else "rule"))
        parts.append(_text(x(m), bottom + 16, f"{100 * m:.0f} %"))
    for index, mark in enumerate(marks):
        y = TOP + step * (index + 0.5)
        parts.append(_text(left - 10, y + 4, mark.name, "end"))
        parts.append(_whisker(mark, x, y))
    return _svg("".join(parts), label, bottom + 24)


def _whisker(mark: Mark, x: Scale, y: float) -> str:
    if not math.isfinite(mark.value):
        return _text(x(0.5), y + 4, "not evaluated", kind="none")
    tone, low, high = f"t{mark.tone}", x(mark.interval.low), x(mark.interval.high)
    return (
        _line(low, y, high, y, f"{tone} whisker")
        + f'<circle cx="{x(mark.value):.1f}" cy="{y:.1f}" r="5" class="{tone} fill">'
        + f"<title>{text(mark.words)}</title></circle>"
    )


def shares(parts: Sequence[tuple[str, int, int]]) -> str:
    """One bar cut into (name, tone, count)."""
    total = sum(count for _, _, count in parts)
    if not total:
        return ""
    cells = (
        f'<i class="b{tone}" style="flex:{count}" title="{text(name)}: {count}"></i>'
        for name, tone, count in parts
        if count
    )
    return f'<div class="bar">{"".join(cells)}</div>'
