"""``job=study``: one loop per variant and seed, each in a folder of its own, and their tables."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from configs.run import RunConfig
from configs.study import variant
from replay.store import ReplayStore
from services.spent import spent
from services.stages import Stages, read_json, write_json
from services.study import Row, Spent, difference, mean_interval, to_markdown
from services.study_page import study_page

REPORT = "report.json"  # the last that a run writes
Play = Callable[[RunConfig, Path], None]


def study(config: RunConfig, folder: Path, play: Play) -> Path:
    """Run what is missing, then write ``study.json``, ``.html`` and ``.md``; returns the last.

    ``play(config, folder)`` runs one loop, or what is left of it.

    Raises:
        ValueError: a run there has other settings, or the base's episodes differ between variants.
    """
    say = Console().print
    runs = [(name, seed) for seed in config.study.seeds for name in config.study.variants]
    for number, (name, seed) in enumerate(runs, start=1):
        say(f"\n[bold]study, run {number} of {len(runs)}: {name}, seed {seed}[/]")
        play(variant(config, name, seed), place_of(folder, name, seed))
    return write(config, folder)


def place_of(folder: Path, name: str, seed: int) -> Path:
    return folder / f"seed-{seed}" / name


def is_done(config: RunConfig, place: Path) -> bool:
    """Of one loop. A report alone says little: ``job=report`` writes one of half a run, too."""
    method = config.method
    last = "control" if config.evaluation.control else f"{method.kind}-{method.iterations}"
    evaluated = Stages(place / "stages").result(f"evaluate {last}") is not None
    return evaluated and (place / REPORT).exists()


def write(config: RunConfig, folder: Path) -> Path:
    """The tables of a study whose runs are all there."""
    rows = gather(config, folder)
    gaps = [
        difference(better, worse, config.study.redraws)
        for better, worse in _pairs({row.name: row for row in rows}, config)
    ]
    costs = [
        _spent(place_of(folder, name, seed), name, seed, config)
        for name in config.study.variants
        for seed in config.study.seeds
    ]
    means = {row.name: mean_interval(row, config.study.redraws) for row in rows}
    numbers = {
        "seeds": config.study.seeds,
        "rows": [
            {
                "name": row.name,
                "mean": row.mean,
                "interval": asdict(means[row.name]),
                "success": {task: grid.astype(int).tolist() for task, grid in row.success.items()},
            }
            for row in rows
        ],
        "differences": [asdict(gap) | {"conclusion": gap.conclusion} for gap in gaps],
        "runs": [asdict(one) for one in costs],
    }
    write_json(folder / "study.json", numbers)
    path, text = folder / "study.md", to_markdown(rows, gaps, costs)
    path.write_text(text, encoding="utf-8")
    page = folder / "study.html"
    page.write_text(study_page(rows, means, gaps, costs), encoding="utf-8")
    console = Console()
    console.print(Markdown(text))
    console.print(f"study: {path} and {page.name}", highlight=False, soft_wrap=True)
    return path


def gather(config: RunConfig, folder: Path) -> list[Row]:
    """Every evaluated policy, the base first."""
    first = config.study.variants[0]
    names = {"base": (first, "base")}
    for name in config.study.variants:
        kind = variant(config, name, 0).method.kind
        for i in range(1, config.method.iterations + 1):
            names[f"{name}-{i}"] = (name, f"{kind}-{i}")
    if config.evaluation.control:
        names["control"] = (first, "control")
    rows = [Row(row, _grids(config, folder, *names[row])) for row in names]
    for name in config.study.variants[1:]:
        _same_base(rows[0], Row("base", _grids(config, folder, name, "base")), name, first)
    return rows


def _same_base(first: Row, other: Row, name: str, first_name: str) -> None:
    if any((first.success[task] != other.success[task]).any() for task in first.tasks):
        raise ValueError(
            f"the base policy's episodes differ between {first_name} and {name}: the variants did "
            "not start alike. Delete the folder of the one that another version of the code or "
            "another machine made, and run the same command"
        )


def _grids(config: RunConfig, folder: Path, name: str, policy: str) -> dict[str, np.ndarray]:
    """Task -> (seed, start). A policy that an iteration refused to train is the one before it, and
    was evaluated as such."""
    found: dict[str, list[list[bool]]] = {task: [] for task in config.task}
    for seed in config.study.seeds:
        store = ReplayStore.open(place_of(folder, name, seed) / "stores" / "evaluation")
        for task, grid in found.items():
            grid.append(
                [
                    _success(store, f"evaluation-{policy}-{task}-{k:04d}")
                    for k in range(config.evaluation.episodes)
                ]
            )
    return {task: np.array(grid, bool) for task, grid in found.items()}


def _success(store: ReplayStore, name: str) -> bool:
    label = store.label(name)
    if label is None:
        raise ValueError(f"{store.folder}: {name} has no label; run the same command again")
    return label.success


def _pairs(rows: dict[str, Row], config: RunConfig) -> Iterator[tuple[Row, Row]]:
    """Every last policy against the base, the control and the last one of the first variant."""
    last = config.method.iterations
    ends = [f"{name}-{last}" for name in config.study.variants]
    for end in ends:
        yield rows[end], rows["base"]
        if "control" in rows:
            yield rows[end], rows["control"]
    for other in ends[1:]:
        yield rows[ends[0]], rows[other]


def _spent(place: Path, name: str, seed: int, config: RunConfig) -> Spent:
    stages = Stages(place / "stages")
    iterations = range(1, config.method.iterations + 1)

    def results(stage: str) -> list[dict[str, Any]]:
        return [stages.result(f"{i} {stage}") or {} for i in iterations]

    answers = read_json(place / REPORT)["truths"]
    return Spent(
        name,
        seed,
        seconds=sum(one.seconds for one in spent(place).values()),
        imagined=sum(found.get("trajectories", 0) for found in results("imagine")),
        imagine_seconds=sum(found.get("seconds", 0.0) for found in results("imagine")),
        accepted=sum(task["accepted"] for found in results("score") for task in found.values()),
        executed=sum(row["accepted"] for row in answers),
        true=sum(row["accepted_true"] for row in answers),
    )
