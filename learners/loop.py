"""The one training loop of all three learners; its step k is a function of (seed, k)."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from configs.training import TrainConfig
from contracts.seeds import fold
from learners.state import TrainState, load_state, save_state
from models.interfaces import Batch, RewardBatch, Trainable

NOT_RECIPE = ("checkpoint_every", "threads", "device")  # may change while a training is under way

Sample = Callable[[int], Batch]
OnStep = Callable[[int, float], None]  # told the number of steps taken and the newest loss
Wrap = Callable[[nn.Module], nn.Module]


class DivergedError(RuntimeError):
    """Training produced a loss or gradient that is not finite."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """``losses[k]`` is the weighted mean loss of step k, resumed steps included."""

    losses: tuple[float, ...]
    resumed_from: int  # steps found in the state folder
    seconds: float  # of this call
    numbers: Mapping[str, float] = field(default_factory=dict)  # what else a learner measured

    @property
    def steps(self) -> int:
        return len(self.losses)


class _LossModule(nn.Module):
    """Lets DistributedDataParallel see a loss as the forward of one module."""

    def __init__(self, trainable: Trainable) -> None:
        super().__init__()
        self.trained = trainable.module()
        self._loss = trainable.loss

    def forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean of weight x loss over the batch; a clip of the reward model weighs 1."""
        losses = self._loss(batch, generator)
        if isinstance(batch, RewardBatch):
            return losses.mean()
        return (torch.as_tensor(batch.weight, device=losses.device) * losses).mean()


def shard() -> tuple[int, int]:
    """(rank, number of learner processes); (0, 1) outside torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def data_parallel(module: nn.Module) -> nn.Module:
    """Average gradients over learner processes, if there are several."""
    if shard()[1] == 1:
        return module
    # pi0.5 leaves the last VLM layer's output projections without a gradient
    return DistributedDataParallel(module, find_unused_parameters=True)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up that reaches the peak at step ``warmup``, then a cosine to the last step."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / (config.warmup + 1)
    progress = (step - config.warmup) / max(1, config.steps - 1 - config.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    low = config.final_learning_rate
    return config.learning_rate * (low + (1 - low) * cosine)


def noise_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """The CPU generator of one step's noise."""
    return torch.Generator().manual_seed(fold(seed, "noise", step, rank))


def train(
    trainable: Trainable,
    sample: Sample,
    config: TrainConfig,
    state_dir: Path,
    on_step: OnStep,
    wrap: Wrap = data_parallel,
) -> TrainResult:
    """Take ``config.steps`` AdamW steps, continuing whatever whole checkpoint ``state_dir`` holds.

    ``sample(k)`` is this process's share of the batch of step k. With ``config.ema`` the module
    ends with the averaged weights. On a CPU a resumed training equals an unbroken one bit by bit.

    Raises:
        DivergedError: a loss or gradient is not finite. Checkpoints and data stay as they are.
        ValueError: ``state_dir`` belongs to a training with other settings.
    """
    start = time.monotonic()
    torch.set_num_threads(config.threads)
    module = trainable.module().to(_device(config))
    parameters = [p for p in module.parameters() if p.requires_grad]
    state = TrainState(module, _optimizer(parameters, config), _average(module, config))
    recipe = {k: v for k, v in asdict(config).items() if k not in NOT_RECIPE}
    load_state(state, state_dir, recipe)
    resumed_from, rank = state.step, shard()[0]
    loss_module = wrap(_LossModule(trainable))
    module.train()
    for step in range(state.step, config.steps):
        loss = _step(loss_module, sample(step), state, config)
        state.losses.append(loss)
        if rank == 0 and (state.step % config.checkpoint_every == 0 or state.step == config.steps):
            save_state(state, state_dir, recipe)
        on_step(state.step, loss)
    _publish_average(state)
    module.eval()
    return TrainResult(tuple(state.losses), resumed_from, time.monotonic() - start)


def _device(config: TrainConfig) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def _optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    if not parameters:
        raise ValueError("the model has no parameter with requires_grad: nothing can be trained")
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


def _average(module: nn.Module, config: TrainConfig) -> dict[str, Tensor]:
    if not config.ema:
        return {}
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    return {name: p.detach().to(torch.float32).clone() for name, p in named}


def _step(loss_module: nn.Module, batch: Batch, state: TrainState, config: TrainConfig) -> float:
    step = state.step
    device = next(state.module.parameters()).device.type
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    state.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=config.bf16):
        loss = loss_module(batch, noise_generator(config.seed, step, shard()[0]))
    _finite("loss", loss.item(), step, config)
    loss.backward()
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    _finite("gradient norm", norm.item(), step, config)
    state.optimizer.step()
    _update_average(state, config.ema)
    return _mean_over_processes(loss)


def _finite(what: str, value: float, step: int, config: TrainConfig) -> None:
    if not math.isfinite(value):
        raise DivergedError(
            f"the {what} is {value} at training step {step}; data and checkpoints are kept. "
            f"Lower train.learning_rate={config.learning_rate:g} or train.clip_norm="
            f"{config.clip_norm:g}; the batch of step {step} follows from train.seed={config.seed}"
        )


def _mean_over_processes(loss: Tensor) -> float:
    total, (_, world) = loss.detach().clone(), shard()
    if world > 1:
        dist.all_reduce(total)
    return total.item() / world


@torch.no_grad()
def _update_average(state: TrainState, decay: float) -> None:
    """average <- decay x average + (1 - decay) x weights."""
    if state.average:
        for name, parameter in state.module.named_parameters():
            if name in state.average:
                state.average[name].lerp_(parameter.detach().float(), 1 - decay)


@torch.no_grad()
def _publish_average(state: TrainState) -> None:
    for name, parameter in state.module.named_parameters():
        if name in state.average:
            parameter.copy_(state.average[name])
