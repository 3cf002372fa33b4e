"""Low-rank adapters (LoRA) by peft on any torch module, and the plain weights they amount to."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

ADAPTER = "default"


def add_lora(
    module: nn.Module, rank: int, alpha: int, targets: Sequence[str], seed: int
) -> nn.Module:
    """Freeze ``module`` and put a trainable adapter beside each target; changes and returns it.

    ``targets`` are name endings (``q_proj``; ``expert.layers.0.mlp.up_proj``) of linear layers, the
    weight of which becomes W + alpha / rank * B A. B starts at zero, so outputs do not change.
    A is drawn from ``seed``; torch's own state is kept.

    Raises:
        ValueError: no layer has such a name, or a target is no linear layer.
    """
    # Importing peft takes seconds, and most processes train no adapter.
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415

    if rank < 1:
        raise ValueError(f"lora_rank={rank} must be at least 1 to add adapters")
    _check_targets(module, targets)
    # Dropout would need a generator of its own to keep resume exact; the reference recipes use 0.
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=0.0)
    module.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, module, ADAPTER)
    return module


def _check_targets(module: nn.Module, targets: Sequence[str]) -> None:
    named = dict(module.named_modules())
    for target in targets:
        found = [name for name in named if name == target or name.endswith("." + target)]
        wrong = [name for name in found if not isinstance(named[name], nn.Linear)]
        if not found or wrong:
            raise ValueError(
                f"lora_targets: {target!r} names no linear layer"
                + (f" but {wrong[0]}, a {type(named[wrong[0]]).__name__}" if wrong else "")
            )


def has_lora(module: nn.Module) -> bool:
    return any(".lora_A." in name for name, _ in module.named_parameters())


@torch.no_grad()
def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """``module.state_dict()`` as it would be without adapters: their products are added in.

    The module stays as it is, so training can go on. Names and order are those of the module before
    ``add_lora``; of a module that has no adapters this is its own state.
    """
    if not has_lora(module):
        return module.state_dict()
    from peft.tuners.lora import Linear as AdaptedLinear  # noqa: PLC0415

    layers = {n: part for n, part in module.named_modules() if isinstance(part, AdaptedLinear)}
    adapted = {f"{name}.base_layer.weight": part for name, part in layers.items()}
    merged: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if ".lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        merged[plain] = value
        if name in adapted:
            merged[plain] = value + adapted[name].get_delta_weight(ADAPTER).to(value.dtype)
    return merged
