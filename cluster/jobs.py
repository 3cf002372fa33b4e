"""The jobs of ``ray_job.py``: what each does with its folder, its config and a cluster."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster import (
    calibration,
    exporting,
    judging,
    latents,
    nodes,
    summary,
)
from cluster.auditing import audit, check_audited
from cluster.checkpoints import CheckpointFolder
from cluster.collecting import recordings
from cluster.context import STORES, Context
from cluster.handles import answer, in_plain_words, service, start
from cluster.live import live_page
from cluster.metrics import RayMeter
from cluster.placement import big_enough, describe, place, processes
from cluster.serve import serve
from cluster.session import is_joined, session
from cluster.setup import check_bases
from cluster.study import is_done, study
from cluster.vlaw import algorithm_1, evaluation_alone
from configs.run import RunConfig, TaskOverrides
from configs.study import variant
from contracts.errors import room
from contracts.metrics import VERSION
from services import sizes
from services.estimate import Cost, Rates, built_in, estimate, given, lines, told, total
from services.progress import Reporter
from services.replay import ReplayService
from services.sinks import check_sinks, open_sinks
from services.spent import measured, store_estimate
from services.stages import Stages, read_json, write_json

ELSEWHERE = (
    "out",
    "dry_run",
    "job",
    "cluster",
    "serve",
    "export",
    "replay_eval",
    "estimate",
    "audit",
    "sinks",
    "study",
)  # where and whether it runs, not which
FIRST_STAGE = {"loop": "base", "evaluate": "policy"}  # jobs that publish base models, and where
MAY_CHANGE = (  # who works and how many at a time: a trajectory depends on its seed alone
    "each_task.workers",
    "task.*.workers",
    "reward.target_precision",
    "imagination.slots",
    "imagination.lease_s",
    "robot.count",
    "robot.resource",
    "world_model.ctrl_world.cache_latents",  # what is stored already stays
    "world_model.ctrl_world.latent_videos",
    "world_model.ctrl_world.published",
    "policy.remote.host",  # a server may move; another policy behind it is noticed
    "policy.remote.port",
    "policy.remote.key_file",
    "policy.remote.connections",
    "policy.remote.*_timeout_s",
)


def run_job(config: RunConfig, cwd: Path) -> None:
    """Do what ``config.job`` names, in ``cwd / config.out``.

    Raises:
        ValueError: the config, the folder or the cluster cannot do it; nothing was lost.
        OSError: the folder cannot be written, or its disk is full.
        StoppedError: a process or a node that it needs is gone or silent.
    """
    config = sizes.packed(config)
    if config.job == "serve":
        serve(config)
        return
    if config.job == "sizes":
        Console().print("\n".join(sizes.report(config)), highlight=False, soft_wrap=True)
        return
    folder = (cwd / config.out).resolve()
    if config.job in ("export", "statistics", "audit"):
        _beside(config, folder, cwd)
        return
    tasks = task_names(config)
    if config.job in ("loop", "study"):
        sizes.check_plan(config)
    if config.dry_run:
        _print_plan(config, cwd, tasks)
        return
    if config.job == "export_world_model":
        # Imported late: diffusers costs every other job four seconds.
        from cluster.world_model_export import export_world_model  # noqa: PLC0415

        export_world_model(config.world_model, folder)
        return
    if config.job == "study":
        claim(folder, config)
        study(config, folder, partial(_loop_of_study, cwd=cwd))
        return
    _on_cluster(config, folder, cwd)


def _loop_of_study(config: RunConfig, folder: Path, cwd: Path) -> None:
    """One that is done is only asked whether it had these settings."""
    if is_done(config, folder):
        claim(folder, config)
    else:
        _on_cluster(config, folder, cwd)


def _on_cluster(config: RunConfig, folder: Path, cwd: Path) -> None:
    """A job whose processes Ray starts."""
    tasks = task_names(config)
    _check_start(config, folder)
    costs = expected(config, cwd, tasks) if config.job == "loop" else None
    claim(folder, config)
    if costs:
        store_estimate(folder, {cost.stage: cost.amount for cost in costs[0]}, costs[1].source)
    with open_run(config, folder, tasks) as run:
        _work(run)


def _beside(config: RunConfig, folder: Path, cwd: Path) -> None:
    """Jobs on a run that may go on meanwhile; they need no cluster."""
    if config.job == "audit":
        audit(config, folder)
        return
    take_out = exporting.export if config.job == "export" else exporting.statistics
    take_out(config, folder, (cwd / config.export.to).resolve())


def _check_start(config: RunConfig, folder: Path) -> None:
    """Refuse what would fail minutes later."""
    check_sinks(config.sinks)
    check_audited(config, folder)
    if config.job in ("report", "calibrate"):
        _require_run(folder, config.job)
    if config.job == "replay_eval":
        judging.check(config.replay_eval, config.world_model.checkpoint)
    if config.job == "latents":
        latents.encoder_folder(config.world_model)
    first = FIRST_STAGE.get(config.job)
    if first and Stages(folder / "stages").result(first) is None:
        check_bases(config)


_STAGED: dict[str, Callable[[Context], object]] = {  # whose page is shown while they run
    "loop": algorithm_1,
    "evaluate": evaluation_alone,
}


def _work(run: Context) -> None:
    match run.config.job:
        case "latents":
            latents.job(run)
            return
        case "replay_eval":
            judging.replay_eval(run)
            return
        case "calibrate":
            calibration.job(run)
        case "loop" | "evaluate":
            with live_page(run):
                _STAGED[run.config.job](run)
    summary.write(run)


def task_names(config: RunConfig) -> list[str]:
    """The tasks of a run: configured ones, or the instructions of the recordings to train on."""
    if config.job == "replay_eval":
        return []  # whatever the episodes are of
    if config.robot.kind == "recorded":
        return sorted(recordings(config, "train").tasks())
    return list(config.task)


def claim(folder: Path, config: RunConfig) -> None:
    """Write ``run.json``, or check that the folder's run has the same settings.

    A run that ended before its stores were made has computed nothing: its settings may be mended.

    Raises:
        ValueError: the folder holds another run, or cannot be written.
    """
    settings = _identity(config)
    path = folder / "run.json"
    try:
        if path.exists() and (folder / "stores").exists():
            _same_settings(folder, _settings_of(path), settings)
        else:
            write_json(path, {"settings": settings, "job": config.job})
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"no permission to write in {folder}")
    except OSError as error:
        raise ValueError(
            f"out={config.out}: cannot write there ({error.strerror or error}). Give out=<folder> "
            "that can be written; what the folder holds is untouched"
        ) from error


def _settings_of(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict) or "settings" not in found:
        raise ValueError(f"{path} is damaged (no settings); delete it and run the same command")
    return found["settings"]


def _identity(config: RunConfig) -> dict[str, Any]:
    """The settings that say which run it is."""
    return {key: value for key, value in asdict(config).items() if key not in ELSEWHERE}


def _same_settings(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    defaults = _identity(RunConfig(task={"book": TaskOverrides()})) | {"task": {}}
    changed = [
        f"{key} was {was!r}, now {now!r}"
        for key, was, now in differences(with_defaults(old, defaults), new)
        if not any(fnmatch(key, free) for free in MAY_CHANGE)
    ]
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings ({'; '.join(changed[:4])}). Give the same "
            "settings to continue it, or out=<new folder> to begin another"
        )


def with_defaults(old: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """``old`` and the settings that did not exist when it was written, at their defaults."""
    nested = {
        key: with_defaults(old[key], value)
        for key, value in defaults.items()
        if isinstance(value, dict) and isinstance(old.get(key), dict)
    }
    return defaults | old | nested


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Flags whose values differ, depth first: (flag, old value, new value)."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
    elif old != new:
        yield prefix, old, new


def _require_run(folder: Path, job: str) -> None:
    if not (folder / "run.json").exists():
        raise ValueError(
            f"job={job}: {folder} holds no run (no run.json). Give out=<folder of a run>"
        )


def expected(config: RunConfig, cwd: Path, tasks: list[str]) -> tuple[list[Cost], Rates]:
    """What the loop will take, by rates that are given, measured by an earlier run, or built in.

    Raises:
        ValueError: ``estimate.run`` names no folder of a run that measured something.
    """
    rates = built_in(config)
    if config.estimate.run:
        rates = measured((cwd / config.estimate.run).resolve(), rates)
    rates = given(config, rates)
    return estimate(config, tasks, rates), rates


def _print_plan(config: RunConfig, cwd: Path, tasks: list[str]) -> None:
    """What would run where, how much of it, and for how long. Starts nothing."""
    console = Console()
    plan = processes(config, tasks)
    node = big_enough(plan)
    title = f"plan, on {node.name} with {node.cpus:g} CPUs and {node.gpus:g} GPUs for Ray"
    text = f"[bold]{title}[/]\n{describe(place(plan, [node]))}"
    if config.job == "loop":
        text = "\n".join([text, *lines(config, *expected(config, cwd, tasks))])
    if config.job == "study":
        text = "\n".join([text, *_study_cost(config, cwd, tasks)])
    console.print(text, highlight=False, soft_wrap=True)


def _study_cost(config: RunConfig, cwd: Path, tasks: list[str]) -> Iterator[str]:
    """One loop of each variant, and all of them for every seed."""
    seeds, amounts = config.study.seeds, []
    for name in config.study.variants:
        costs, _ = expected(variant(config, name, seeds[0]), cwd, tasks)
        amounts.append(total(cost.amount for cost in costs))
        yield f"  {name:<18} about {told(amounts[-1])}"
    yield f"  {f'all, seeds: {len(seeds)}':<18} about {told(total(amounts * len(seeds)))}"


@contextmanager
def open_run(config: RunConfig, folder: Path, tasks: list[str]) -> Iterator[Context]:
    """Start or join Ray, check that the run fits, start the replay service."""
    with ExitStack() as stack:
        stack.enter_context(room(folder))
        sinks = open_sinks(config.sinks, folder, asdict(config))
        reporter = stack.enter_context(Reporter(folder, meter=RayMeter(), sinks=sinks))
        reporter.event("start", job=config.job, tasks=tasks)
        stack.enter_context(in_plain_words())
        stack.enter_context(session(config, tasks))
        reporter.event("plan", plan=_find_room(config, folder, tasks, reporter))
        stores = {name: str(folder / "stores" / name) for name in STORES}
        replay = start(ReplayService, stores, None, RayMeter(), **service())
        answer(replay.counts.remote())  # the stores exist from here on
        stages = Stages(folder / "stages", reporter.within)
        checkpoints = CheckpointFolder(folder / "checkpoints")
        run = Context(config, folder, tasks, stages, reporter, checkpoints, replay)
        _show_versions(run)
        reporter.after_stage.append(partial(_show_versions, run))
        yield run


def _show_versions(run: Context) -> None:
    for model, version in run.newest().items():
        run.reporter.meter.set(VERSION, version, model=model)


def _find_room(config: RunConfig, folder: Path, tasks: list[str], reporter: Reporter) -> str:
    """Which process goes where. Nodes of a cluster that others started are looked at first."""
    if not is_joined(config):
        return describe(nodes.placed(config, tasks))
    plan = describe(nodes.placed_in_time(config, tasks, reporter.say))
    nodes.check(config, tasks, folder)
    reporter.say(f"{config.job} in {folder}, on this cluster:\n{plan}")
    return plan
