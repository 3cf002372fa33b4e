"""Where labs already look: TensorBoard and Weights & Biases. Their libraries are optional."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from services.stages import fingerprint


@runtime_checkable
class Sink(Protocol):
    """Takes a run's numbers."""

    def scalars(self, step: int, numbers: Mapping[str, float | int]) -> None:
        """Numbers by tag at one step of a stage, such as ``{"1-train-policy/loss": 0.2}``."""

    def stage(self, name: str, numbers: Mapping[str, float | int]) -> None:
        """What a stage ended with."""

    def close(self) -> None:
        """Write what is left."""


def tag_of(stage: str) -> str:
    """``1 train policy`` -> ``1-train-policy``."""
    return re.sub(r"[^\w.-]+", "-", stage)


def iteration_of(stage: str) -> tuple[str, int]:
    """``1 imagine`` -> (``imagine``, 1) and ``evaluate vlaw-2`` -> (``evaluate-vlaw``, 2)."""
    if found := re.fullmatch(r"(\d+) (.+)", stage):
        return tag_of(found[2]), int(found[1])
    if found := re.fullmatch(r"(.+)-(\d+)", stage):
        return tag_of(found[1]), int(found[2])
    return tag_of(stage), 0


def numbers_in(value: Any, name: str = "") -> dict[str, float]:
    """The numbers of a stage's result by path; lists of many, such as losses, are left out."""
    return dict(_numbers(value, name))


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{name}/{tag_of(str(key))}" if name else tag_of(str(key)))
    elif isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1:
        yield from _numbers(value[0], name)
    elif name and isinstance(value, bool | int | float) and math.isfinite(value):
        yield name, float(value)


class TensorBoardSink:
    """Event files below ``<out>/tensorboard``; see them with ``tensorboard --logdir <out>``."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # noqa: PLC0415 - optional

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def scalars(self, step: int, numbers: Mapping[str, float | int]) -> None:
        for tag, value in numbers.items():
            self._writer.add_scalar(tag, value, step)

    def stage(self, name: str, numbers: Mapping[str, float | int]) -> None:
        tag, iteration = iteration_of(name)
        self.scalars(iteration, {f"stages/{tag}/{key}": value for key, value in numbers.items()})
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """One W&B run per folder, continued by the same folder. ``WANDB_MODE=offline`` sends none."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb  # noqa: PLC0415 - optional  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(
            project="vlaw",
            id=fingerprint(str(folder)),  # the same folder continues the same W&B run
            name=tag_of(folder.name),
            dir=str(folder),
            config=dict(config),
            resume="allow",
        )
        self._axes: set[str] = set()

    def scalars(self, step: int, numbers: Mapping[str, float | int]) -> None:
        for tag, value in numbers.items():
            group = tag.rpartition("/")[0]
            if group not in self._axes:  # each stage has an axis of its own
                self._axes.add(group)
                self._run.define_metric(f"{group}/step", hidden=True)
                self._run.define_metric(f"{group}/*", step_metric=f"{group}/step")
            self._run.log({tag: value, f"{group}/step": step})

    def stage(self, name: str, numbers: Mapping[str, float | int]) -> None:
        tag, iteration = iteration_of(name)
        self.scalars(iteration, {f"stages/{tag}/{key}": value for key, value in numbers.items()})

    def close(self) -> None:
        self._run.finish()


def check_sinks(names: Sequence[str]) -> None:
    """Raises ValueError where the package of a sink is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ValueError(
                f"sinks=[{name}] needs the package {name}: install it with `pip install {name}` "
                "(pyproject.toml names the version that was tried), or leave it out of sinks"
            )


def open_sinks(names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> list[Sink]:
    """The sinks that a run wants; none by default."""
    makers: dict[str, Callable[[], Sink]] = {
        "tensorboard": lambda: TensorBoardSink(folder),
        "wandb": lambda: WandbSink(folder, config),
    }
    return [makers[name]() for name in names]
