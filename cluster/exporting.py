"""Takes trajectories and statistics out of a run; neither starts Ray nor changes the run."""

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cluster.collecting import recordings
from configs.run import RunConfig
from replay.ctrl_world import CtrlWorldWriter
from replay.lerobot import LeRobotSizes, LeRobotWriter
from services.buffer_statistics import Rows, policy_statistics, stored, world_model_statistics
from services.export import Buffer, ExportWriter, Source
from services.progress import Reporter
from services.stages import read_json, write_json


def export(config: RunConfig, folder: Path, target: Path) -> None:
    """Write the stores ``export.stores`` of the run in ``folder`` as one dataset, ``target``.

    It appears when it is whole: until then it is ``<target>.partial``, which the next call
    replaces. The run may go on meanwhile; what was committed when a store is opened is exported.

    Raises:
        ValueError: no such run or store, nothing in it, or ``target`` exists.
    """
    _require_new(config, target)
    stores = _stores(config, folder)
    alpha = alpha_by_task(read_json(folder / "run.json")["settings"])
    unfinished = target.with_name(target.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    buffers = {
        name: Buffer(Source(path, alpha, config.export.only_successes))
        for name, path in stores.items()
    }
    with Reporter(folder) as reporter:
        writer = _writer(config, unfinished)
        for name, buffer in buffers.items():
            with reporter.stage(f"export {name}", len(buffer), "episodes") as bar:
                for episode in buffer.episodes():
                    writer.add(episode)
                    bar.advance()
            buffer.close()
        writer.close()
        unfinished.rename(target)
        count = sum(map(len, buffers.values()))
        reporter.say(f"  {count} trajectories in {target}, format {config.export.format}")


def statistics(config: RunConfig, folder: Path, target: Path) -> None:
    """Write ``stat.json`` (Ctrl-World) and ``norm_stats.json`` (openpi) into ``target``.

    They are those of the recordings' training episodes with robot=recorded, else of the stores
    ``export.stores`` of the run in ``folder``.

    Raises:
        ValueError: no such run or store, nothing in it, or ``target`` exists.
    """
    _require_new(config, target)
    episodes = _rows(config, folder)
    with Reporter(folder) as reporter:
        with reporter.stage("statistics", 2, "files") as bar:
            world_model = world_model_statistics(episodes)
            bar.advance()
            policy = policy_statistics(episodes)
            bar.advance()
        write_json(target / "stat.json", world_model)
        write_json(target / "norm_stats.json", policy)
        reporter.say(f"  {target / 'stat.json'} and norm_stats.json")


def _rows(config: RunConfig, folder: Path) -> Callable[[], Iterator[Rows]]:
    if config.robot.kind == "recorded":
        return recordings(config, "train").rows
    return partial(stored, list(_stores(config, folder).values()))


def _writer(config: RunConfig, folder: Path) -> ExportWriter:
    if config.export.format == "lerobot":
        return LeRobotWriter(folder, LeRobotSizes(crf=config.export.crf))
    return CtrlWorldWriter(folder, config.export.holdout, config.export.crf)


def _require_new(config: RunConfig, target: Path) -> None:
    if not config.export.to:
        raise ValueError(f"job={config.job} needs export.to=<folder that does not exist yet>")
    if target.exists():
        raise ValueError(
            f"export.to={config.export.to} exists: give another folder, or delete it first"
        )


def _stores(config: RunConfig, folder: Path) -> dict[str, Path]:
    stores = {name: folder / "stores" / name for name in config.export.stores}
    missing = [str(path) for path in stores.values() if not path.is_dir()]
    if missing:
        raise ValueError(
            f"out={config.out} is no run with a store at {', '.join(missing)}: give out=<folder of "
            "a run>, or other export.stores"
        )
    return stores


def alpha_by_task(settings: Mapping[str, Any]) -> Mapping[str, float]:
    """The threshold of Eq. 3 that the run used, by task."""
    common = float(settings["each_task"]["alpha"])
    own = {name: task.get("alpha") for name, task in settings["task"].items()}
    found = {name: float(value) for name, value in own.items() if value is not None}
    return defaultdict(lambda: common, found)
