"""Weights of the metrics' networks: files that the user has, never downloaded, never random."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor


class UnavailableError(Exception):
    """A metric cannot be computed here; the message says why and which flag would change that."""


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file that was found, and the sha256 that a report quotes."""

    path: Path
    sha256: str


def find(flag: str, setting: str) -> WeightFile:
    """The file that ``flag`` names.

    Raises:
        UnavailableError: nothing is set.
        ValueError: there is no such file, or its name carries a hash that its content has not
            (``alexnet-owt-7be5be79.pth``: the convention of torch.hub).
    """
    if not setting:
        raise UnavailableError(f"no weights: set {flag}=<file>; nothing is downloaded")
    path = Path(setting)
    if not path.is_file():
        raise ValueError(f"{flag}={setting}: there is no such file")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    promised = re.search(r"-([0-9a-f]{8})\.\w+$", path.name)
    if promised and not found.startswith(promised[1]):
        raise ValueError(
            f"{flag}={setting} is damaged: its name promises the sha256 {promised[1]}..., it has "
            f"{found[:8]}.... Get the file again"
        )
    return WeightFile(path, found)


def read_state(flag: str, file: WeightFile) -> dict[str, Tensor]:
    """A state dict on the CPU; no code of the file is run.

    Raises:
        ValueError: the file holds something else, or a number that is not finite.
    """
    try:
        state = torch.load(file.path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, UnpicklingError) as error:
        raise ValueError(f"{flag}={file.path} is no readable state dict: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(f"{flag}={file.path} holds no plain state dict (names -> tensors)")
    broken = [name for name, tensor in state.items() if not _finite(tensor)]
    if broken:
        raise ValueError(f"{flag}={file.path}: not finite: {', '.join(broken[:3])}")
    return state


def read_script(flag: str, file: WeightFile) -> Any:
    """A TorchScript module on the CPU in eval mode. It runs the file's own code: trust the file.

    Raises:
        ValueError: the file is no TorchScript.
    """
    try:
        return torch.jit.load(str(file.path), map_location="cpu").eval()
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{flag}={file.path} is no readable TorchScript: {error}") from error


def pick(
    flag: str, file: WeightFile, state: dict[str, Tensor], shapes: dict[str, torch.Size]
) -> dict[str, Tensor]:
    """The tensors a network needs, by name; a file may hold more.

    Raises:
        ValueError: one is missing or has another shape.
    """
    for name, shape in shapes.items():
        if name not in state:
            raise ValueError(f"{flag}={file.path} has no tensor {name!r}: another network's file?")
        if state[name].shape != shape:
            raise ValueError(
                f"{flag}={file.path}: {name} has shape {tuple(state[name].shape)}, not "
                f"{tuple(shape)}"
            )
    return {name: state[name] for name in shapes}


def device() -> torch.device:
    """Where the networks of metrics run: a GPU if this process was given one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
