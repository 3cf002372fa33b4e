"""The three jobs of ``ray_job.py``: the loop, the base models, the report alone."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster import pretrain, summary
from cluster.checkpoints import CheckpointFolder
from cluster.context import STORES, Context
from cluster.handles import answer, start
from cluster.placement import big_enough, describe, place, processes
from cluster.session import placed, session
from cluster.setup import check_bases
from cluster.vlaw import algorithm_1
from configs.run import RunConfig
from envs.recorded.robot import RecordedRobot
from services.estimate import estimate
from services.progress import Reporter
from services.replay import ReplayService
from services.stages import Stages, read_json, write_json

ELSEWHERE = ("out", "dry_run", "job", "cluster")  # say where and whether a run runs, not which
MAY_CHANGE = (  # who works and how many at a time: a trajectory depends on its seed alone
    "each_task.workers",
    "task.*.workers",
    "imagination.slots",
    "imagination.lease_s",
    "robot.count",
    "robot.resource",
)


def run_job(config: RunConfig, cwd: Path) -> None:
    """Do what ``config.job`` names, in ``cwd / config.out``.

    Raises:
        ValueError: the config, the folder or the cluster cannot do it; nothing was lost.
        OSError: the folder cannot be written.
    """
    folder = (cwd / config.out).resolve()
    tasks = task_names(config)
    if config.dry_run:
        _print_plan(config, tasks)
        return
    if config.job == "report":
        _require_run(folder)
    if config.job == "loop" and Stages(folder / "stages").result("base") is None:
        check_bases(config)
    claim(folder, config)
    with open_run(config, folder, tasks) as run:
        if config.job == "pretrain":
            pretrain.base_models(run)
        elif config.job == "loop":
            algorithm_1(run)
        summary.write(run)


def task_names(config: RunConfig) -> list[str]:
    """The tasks of a run: configured ones, or the instructions of the recordings to train on."""
    if config.robot.kind == "recorded":
        robot = RecordedRobot(config.robot.path, config.robot.height, config.robot.width, "train")
        return sorted(robot.tasks())
    return list(config.task)


def claim(folder: Path, config: RunConfig) -> None:
    """Write ``run.json``, or check that the folder's run has the same settings.

    A run that ended before its stores were made has computed nothing: its settings may be mended.

    Raises:
        ValueError: the folder holds another run, or cannot be written.
    """
    settings = {key: value for key, value in asdict(config).items() if key not in ELSEWHERE}
    path = folder / "run.json"
    try:
        if path.exists() and (folder / "stores").exists():
            _same_settings(folder, read_json(path)["settings"], settings)
        else:
            write_json(path, {"settings": settings, "job": config.job})
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"no permission to write in {folder}")
    except OSError as error:
        raise ValueError(
            f"out={config.out}: cannot write there ({error.strerror or error}). Give out=<folder> "
            "that can be written; what the folder holds is untouched"
        ) from error


def _same_settings(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = [
        f"{key} was {was!r}, now {now!r}"
        for key, was, now in differences(old, new)
        if not any(fnmatch(key, free) for free in MAY_CHANGE)
    ]
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings ({'; '.join(changed[:4])}). Give the same "
            "settings to continue it, or out=<new folder> to begin another"
        )


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Flags whose values differ, depth first: (flag, old value, new value)."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
    elif old != new:
        yield prefix, old, new


def _require_run(folder: Path) -> None:
    if not (folder / "run.json").exists():
        raise ValueError(
            f"job=report: {folder} holds no run (no run.json). Give out=<folder of a run>"
        )


def _print_plan(config: RunConfig, tasks: list[str]) -> None:
    """What would run where, how much of it, and for how long. Starts nothing."""
    console = Console()
    plan = processes(config, tasks)
    node = big_enough(plan)
    title = f"plan, on {node.name} with {node.cpus:g} CPUs and {node.gpus:g} GPUs for Ray"
    console.print(f"[bold]{title}[/]\n{describe(place(plan, [node]))}", highlight=False)
    console.print("\n".join(estimate(config, tasks)), highlight=False)


@contextmanager
def open_run(config: RunConfig, folder: Path, tasks: list[str]) -> Iterator[Context]:
    """Start or join Ray, check that the run fits, start the replay service."""
    with ExitStack() as stack:
        reporter = stack.enter_context(Reporter(folder))
        reporter.event("start", job=config.job, tasks=tasks)
        stack.enter_context(session(config, tasks))
        reporter.event("plan", plan=describe(placed(config, tasks)))
        stores = {name: str(folder / "stores" / name) for name in STORES}
        replay = start(ReplayService, stores, num_cpus=0, max_restarts=-1, max_task_retries=-1)
        answer(replay.counts.remote())  # the stores exist from here on
        stages = Stages(folder / "stages")
        yield Context(
            config,
            folder,
            tasks,
            stages,
            reporter,
            CheckpointFolder(folder / "checkpoints"),
            replay,
        )
