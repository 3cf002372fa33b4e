"""pi0.5 weights on disk: reads openpi's and lerobot's safetensors, writes openpi's."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.lora import merged_state
from models.pi05.network import Pi05Network

WEIGHTS_FILE = "model.safetensors"
_VLM = "paligemma_with_expert.paligemma."
EMBED_TOKENS = _VLM + "model.language_model.embed_tokens.weight"
TIED_HEAD = _VLM + "lm_head.weight"
EXPERT_HEAD = "paligemma_with_expert.gemma_expert.lm_head.weight"
_BARE_VISION = re.compile(re.escape(_VLM + "model.vision_tower.") + r"(?!vision_model\.)")


def network_names(stored: Iterable[str]) -> dict[str, str]:
    """Map this network's parameter names to the stored names that hold them.

    1. the tied embedding may be stored as ``lm_head`` alone (openpi); 2. every name may start with
    ``model.``, and ``embed_tokens`` wins over a stale ``lm_head`` (lerobot); 3. the vision tower
    may lack its ``vision_model`` level (transformers 5.23); 4. the action expert's ``lm_head`` is
    dead and ignored.

    Raises:
        ValueError: two stored names mean the same parameter.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for name in stored:
        plain = _BARE_VISION.sub(
            _VLM + "model.vision_tower.vision_model.", name.removeprefix("model.")
        )
        found[plain].append(name)
    found.pop(EXPERT_HEAD, None)
    head = found.pop(TIED_HEAD, None)
    if head is not None and EMBED_TOKENS not in found:
        found[EMBED_TOKENS] = head
    twice = [names for names in found.values() if len(names) > 1]
    if twice:
        raise ValueError(f"stored twice under different names: {twice}; remove one of each")
    return {name: sources[0] for name, sources in found.items()}


def check_shapes(
    network: Pi05Network, path: Path, stored: Mapping[str, tuple[int, ...]]
) -> dict[str, str]:
    """Return ``network_names`` of a file's header.

    Raises:
        ValueError: listing every missing name, unknown name and wrong shape.
    """
    names = network_names(stored)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    problems = [f"missing {name}" for name in sorted(wanted.keys() - names.keys())]
    problems += [f"unknown {names[name]}" for name in sorted(names.keys() - wanted.keys())]
    problems += [
        f"{names[name]} is {stored[names[name]]}, the config says {wanted[name]}"
        for name in sorted(wanted.keys() & names.keys())
        if stored[names[name]] != wanted[name]
    ]
    if problems:
        raise ValueError(
            f"{path} does not fit policy.pi05 ({len(problems)} tensors):\n  "
            + "\n  ".join(problems)
        )
    return names


def read_network(network: Pi05Network, path: Path) -> None:
    """Replace the (possibly meta) parameters of ``network`` by those of a file, as float32.

    Raises:
        ValueError: there is no such file, it is cut short, it holds NaN or infinity, or names or
            shapes differ; every difference is listed.
    """
    if not path.is_file():
        raise ValueError(f"no pi0.5 weights at {path}: set policy.checkpoint to a folder with them")
    try:
        weights = _read(network, path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no whole safetensors file ({error}): copy the checkpoint again"
        ) from error
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"{path} holds NaN or infinity in {len(broken)} tensors: {', '.join(broken[:3])}"
        )
    frozen = {name for name, value in network.named_parameters() if not value.requires_grad}
    network.load_state_dict(weights, assign=True)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)


def _read(network: Pi05Network, path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        names = check_shapes(network, path, shapes)
        return {name: file.get_tensor(stored).float() for name, stored in names.items()}


def write_network(network: Pi05Network, path: Path, expert_head: bool) -> None:
    """Write weights as openpi's ``save_model`` does: the tied embedding once, as ``lm_head``.

    ``expert_head`` adds the action expert's dead ``lm_head`` as zeros: stock openpi refuses a file
    without it, and it takes 1 GB at full size. Adapters are merged into the weights.
    """
    weights: dict[str, Tensor] = {
        name: tensor.detach().cpu().contiguous() for name, tensor in merged_state(network).items()
    }
    weights[TIED_HEAD] = weights.pop(EMBED_TOKENS)
    if expert_head:
        vocabulary, width = len(weights[TIED_HEAD]), network.action_in_proj.out_features
        weights[EXPERT_HEAD] = torch.zeros(vocabulary, width)
    save_file(weights, path, metadata={EMBED_TOKENS: TIED_HEAD})
