"""Exact-resume checkpoints of one training run, each whole or ignored after a crash."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from learners.sharding import like, whole
from learners.validation import Measurement, best_of

log = logging.getLogger(__name__)

FORMAT = 2  # 1 held frozen weights too
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
    validation: list[Measurement] = field(default_factory=list)

    @property
    def step(self) -> int:
        """How many steps were taken."""
        return len(self.losses)


def frozen_sum(module: nn.Module) -> int:
    """A checksum of the parameters that are not trained, equal on every device and in any order."""
    total = 0
    for parameter in module.parameters():
        if not parameter.requires_grad:
            width = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
            bits = parameter.detach().contiguous().view(width[parameter.element_size()])
            total += int(bits.sum(dtype=torch.int64))
    return total


def save_state(
    state: TrainState, folder: Path, recipe: dict[str, Any], writer: bool = True
) -> Path:
    """Write ``<folder>/step-<n>`` as one rename after everything in it is on disk; keep two,
    and the best by the validation of each.

    Trained parameters and buffers are stored whole, so that any number of processes can continue;
    frozen ones come from the base checkpoint. Where tensors are sharded every process calls this,
    one of them as the ``writer``, whose host memory must hold the optimiser's state. ``recipe``
    holds whatever makes another training run, see ``load_state``.
    """
    final = _place(folder, state.step)
    partial = folder / f".partial-{final.name}"
    if writer:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    for name, tensors in ((WEIGHTS, _trained(state.module)), (AVERAGE, state.average)):
        complete = _gather(tensors, writer)
        if writer and complete:
            save_file(complete, partial / name)
    optimizer = _gather_optimizer(state.optimizer, writer)
    if not writer:
        return final
    torch.save(optimizer, partial / OPTIMIZER)
    del optimizer
    sums = {path.name: _checksum(path) for path in sorted(partial.iterdir())}
    facts = {"format": FORMAT, "recipe": recipe, "losses": state.losses, "sha256": sums}
    facts["validation"] = state.validation
    (partial / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    for path in partial.iterdir():
        _sync(path)
    _sync(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _sync(folder)
    _prune(folder)
    return final


def _prune(folder: Path) -> None:
    """Remove all but the newest two, and the best that each of these would go back to."""
    found = _newest_first(folder)
    kept = set(found[:KEEP])
    for path in found[:KEEP]:
        facts = _facts(path)
        best = best_of(_measurements(facts)) if facts else None
        if best is not None:
            kept.add(_place(folder, best[0]))
    for path in set(found) - kept:
        shutil.rmtree(path)


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
        _load_weights(state, path)
        _load_optimizer(state.optimizer, path / OPTIMIZER)
        state.losses[:] = facts["losses"]
        state.validation[:] = _measurements(facts)
        return True
    return False


def load_weights_of(state: TrainState, folder: Path, step: int) -> None:
    """Give the module, and its average, the weights they had after ``step`` steps.

    Raises:
        ValueError: that checkpoint is not there, or damaged.
    """
    path = _place(folder, step)
    if _verified(path) is None:
        raise ValueError(
            f"{path}, the best weights of this training, is missing or damaged; the losses and "
            f"the other checkpoints are untouched. Delete {folder} to train anew"
        )
    _load_weights(state, path)


def _load_weights(state: TrainState, path: Path) -> None:
    _fill(path / WEIGHTS, _trained(state.module))
    if state.average:
        _fill(path / AVERAGE, state.average)


def _trained(module: nn.Module) -> dict[str, Tensor]:
    """Parameters that are trained and buffers that are kept, tied ones once."""
    kept = set(module.state_dict())
    trained: dict[str, Tensor] = {n: p for n, p in module.named_parameters() if p.requires_grad}
    return trained | {name: buffer for name, buffer in module.named_buffers() if name in kept}


@torch.no_grad()
def _gather(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Complete copies in host memory, one tensor at a time; {} where they are not kept."""
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        complete = whole(tensor)
        if keep:
            kept[name] = complete.cpu().contiguous()
    return kept


@torch.no_grad()
def _fill(path: Path, tensors: Mapping[str, Tensor]) -> None:
    stored = load_file(path)
    different = sorted(stored.keys() ^ tensors.keys())
    if different:
        raise ValueError(
            f"{path} is of another model: {', '.join(different[:3])} ({len(different)} tensors). "
            f"Set the model's configuration back, or delete {path.parent.parent} to begin anew"
        )
    for name, tensor in tensors.items():
        tensor.copy_(like(stored.pop(name), tensor))


def _gather_optimizer(optimizer: torch.optim.Optimizer, keep: bool) -> dict[str, Any]:
    found = optimizer.state_dict()
    return {**found, "state": {n: _gather(entry, keep) for n, entry in found["state"].items()}}


def _load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    found = torch.load(path, weights_only=True, mmap=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, entry in found["state"].items():
        for name, value in entry.items():
            if value.dim():  # the count of steps is a scalar, the same everywhere
                entry[name] = like(value, parameters[number]).clone()
    optimizer.load_state_dict(found)


def _place(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _verified(path: Path) -> dict[str, Any] | None:
    """The facts of a whole checkpoint, or None, with the reason in the log."""
    facts = _facts(path)
    if facts is None:
        return None
    try:
        wrong = [name for name, total in facts["sha256"].items() if _checksum(path / name) != total]
    except (OSError, KeyError) as error:
        log.warning("ignoring the training checkpoint %s: %s", path, error)
        return None
    if wrong:
        log.warning("ignoring the training checkpoint %s: damaged %s", path, ", ".join(wrong))
        return None
    return facts


def _facts(path: Path) -> dict[str, Any] | None:
    try:
        facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        log.warning("ignoring the training checkpoint %s: %s", path, error)
        return None
    if facts.get("format") != FORMAT:
        log.warning("ignoring the training checkpoint %s: not of format %d", path, FORMAT)
        return None
    return facts


def _measurements(facts: dict[str, Any]) -> list[Measurement]:
    return [(step, value) for step, value in facts.get("validation", [])]


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
