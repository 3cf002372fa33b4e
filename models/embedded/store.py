"""Folders of weights of the embedded models: model.safetensors and a config.json beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

FORMAT = 1
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"

Sizes = Mapping[str, int | list[int]]


def write_checkpoint(
    folder: Path, kind: str, sizes: Sizes, module: nn.Module, half: bool = False
) -> None:
    """Write the weights of ``module`` and what is needed to load them again.

    ``half`` stores parameters as float16 (3 significant digits, half the bytes); buffers hold
    normalisation and stay float32. Training never resumes from such a folder exactly.
    """
    parameters = {name for name, _ in module.named_parameters()}
    tensors = {
        name: tensor.detach()
        .cpu()
        .to(torch.float16 if half and name in parameters else tensor.dtype)
        for name, tensor in module.state_dict().items()
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / _WEIGHTS)
    dtype = "float16" if half else "float32"
    config = {"format": FORMAT, "kind": kind, "dtype": dtype, "sizes": dict(sizes)}
    (folder / _CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def stored_sizes(folder: Path, kind: str) -> dict[str, Any]:
    """The sizes a folder was written with.

    Raises:
        ValueError: the folder is incomplete, or of another kind or format.
    """
    missing = [name for name in (_CONFIG, _WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} is no checkpoint of {kind}: {', '.join(missing)} not found")
    config = json.loads((folder / _CONFIG).read_text())
    if config.get("kind") != kind or config.get("format") != FORMAT:
        found = f"kind {config.get('kind')!r}, format {config.get('format')!r}"
        raise ValueError(f"{folder} holds {found}, needed are kind {kind!r}, format {FORMAT}")
    return config["sizes"]


def read_checkpoint(folder: Path, kind: str, sizes: Sizes, module: nn.Module) -> None:
    """Fill ``module`` from a folder that ``write_checkpoint`` wrote.

    Raises:
        ValueError: the folder is incomplete, of another kind or format, or of other sizes.
    """
    _refuse_other_sizes(folder, stored_sizes(folder, kind), sizes)
    stored = load_file(folder / _WEIGHTS)
    own = module.state_dict()
    if stored.keys() != own.keys():
        names = ", ".join(sorted(stored.keys() ^ own.keys())[:3])
        raise ValueError(f"{folder / _WEIGHTS} has other tensors than {kind}: {names} ...")
    module.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in stored.items()})


def _refuse_other_sizes(folder: Path, stored: Sizes, wanted: Sizes) -> None:
    wrong = [name for name in {**stored, **wanted} if stored.get(name) != wanted.get(name)]
    if wrong:
        pairs = "; ".join(
            f"{name} is {stored.get(name)} in the folder, {wanted.get(name)} in the config"
            for name in wrong
        )
        raise ValueError(f"{folder}: {pairs}. Set the config to the folder's, or train anew.")
