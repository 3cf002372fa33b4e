"""Exact-resume checkpoints of one training run, each whole or ignored after a crash."""

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

log = logging.getLogger(__name__)

FORMAT = 1
KEEP = 2  # the newest may be torn by a crash; the one before it is whole
WEIGHTS, AVERAGE, OPTIMIZER, FACTS = (
    "weights.safetensors",
    "ema.safetensors",
    "optimizer.pt",
    "state.json",
)


@dataclass
class TrainState:
    """All that the next step depends on. ``losses[k]`` is the loss of step k."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]  # exponential average of the trained parameters; {}: none is kept
    losses: list[float] = field(default_factory=list)

    @property
    def step(self) -> int:
        """How many steps were taken."""
        return len(self.losses)


def save_state(state: TrainState, folder: Path, recipe: dict[str, Any]) -> Path:
    """Write ``<folder>/step-<n>`` as one rename after everything in it is on disk; keep two.

    ``recipe`` holds whatever makes another training run, see ``load_state``.
    """
    final = folder / f"step-{state.step:08d}"
    partial = folder / f".partial-{final.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_model(state.module, str(partial / WEIGHTS))
    if state.average:
        save_file(state.average, str(partial / AVERAGE))
    torch.save(state.optimizer.state_dict(), partial / OPTIMIZER)
    sums = {path.name: _checksum(path) for path in sorted(partial.iterdir())}
    facts = {"format": FORMAT, "recipe": recipe, "losses": state.losses, "sha256": sums}
    (partial / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    for path in partial.iterdir():
        _sync(path)
    _sync(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _sync(folder)
    for old in _newest_first(folder)[KEEP:]:
        shutil.rmtree(old)
    return final


def load_state(state: TrainState, folder: Path, recipe: dict[str, Any]) -> bool:
    """Fill ``state`` from the newest whole checkpoint; False when there is none.

    Raises:
        ValueError: the checkpoint was made by another recipe.
    """
    for path in _newest_first(folder):
        facts = _verified(path)
        if facts is None:
            continue
        _check_recipe(path, facts["recipe"], recipe)
        load_model(state.module, str(path / WEIGHTS))
        if state.average:
            average = load_file(str(path / AVERAGE))
            for name, tensor in state.average.items():
                tensor.copy_(average[name])
        state.optimizer.load_state_dict(torch.load(path / OPTIMIZER, weights_only=True))
        state.losses[:] = facts["losses"]
        return True
    return False


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _verified(path: Path) -> dict[str, Any] | None:
    """The facts of a whole checkpoint, or None, with the reason in the log."""
    try:
        facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
        wrong = [name for name, total in facts["sha256"].items() if _checksum(path / name) != total]
    except (OSError, ValueError, KeyError) as error:
        log.warning("ignoring the training checkpoint %s: %s", path, error)
        return None
    if wrong:
        log.warning("ignoring the training checkpoint %s: damaged %s", path, ", ".join(wrong))
        return None
    return facts


def _check_recipe(path: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    names = sorted(stored.keys() | asked.keys())
    changed = [n for n in names if stored.get(n) != asked.get(n)]
    if changed:
        told = ", ".join(f"{n}: {stored.get(n)!r} -> {asked.get(n)!r}" for n in changed)
        raise ValueError(
            f"{path.parent} holds an unfinished training with other settings ({told}). "
            "Set them back to continue it, or delete that folder to begin anew"
        )


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
