"""Runs a learner as a Ray Train run of its own and shows its steps while it trains."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import FailureConfig, ScalingConfig, get_context
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchTrainer, get_device
from ray.util.placement_group import PlacementGroup, remove_placement_group

from cluster.handles import LOSSES, answer, end, service, start, who_died
from cluster.step_board import StepBoard
from configs.run import ClusterConfig
from contracts.errors import DiskFullError, DivergedError, StoppedError, room
from services.progress import Bar
from services.stages import read_json, write_json

OnStep = Callable[[int, float], None]
RESULT = "result.json"  # what the learner returned, written before Ray Train learns of its end
Learner = Callable[[OnStep], dict[str, Any]]  # trains, writes its folder, returns its numbers


@dataclass
class _Fit(threading.Thread):
    """``trainer.fit()`` blocks, so it runs beside the loop that draws the bar."""

    trainer: TorchTrainer

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.trainer.fit()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever joins this thread
            self.error = error

    __hash__ = threading.Thread.__hash__


def _loop(config: dict[str, Any]) -> None:
    """Runs in the Ray Train worker."""
    device = get_device()
    if device.type == "cuda":  # all learners of a node see all of its GPUs
        torch.cuda.set_device(device)
    board = config["board"]
    folder: Path = config["folder"]
    try:
        with room(folder):
            result = config["learner"](board.post.remote)
            if get_context().get_world_rank() == 0:
                write_json(folder / RESULT, result)
    except (ValueError, DivergedError, DiskFullError) as error:
        answer(board.refuse.remote(str(error)))
        raise


def fit(
    learner: Learner, name: str, folder: Path, cluster: ClusterConfig, bar: Bar
) -> dict[str, Any]:
    """Train to the end and return what the learner returned.

    A worker that dies is started again by Ray Train's controller and continues at its last
    checkpoint, and a controller that dies is started again here: each at most
    ``cluster.max_failures`` times.

    Raises:
        ValueError: the learner cannot train on its data or settings, or the disk is full; nothing
            was retried.
        StoppedError: the learner failed for good, or made no step for ``cluster.stall_timeout_s``.
    """
    bar.hold(cluster.learner_workers * cluster.learner_gpus)
    board = start(StepBoard, **service())
    settings = {"learner": learner, "board": board, "folder": folder.resolve()}
    try:
        error = _attempt(settings, name, cluster, bar)
        for _ in range(cluster.max_failures):
            if not isinstance(error, LOSSES):
                break
            bar.lost(f"{who_died(error)}; the training goes on at its last checkpoint")
            error = _attempt(settings, name, cluster, bar)
    finally:
        end(board)
    if error is not None:
        raise StoppedError(
            f"{bar.name}: the learner failed for good: {_last_line(error)}. Its log is in the Ray "
            "dashboard and in logs/train of the Ray session's folder; the same command continues "
            f"at the last checkpoint in {folder}"
        ) from error
    return read_json(folder / RESULT)


def _attempt(
    settings: dict[str, Any], name: str, cluster: ClusterConfig, bar: Bar
) -> BaseException | None:
    """Train until the controller ends, and return what ended it too early."""
    before = _placement_groups()
    running = _Fit(_trainer(settings, name, cluster))
    running.start()
    _watch(running, settings["board"], cluster.stall_timeout_s, bar)
    if isinstance(running.error, LOSSES):
        _give_back(_placement_groups() - before)
    return running.error


def _placement_groups() -> set[str]:
    """Those of this job that hold resources; the last four bytes of an id are the job's."""
    job = ray.get_runtime_context().get_job_id()
    table: dict[str, dict[str, Any]] = ray.util.placement_group_table()
    return {key for key, row in table.items() if row["state"] != "REMOVED" and key.endswith(job)}


def _give_back(keys: set[str]) -> None:
    """A controller that dies leaves its workers' resources taken: Ray Train's own cleaner asks the
    dashboard, and there need not be one."""
    for key in keys:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(key))))


def _trainer(settings: dict[str, Any], name: str, cluster: ClusterConfig) -> TorchTrainer:
    resources = {"CPU": cluster.learner_cpus}
    if cluster.learner_gpus:
        resources["GPU"] = cluster.learner_gpus
    return TorchTrainer(
        _loop,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=cluster.learner_workers,
            use_gpu=cluster.learner_gpus > 0,
            resources_per_worker=resources,
        ),
        run_config=RayRunConfig(
            name=name,
            storage_path=str(settings["folder"]),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
        ),
    )


def _last_line(error: BaseException) -> str:
    """What a trace ends with tells what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _watch(running: _Fit, board: Any, stall_timeout_s: float, bar: Bar) -> None:
    moved, going = time.monotonic(), True
    while going:
        going = running.is_alive()  # one more round after its end: the last steps
        running.join(timeout=0.3)
        losses, refusal = answer(board.news.remote())
        if refusal:
            raise ValueError(f"{bar.name}: {refusal}")
        for step, loss in sorted(losses.items()):
            if not bar.done:
                bar.begin_with(step - 1)  # an earlier process took those
            bar.at(step, loss=loss)
            moved = time.monotonic()
        if time.monotonic() - moved > stall_timeout_s:
            at = f"after step {bar.done}" if bar.done else "before the first"
            raise StoppedError(
                f"{bar.name}: no training step for {stall_timeout_s:g} s, {at}. Look at the "
                "learner's log in the Ray dashboard; the same command continues at the last "
                "checkpoint; raise cluster.stall_timeout_s where steps are just slow"
            )
