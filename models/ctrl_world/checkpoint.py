"""Ctrl-World's checkpoint: one flat state dict under five prefixes, as .pt or safetensors."""

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.ctrl_world.network import CtrlWorldNetwork

UNUSED = "image_encoder."  # SVD's ViT-H: 632 M parameters in the file that nothing runs
TEXT = "text_encoder."
NAMES_SHOWN = 12  # of a list of tensors in an error message


def read_state(path: Path) -> dict[str, Tensor]:
    """Read every tensor that can be used, by its published name.

    ``.pt`` files are mapped, not read, so the unused image encoder never takes memory; nothing
    but tensors is unpickled.

    Raises:
        ValueError: there is no such file, it is neither .pt nor .safetensors, it is truncated, or
            it holds something else than tensors by name.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}: set world_model.checkpoint to one")
    if path.suffix == ".pt":
        state = _mapped(path)
        return {name: state[name] for name in _used(state)}
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in _used(file.keys())}
        except SafetensorError as error:
            raise ValueError(_damaged(path, error)) from error
    raise ValueError(f"{path}: a Ctrl-World checkpoint ends in .pt or .safetensors")


def _mapped(path: Path) -> dict[str, Tensor]:
    """Everything in a ``.pt``; its pages are read when they are looked at."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(_damaged(path, error)) from error
    tensors = state if isinstance(state, dict) else {}
    odd = [str(name) for name, value in tensors.items() if not isinstance(value, Tensor)]
    if odd or not tensors:
        raise ValueError(
            f"{path} holds a {type(state).__name__} and not tensors by name ({_listed(odd)}): give "
            "the state dict that Ctrl-World's train_wm.py saves"
        )
    return tensors


def _damaged(path: Path, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"{path} ({path.stat().st_size} bytes) is no whole checkpoint: {reason}. Fetch or copy it "
        "again, or set world_model.checkpoint to another"
    )


def _used(names: Iterable[str]) -> list[str]:
    """Older transformers also stored ``position_ids``, which is a constant."""
    return [n for n in names if not n.startswith(UNUSED) and not n.endswith(".position_ids")]


def load_state(network: CtrlWorldNetwork, state: Mapping[str, Tensor]) -> None:
    """Copy ``state`` into the network, whatever its dtype; nothing may be missing or left over.

    The text encoder's tensors are ignored by a network that was built without one.

    Raises:
        ValueError: names or shapes differ, or a number is not finite; lists the tensors and says
            which settings decide them. The network is then as it was.
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
            f"({_listed(missing)}), {len(unknown)} are unknown ({_listed(unknown)}); check the "
            "numbers of layers and, for text_encoder, that tokenizer is set only with text"
        )
    wrong = [
        f"{name} is {tuple(tensor.shape)}, the configured widths make it "
        f"{tuple(wanted[name].shape)}"
        for name, tensor in given.items()
        if tensor.shape != wanted[name].shape
    ]
    if wrong:
        raise ValueError(
            f"checkpoint does not fit world_model.ctrl_world: {len(wrong)} shapes differ "
            f"({_listed(wrong)})"
        )
    broken = [name for name, tensor in given.items() if not _finite(tensor)]
    if broken:
        raise ValueError(
            f"checkpoint has NaN or infinite weights in {len(broken)} tensors ({_listed(broken)}): "
            "set world_model.checkpoint to one from before the training diverged"
        )
    network.load_state_dict(given)


def _listed(names: Iterable[str]) -> str:
    every = sorted(names)
    more = len(every) - NAMES_SHOWN
    return ", ".join(every[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "") or "none"


def _finite(tensor: Tensor) -> bool:
    """Whether every number is; torch cannot ask eight-bit floats themselves."""
    wide = tensor.float() if tensor.element_size() == 1 else tensor
    return bool(torch.isfinite(wide).all())


def save_safetensors(network: CtrlWorldNetwork, path: Path) -> None:
    """Write the network's tensors under their published names."""
    own = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(own, path)


def export(weights: Path, published: Path, out: Path) -> int:
    """Write trained ``weights`` as a ``.pt`` that upstream's strict loader accepts.

    What they do not hold (the unused image encoder, and the text encoder of a network without
    text) is copied from ``published``, the file that the training began with; so are its names,
    their order and dtypes. Both are mapped. Returns how many tensors differ from ``published``.

    Raises:
        ValueError: a file cannot be read, or ``weights`` belong to another network.
    """
    base, own = _mapped(published), read_state(weights)
    odd = [n for n, tensor in own.items() if n not in base or base[n].shape != tensor.shape]
    if odd:
        raise ValueError(
            f"{weights} is not a training of {published}: {len(odd)} tensors are not in it or have "
            f"another shape ({_listed(odd)})"
        )
    merged = {n: own[n].to(old.dtype) if n in own else old for n, old in base.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    torch.save(merged, partial)
    partial.replace(out)
    return sum(not torch.equal(merged[name], base[name]) for name in own)
