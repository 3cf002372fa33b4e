"""Which imagined trajectories a person labels: a stratified random sample that stays as drawn."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contracts.seeds import fold
from contracts.types import Verdict
from services.stages import read_json, write_json

SHARES = {"near": 0.4, "top": 0.3, "rest": 0.3}  # of the labels; the strata in this order
QUARTER = 0.25  # of a task's trajectories: the size of each of the first two strata


@dataclass(frozen=True, slots=True)
class Stratum:
    """A part of a task's scored trajectories by their P('yes'), and those drawn from it at random.

    ``size`` is how many it holds, ``low`` and ``high`` their least and greatest P('yes').
    """

    name: str
    size: int
    low: float
    high: float
    drawn: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """What is to be labelled of one task, and how it was chosen.

    ``population`` scored trajectories were drawn from; ``unscored`` had a scoring error and belong
    to no stratum.
    """

    task: str
    seed: int
    asked: int
    reward_version: int
    alpha: float
    population: int
    unscored: int
    strata: tuple[Stratum, ...]

    @property
    def order(self) -> list[str]:
        """Ids as they are shown. Shuffled without regard to stratum or draw, so that whoever stops
        early has labelled a random part of every stratum."""
        names = [name for stratum in self.strata for name in stratum.drawn]
        return sorted(names, key=lambda name: (fold(self.seed, "audit order", name), name))

    def stratum(self, trajectory_id: str) -> str:
        """Its stratum, "" for one that was not drawn."""
        return next((s.name for s in self.strata if trajectory_id in s.drawn), "")


def draw(task: str, verdicts: Mapping[str, Verdict], alpha: float, n: int, seed: int) -> Sample:
    """``n`` trajectories of the task, or all where it has fewer; equal arguments draw equal ones.

    ``verdicts`` are those of the task by one reward model. Strata: *near* is the quarter with the
    least abs(P('yes') - alpha), *top* the most likely of the others until they are a quarter too,
    *rest* what is left. Within a stratum every trajectory is drawn with the same probability.
    """
    scored = {name: verdict.p_yes for name, verdict in verdicts.items() if not verdict.error}
    parts = _parts(scored, alpha)
    wanted = allocate([len(names) for names in parts.values()], n)
    strata = tuple(
        Stratum(
            name,
            len(names),
            min((scored[one] for one in names), default=math.nan),
            max((scored[one] for one in names), default=math.nan),
            tuple(sorted(names, key=lambda one: (fold(seed, "audit draw", one), one))[:count]),
        )
        for (name, names), count in zip(parts.items(), wanted, strict=True)
    )
    version = max((verdict.reward_version for verdict in verdicts.values()), default=0)
    unscored = len(verdicts) - len(scored)
    return Sample(task, seed, n, version, alpha, len(scored), unscored, strata)


def _parts(scored: Mapping[str, float], alpha: float) -> dict[str, list[str]]:
    quarter = math.ceil(QUARTER * len(scored))
    names = sorted(scored, key=lambda name: (abs(scored[name] - alpha), name))
    near, others = names[:quarter], names[quarter:]
    others.sort(key=lambda name: (-scored[name], name))
    return {"near": near, "top": others[:quarter], "rest": others[quarter:]}


def allocate(sizes: Sequence[int], n: int) -> list[int]:
    """How many of ``n`` each stratum gives: by ``SHARES``, never more than it holds; what a small
    one cannot give the others do."""
    taken = [0] * len(sizes)
    shares = list(SHARES.values())
    for _ in range(min(n, sum(sizes))):
        open_ones = [i for i, size in enumerate(sizes) if taken[i] < size]
        taken[max(open_ones, key=lambda i: shares[i] / (taken[i] + 1))] += 1
    return taken


def kept_or_drawn(
    path: Path, populations: Mapping[str, Mapping[str, Verdict]], settings: "Drawing"
) -> dict[str, Sample]:
    """The sample of every task, drawn where ``path`` holds none for these settings.

    A stored sample stays although the run has imagined more since, so that labels and weights stay
    those of one draw; ``settings.redraw`` gives it up. A task without scores has none.

    Raises:
        ValueError: the file is damaged.
    """
    stored = _read(path)
    samples: dict[str, Sample] = {}
    for task, verdicts in populations.items():
        old = stored.get(task)
        if old and not settings.redraw and (old.seed, old.asked) == (settings.seed, settings.n):
            samples[task] = old
        elif any(not verdict.error for verdict in verdicts.values()):
            alpha = settings.alpha[task]
            samples[task] = draw(task, verdicts, alpha, settings.n, settings.seed)
    if samples != stored:
        write_json(path, [asdict(sample) for sample in samples.values()])
    return samples


@dataclass(frozen=True, slots=True)
class Drawing:
    """How to draw: ``n`` per task, thresholds by task, and whether a stored sample is given up."""

    n: int
    seed: int
    alpha: Mapping[str, float]
    redraw: bool = False


def _read(path: Path) -> dict[str, Sample]:
    if not path.exists():
        return {}
    try:
        return {sample["task"]: _sample(sample) for sample in read_json(path)}
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): restore it, or delete it to draw a new sample; labels "
            "are kept elsewhere and stay"
        ) from error


def _sample(facts: dict[str, Any]) -> Sample:
    strata = tuple(Stratum(**(one | {"drawn": tuple(one["drawn"])})) for one in facts.pop("strata"))
    return Sample(**facts, strata=strata)
