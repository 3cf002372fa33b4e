"""Runs a learner as a Ray Train run of its own and shows its steps while it trains."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray.train import FailureConfig, ScalingConfig, get_context
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchTrainer, get_device

from cluster.handles import answer, end, start
from configs.run import ClusterConfig
from learners.loop import DivergedError
from services.progress import Bar

OnStep = Callable[[int, float], None]
Learner = Callable[[OnStep], dict[str, Any]]  # trains, writes its folder, returns its numbers


class StepBoard:
    """Where a learner writes its newest step and its result; Ray Train keeps only what comes
    with a checkpoint of its own, and our checkpoints have another layout."""

    def __init__(self) -> None:
        self._losses: dict[int, float] = {}  # by step; what nobody has asked for yet
        self._result: dict[str, Any] | None = None
        self._refusal = ""

    def refuse(self, reason: str) -> None:
        """The learner cannot train on what it was given: another attempt would end the same."""
        self._refusal = reason

    def finish(self, result: dict[str, Any]) -> None:
        self._result = result

    def result(self) -> dict[str, Any] | None:
        return self._result

    def post(self, step: int, loss: float) -> None:
        """All learners of a run post the same loss: it is a mean over them."""
        self._losses[step] = loss

    def news(self) -> tuple[dict[int, float], str]:
        """Losses by step since the last time this was asked, and why the learner refuses to train
        ("": it does not)."""
        losses, self._losses = self._losses, {}
        return losses, self._refusal


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
    try:
        result = config["learner"](board.post.remote)
    except (ValueError, DivergedError) as error:
        answer(board.refuse.remote(str(error)))
        raise
    if get_context().get_world_rank() == 0:
        answer(board.finish.remote(result))


def fit(
    learner: Learner, name: str, folder: Path, cluster: ClusterConfig, bar: Bar
) -> dict[str, Any]:
    """Train to the end and return what the learner returned.

    A worker that dies is started again and continues at its last checkpoint, at most
    ``cluster.max_failures`` times.

    Raises:
        ValueError: the learner cannot train on its data or settings; nothing was retried.
        RuntimeError: the learner failed for good, or made no step for ``cluster.stall_timeout_s``.
    """
    board = start(StepBoard, num_cpus=0)
    resources = {"CPU": cluster.learner_cpus}
    if cluster.learner_gpus:
        resources["GPU"] = cluster.learner_gpus
    trainer = TorchTrainer(
        _loop,
        train_loop_config={"learner": learner, "board": board},
        scaling_config=ScalingConfig(
            num_workers=cluster.learner_workers,
            use_gpu=cluster.learner_gpus > 0,
            resources_per_worker=resources,
        ),
        run_config=RayRunConfig(
            name=name,
            storage_path=str(folder.resolve()),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
        ),
    )
    bar.hold(cluster.learner_workers * cluster.learner_gpus)
    running = _Fit(trainer)
    running.start()
    _watch(running, board, cluster.stall_timeout_s, bar)
    result: dict[str, Any] | None = answer(board.result.remote())
    end(board)
    if running.error is not None:
        raise RuntimeError(f"learner {name!r} failed: {running.error}") from running.error
    if result is None:
        raise RuntimeError(f"learner {name!r} ended without a result; see {folder}")
    return result


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
            raise RuntimeError(
                f"{bar.name}: no training step for {stall_timeout_s:g} s (at step {bar.done}). "
                "Look at the learner's log in the Ray dashboard, or raise cluster.stall_timeout_s"
            )
