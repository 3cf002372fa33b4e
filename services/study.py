"""What a study found: success by method and task over seeds, paired differences, and what it cost.

Starts are the same for all methods and seeds, so two methods are compared start by start.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from contracts.seeds import fold
from contracts.statistics import Interval, wilson

Grid = Bool[np.ndarray, "seed start"]


@dataclass(frozen=True, slots=True)
class Row:
    """One policy of the study: whether it succeeded, by task, for every seed and start."""

    name: str  # "base", "vlaw-2", "filtered_bc-1", "control"
    success: dict[str, Grid]

    def __post_init__(self) -> None:
        shapes = {grid.shape for grid in self.success.values()}
        if len(shapes) != 1 or 0 in next(iter(shapes)):
            raise ValueError(
                f"{self.name}: every task needs equally many seeds and starts, got "
                f"{ {task: grid.shape for task, grid in self.success.items()} }"
            )

    @property
    def tasks(self) -> list[str]:
        return list(self.success)

    @property
    def mean(self) -> float:
        """Mean over tasks of each task's rate."""
        return float(np.mean([grid.mean() for grid in self.success.values()]))

    def counts(self, task: str) -> tuple[int, int]:
        """(successes, episodes) of a task, all seeds together.

        A base that the seeds share plays the same starts in each: those are counted once.
        """
        grid = self.success[task]
        shared = all((one == one[0]).all() for one in self.success.values())
        return (int(grid[0].sum()), len(grid[0])) if shared else (int(grid.sum()), grid.size)

    def interval(self, task: str) -> Interval:
        """95 %, Wilson, as if all seeds' episodes were independent."""
        return wilson(*self.counts(task))

    def stacked(self, tasks: Sequence[str]) -> Bool[np.ndarray, "task seed start"]:
        return np.stack([self.success[task] for task in tasks])


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean over tasks of ``better`` minus ``worse``, with its 95 % bootstrap interval."""

    better: str
    worse: str
    value: float
    interval: Interval

    @property
    def conclusion(self) -> str:
        if self.interval.low > 0:
            return f"{self.better} is better"
        return f"{self.worse} is better" if self.interval.high < 0 else "not shown either way"


@dataclass(frozen=True, slots=True)
class Spent:
    """What one run of the study took."""

    variant: str
    seed: int
    seconds: float
    imagined: int
    imagine_seconds: float
    accepted: int
    executed: int  # of the accepted, in the simulator
    true: int  # of the executed, those whose actions reach the goal

    @property
    def per_hour(self) -> float:
        return 3600 * self.imagined / self.imagine_seconds if self.imagine_seconds else 0.0

    @property
    def seconds_per_accepted(self) -> float:
        """Of imagination; infinite where nothing was accepted."""
        return self.imagine_seconds / self.accepted if self.accepted else float("inf")


def mean_interval(row: Row, redraws: int) -> Interval:
    """95 % of the mean over tasks: seeds drawn anew, and starts of each task within."""
    return _bootstrap(row.stacked(row.tasks).astype(float), redraws, row.name)


def difference(better: Row, worse: Row, redraws: int) -> Difference:
    """Paired: a redraw takes the same seeds and starts of both.

    Raises:
        ValueError: they differ in tasks, seeds or starts.
    """
    if better.tasks != worse.tasks or _shape(better) != _shape(worse):
        raise ValueError(
            f"{better.name} and {worse.name} were not evaluated on the same tasks, seeds and starts"
        )
    gap = better.stacked(better.tasks).astype(float) - worse.stacked(better.tasks)
    interval = _bootstrap(gap, redraws, f"{better.name} - {worse.name}")
    return Difference(better.name, worse.name, better.mean - worse.mean, interval)


def _shape(row: Row) -> tuple[int, ...]:
    return next(iter(row.success.values())).shape


def _bootstrap(values: Float[np.ndarray, "task seed start"], redraws: int, name: str) -> Interval:
    """Percentile interval of the mean. One seed alone says nothing about others: then only starts
    are drawn."""
    tasks, seeds, starts = values.shape
    rng = np.random.default_rng(fold(0, "bootstrap", name))
    means = np.empty(redraws)
    for k in range(redraws):
        chosen = rng.integers(seeds, size=seeds)
        picks = rng.integers(starts, size=(tasks, 1, starts))
        drawn = np.take_along_axis(values[:, chosen], np.broadcast_to(picks, values.shape), axis=2)
        means[k] = drawn.mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(low), float(high))


Table = tuple[Sequence[str], list[list[str]]]  # heads, rows of cells


def to_markdown(rows: Sequence[Row], gaps: Sequence[Difference], spent: Sequence[Spent]) -> str:
    """The tables of the study for ``docs/RESULTS.md``."""
    found = (success_table(rows), gap_table(gaps), cost_table(spent))
    return "\n\n".join(map(_markdown, found)) + "\n"


def success_table(rows: Sequence[Row]) -> Table:
    tasks = rows[0].tasks
    cells = [
        [row.name, *(_rate(*row.counts(t), row.interval(t)) for t in tasks), f"{row.mean:.1%}"]
        for row in rows
    ]
    return ("policy", *tasks, "mean of tasks"), cells


def gap_table(gaps: Sequence[Difference]) -> Table:
    cells = [
        [
            f"{gap.better} - {gap.worse}",
            _points(gap.value),
            f"{_points(gap.interval.low)} to {_points(gap.interval.high)}",
            gap.conclusion,
        ]
        for gap in gaps
    ]
    return ("difference of means", "points", "95 % (bootstrap)", ""), cells


def cost_table(spent: Sequence[Spent]) -> Table:
    heads = ("run", "seed", "minutes", "imagined", "per hour", "accepted")
    heads = (*heads, "s of imagination per accepted", "true of executed")
    return heads, [_cost(one) for one in spent]


def _cost(one: Spent) -> list[str]:
    each = f"{one.seconds_per_accepted:.1f}" if one.accepted else "-"
    true = _rate(one.true, one.executed, wilson(one.true, one.executed))
    cells = (one.variant, one.seed, f"{one.seconds / 60:.0f}", one.imagined, f"{one.per_hour:.0f}")
    return [*map(str, cells), str(one.accepted), each, true if one.executed else "-"]


def _markdown(table: Table) -> str:
    heads, rows = table
    return "\n".join(map(_line, [heads, ["---"] * len(heads), *rows]))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rate(successes: int, n: int, interval: Interval) -> str:
    return f"{successes}/{n} ({interval.low:.0%} to {interval.high:.0%})"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
