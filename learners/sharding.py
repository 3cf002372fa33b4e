"""Spreads a model over the learner processes by torch's FSDP2, and makes it whole again."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

# What fully_shard adds to a module; torch has no call that takes it away again.
HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory; a plain tensor is its own part."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def whole(tensor: Tensor) -> Tensor:
    """The complete tensor. Of a sharded one every process must ask at the same time."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """A complete tensor, the same in every process, cut as ``model`` is; no communication."""
    placed = tensor.to(model.device)
    if not isinstance(model, DTensor):
        return placed
    return distribute_tensor(placed, model.device_mesh, model.placements, src_data_rank=None)


@dataclass(frozen=True, slots=True)
class _Before:
    """A module as it was before ``fully_shard`` touched it."""

    kind: type[nn.Module]
    hooks: dict[str, Any]


class Sharded:
    """A model whose parameters, gradients and optimiser state are spread over all processes.

    Blocks (the elements of the outermost ``ModuleList``s: transformer layers, UNet levels) are
    gathered one by one while they compute; what lies outside of them is gathered as the root is
    called. Parameters stay float32 and are gathered in float32, so that losses equal those of one
    process; autocast does the rest (``train.bf16``).
    """

    def __init__(self, root: nn.Module, device: torch.device) -> None:
        """Shards ``root`` in place; its ``forward`` must be the training step's only way in."""
        self._root = root
        self._before = {
            module: _Before(type(module), {name: vars(module)[name].copy() for name in HOOKS})
            for module in root.modules()
        }
        # About in-place changes of a block's output, of which these models have none.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for block in outermost_blocks(root):
            fully_shard(block, mesh=mesh)
        fully_shard(root, mesh=mesh)

    def _parts(self) -> list[FSDPModule]:
        return [module for module in self._root.modules() if isinstance(module, FSDPModule)]

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """While inside, every process holds the whole model and may call any part of it.

        All processes enter and leave together. Weights must not be changed inside.
        """
        for part in self._parts():
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        yield
        for part in self._parts():
            part.reshard()
            part.set_reshard_after_forward(part is not self._root, recurse=False)

    @torch.no_grad()
    def dissolve(self) -> None:
        """Give every process a plain, whole module again: it can be saved, and called by one alone.

        All processes call it together, after the last step.
        """
        made: dict[Tensor, nn.Parameter] = {}  # tied parameters stay one
        for module in self._root.modules():
            for name, value in module.named_parameters(recurse=False):
                if value not in made:
                    made[value] = nn.Parameter(whole(value), requires_grad=value.requires_grad)
                module.register_parameter(name, made[value])
        for module, before in self._before.items():
            module.__class__ = before.kind
            for name, hooks in before.hooks.items():
                vars(module)[name] = hooks


def outermost_blocks(root: nn.Module) -> list[nn.Module]:
    """Elements of ``ModuleList``s that lie in no other ``ModuleList`` and hold parameters."""
    if isinstance(root, nn.ModuleList):
        return [block for block in root if any(True for _ in block.parameters())]
    return [block for child in root.children() for block in outermost_blocks(child)]
