"""Ctrl-World's checkpoint: one flat state dict under four prefixes, as .pt or safetensors."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.ctrl_world.network import CtrlWorldNetwork

UNUSED = "image_encoder."  # SVD's ViT-H: 632 M parameters in the file that nothing runs
TEXT = "text_encoder."


def read_state(path: Path) -> dict[str, Tensor]:
    """Read every tensor that can be used, by its published name.

    ``.pt`` files are mapped, not read, so the unused image encoder never takes memory; nothing
    but tensors is unpickled.

    Raises:
        ValueError: there is no such file, or it is neither .pt nor .safetensors.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}: set world_model.checkpoint to one")
    if path.suffix == ".pt":
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return {name: state[name] for name in _used(state)}
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in _used(file.keys())}
    raise ValueError(f"{path}: a Ctrl-World checkpoint ends in .pt or .safetensors")


def _used(names: Iterable[str]) -> list[str]:
    """Older transformers also stored ``position_ids``, which is a constant."""
    return [n for n in names if not n.startswith(UNUSED) and not n.endswith(".position_ids")]


def load_state(network: CtrlWorldNetwork, state: Mapping[str, Tensor]) -> None:
    """Copy ``state`` into the network, whatever its dtype; nothing may be missing or left over.

    The text encoder's tensors are ignored by a network that was built without one.

    Raises:
        ValueError: names or shapes differ; says the first ones and which settings decide them.
    """
    wanted = network.state_dict()
    given = {
        name: tensor
        for name, tensor in state.items()
        if network.text_encoder is not None or not name.startswith(TEXT)
    }
    missing, unknown = wanted.keys() - given.keys(), given.keys() - wanted.keys()
    if missing or unknown:
        raise ValueError(
            f"checkpoint does not fit world_model.ctrl_world: {len(missing)} tensors are missing "
            f"{sorted(missing)[:3]}, {len(unknown)} are unknown {sorted(unknown)[:3]}; check the "
            "numbers of layers and, for text_encoder, that tokenizer is set only with text"
        )
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"checkpoint does not fit world_model.ctrl_world: {name} is {tuple(tensor.shape)}, "
                f"the configured widths make it {tuple(wanted[name].shape)}"
            )
    network.load_state_dict(given)


def _own_state(network: CtrlWorldNetwork) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}


def save_safetensors(network: CtrlWorldNetwork, path: Path) -> None:
    """Write the network's tensors under their published names."""
    save_file(_own_state(network), path)


def save_official(network: CtrlWorldNetwork, path: Path, base: Path) -> None:
    """Write a ``.pt`` that upstream's strict loader accepts.

    ``base`` is the published file: what this network does not hold (the unused image encoder, and
    the text encoder of a network without text) is copied from it.
    """
    state = torch.load(base, map_location="cpu", weights_only=True, mmap=True)
    torch.save({**state, **_own_state(network)}, path)
