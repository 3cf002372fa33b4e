"""What a run has spent, and the rates that follow from it: read from the folder that it left."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.robot import TASKS
from contracts.constants import NEW_FRAMES
from services.estimate import Rates
from services.folders import bytes_below
from services.progress import read_events
from services.report_data import Amount, StageCost
from services.stages import Stages, read_json, write_json

ESTIMATE = "estimate.json"
FEW = 3  # units; fewer say nothing about how fast they follow each other
STEPS = {"policy": "policy_step", "control": "policy_step", "base policy": "policy_step"} | {
    "world model": "world_model_step",
    "reward": "reward_step",
}


def spent(folder: Path) -> dict[str, Amount]:
    """Seconds, GPU-seconds and growth of the folder, by stage.

    A stage that was cut short and continued adds up. What a stage took that was killed without a
    word (``kill -9``) is unknown. Folders of older code know bars only, and no bytes.
    """
    found: dict[str, Amount] = {}
    before = 0.0
    known = read_events(folder)
    named = {event["stage"] for event in known if event["event"] == "stage"}
    for event in known:
        older = event["event"] == "end" and not named
        if event["event"] != "stage" and not older:
            continue
        disk = event.get("disk_bytes", before)
        old = found.get(event["stage"], Amount(0.0, 0.0, 0.0))
        found[event["stage"]] = Amount(
            old.seconds + event["seconds"],
            old.gpu_seconds + event.get("gpu_seconds", 0.0),
            old.disk_bytes + disk - before,
        )
        before = disk
    return found


def store_estimate(folder: Path, costs: dict[str, Amount], source: str) -> None:
    """Keep what was expected of a run, unless it is there: a continued run keeps its first."""
    if not (folder / ESTIMATE).exists():
        stages = {
            stage: [one.seconds, one.gpu_seconds, one.disk_bytes] for stage, one in costs.items()
        }
        write_json(folder / ESTIMATE, {"rates": source, "stages": stages})


def compared(folder: Path) -> list[StageCost]:
    """Every stage that was expected or took time, in the order in which they ran."""
    path = folder / ESTIMATE
    kept = read_json(path)["stages"] if path.exists() else {}
    expected = {stage: Amount(*map(float, numbers)) for stage, numbers in kept.items()}
    took = spent(folder)
    names = [name for name, one in took.items() if name in expected or one.seconds >= 0.1]
    names += [name for name in expected if name not in took]
    return [StageCost(name, expected.get(name), took.get(name)) for name in names]


def measured(folder: Path, rates: Rates) -> Rates:
    """The rates of the run in ``folder``; what it did not do keeps its rate of ``rates``.

    The seconds until a stage's first unit was done are its start, as far as they exceed a unit.

    Raises:
        ValueError: the folder holds no run that has measured anything.
    """
    if not (folder / "run.json").exists():
        raise ValueError(f"estimate.run={folder} holds no run (no run.json): give a run's folder")
    found = dict(_Measured(folder).rates())
    if not set(found) - {"start"}:
        raise ValueError(f"estimate.run={folder}: no stage of that run has ended yet")
    rest = [f.name for f in rates.__dataclass_fields__.values() if f.name not in found]
    left = [name for name in rest if name.endswith(("_step", "_tick", "chunk", "clip"))]
    source = f"measured in {folder}" + (f"; {', '.join(left)}: {rates.source}" if left else "")
    return replace(rates, **{"start": 0.0} | found, source=source)


class _Measured:
    """Arithmetic on one run's settings, manifests and events."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = read_json(folder / "run.json")["settings"]
        self.stages = Stages(folder / "stages")
        self.ends = [event for event in read_events(folder) if event["event"] == "end"]

    def rates(self) -> Iterator[tuple[str, float]]:
        for kind in ("policy", "world model", "reward"):
            names = {f"train {name}" for name, rate in STEPS.items() if rate == STEPS[kind]}
            yield from self._per_unit(STEPS[kind], names)
        yield from self._start()
        yield from self._per_unit("clip", {"score", "calibration"})
        yield from self._episodes()
        yield from self._imagination()
        for name, store in (("real_bytes", "real"), ("imagined_bytes", "imagined")):
            yield from self._bytes(name, store)

    def _of(self, names: set[str]) -> tuple[float, int]:
        """Seconds of work, without starts, and units of all bars of these kinds."""
        mine = [_worked(e) for e in self.ends if _kind(e["stage"]) in names]
        return sum((seconds for seconds, _, _ in mine), 0.0), sum(units for _, units, _ in mine)

    def _start(self) -> Iterator[tuple[str, float]]:
        starts = [start for _, _, start in map(_worked, self.ends) if start is not None]
        if starts:
            yield "start", sum(starts) / len(starts)

    def _per_unit(self, rate: str, names: set[str]) -> Iterator[tuple[str, float]]:
        seconds, units = self._of(names)
        if units:
            yield rate, seconds / units

    def _episodes(self) -> Iterator[tuple[str, float]]:
        seconds, _ = self._of({"collect", "evaluate"})
        ticks = longest = 0
        for name in {e["stage"] for e in self.ends if _kind(e["stage"]) in {"collect", "evaluate"}}:
            for task, row in (self.stages.result(name) or {}).items():
                if isinstance(row, dict) and "ticks" in row:
                    ticks += row["ticks"]
                    longest += row["n"] * self._longest(task)
        if ticks and seconds and longest:
            yield "episode_tick", seconds * self.settings["robot"]["count"] / ticks
            yield "episode_share", ticks / longest
            yield "reset", 0.0

    def _longest(self, task: str) -> int:
        own = (self.settings["task"].get(task) or {}).get("max_ticks")
        return own or self.settings["each_task"]["max_ticks"] or TASKS.get(task, 0)

    def _imagination(self) -> Iterator[tuple[str, float]]:
        """Worker-seconds per chunk: the net frames of each iteration by its workers."""
        work = chunks = most = 0.0
        for name in {e["stage"] for e in self.ends if _kind(e["stage"]) == "imagine"}:
            found = self.stages.result(name) or {}
            if found.get("net_frames"):
                busy = sum(found.get(part, 0.0) for part in ("policy_s", "world_model_s", "host_s"))
                work += busy or found["seconds"] * sum(found["workers"].values())
                chunks += found["net_frames"] / NEW_FRAMES
                most += found["trajectories"] * self.settings["imagination"]["max_chunks"]
        if chunks and most:
            yield "chunk", work / chunks
            yield "chunk_share", min(1.0, chunks / most)

    def _bytes(self, name: str, store: str) -> Iterator[tuple[str, float]]:
        """Of what is stored now, by the bar that filled the store."""
        bars = {"collect"} if store == "real" else {"imagine"}
        _, units = self._of(bars)
        if units:
            yield name, bytes_below(self.folder / "stores" / store) / units


def _worked(end: dict[str, Any]) -> tuple[float, int, float | None]:
    """Seconds of work, units, and seconds until the work began; None: too few units to tell."""
    units, first = end.get("new", end["done"]), end.get("first")
    if first is None or units - first[0] < FEW:
        return end["seconds"], units, None
    one = (end["seconds"] - first[1]) / (units - first[0])
    return one * units, units, max(0.0, first[1] - one * first[0])


def _kind(stage: str) -> str:
    """``2 train policy`` -> ``train policy``; ``evaluate vlaw-2`` -> ``evaluate``."""
    first, _, rest = stage.partition(" ")
    if first.isdigit():
        return rest
    return first if first == "evaluate" else stage
