"""The one training loop of all three learners; its step k is a function of (seed, k)."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from configs.training import TrainConfig
from contracts.errors import DivergedError
from contracts.seeds import fold
from learners.sharding import Sharded, local
from learners.state import TrainState, frozen_sum, load_state, load_weights_of, save_state
from learners.validation import Measurement, Validation, best_of
from models.interfaces import Batch, RewardBatch, Trainable

NOT_RECIPE = (
    "checkpoint_every",
    "threads",
    "device",
    "sharding",
)  # may change while a training is under way

Sample = Callable[[int], Batch]
OnStep = Callable[[int, float], None]  # told the number of steps taken and the newest loss


@dataclass(frozen=True, slots=True)
class TrainResult:
    """``losses[k]`` is the weighted mean loss of step k, resumed steps included."""

    losses: tuple[float, ...]
    resumed_from: int  # steps found in the state folder
    seconds: float  # of this call
    numbers: Mapping[str, float | str] = field(default_factory=dict)  # what else a learner measured
    validation: tuple[Measurement, ...] = ()  # by the steps taken; empty where none was asked for
    kept_step: int = 0  # the weights that the module ends with have taken this many steps

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


def _distribute(
    loss_module: nn.Module, config: TrainConfig, device: torch.device
) -> tuple[nn.Module, Sharded | None]:
    """Make several learner processes train as one; a single process needs nothing."""
    if shard()[1] == 1:
        return loss_module, None
    if config.sharding == "fsdp":
        return loss_module, Sharded(loss_module, device)
    # A network may have parameters that some batch leaves without a gradient.
    return DistributedDataParallel(loss_module, find_unused_parameters=True), None


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up that reaches the peak at step ``warmup``, then a cosine to its last step.

    With ``decay_steps`` this is openpi's CosineDecaySchedule (optax): the lowest rate is reached at
    step ``decay_steps``, whenever training ends.
    """
    if step < config.warmup:
        return config.learning_rate * (step + 1) / (config.warmup + 1)
    last = config.decay_steps or config.steps - 1
    progress = (step - config.warmup) / max(1, last - config.warmup)
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
    validation: Validation | None = None,
) -> TrainResult:
    """Take ``config.steps`` AdamW steps, continuing whatever whole checkpoint ``state_dir`` holds.

    ``sample(k)`` is this process's share of the batch of step k. With ``config.ema`` the module
    ends with the averaged weights. With a ``validation`` training may end early, and the module may
    end with the weights of an earlier step (``kept_step``). On a CPU a resumed training equals an
    unbroken one bit by bit.

    Raises:
        DivergedError: a loss, gradient or measurement is not finite. Checkpoints and data stay as
            they are.
        ValueError: ``state_dir`` belongs to a training with other settings.
    """
    start = time.monotonic()
    torch.set_num_threads(config.threads)
    device = device_of(config)
    module = trainable.module().to(device)
    recipe = _recipe(module, config, validation)
    loss_module, sharded = _distribute(_LossModule(trainable), config, device)
    if sharded is not None and validation is not None:
        validation = _on_whole_model(validation, sharded)
    state = TrainState(module, _optimizer(module, config), _average(module, config))
    load_state(state, state_dir, recipe)
    resumed_from = state.step
    module.train()
    while not _ended(state, config, validation):
        loss = _step(loss_module, sample(state.step), state, config)
        state.losses.append(loss)
        best = validation is not None and _measured_best(state, config, validation)
        ended = _ended(state, config, validation)
        if best or ended or state.step % config.checkpoint_every == 0:
            save_state(state, state_dir, recipe, writer=shard()[0] == 0)
        on_step(state.step, loss)
    kept = _keep(state, state_dir, validation)
    _publish_average(state)
    if sharded is not None:
        sharded.dissolve()
    module.eval()
    seconds = time.monotonic() - start
    history = tuple(state.validation)
    return TrainResult(
        tuple(state.losses), resumed_from, seconds, validation=history, kept_step=kept
    )


def _recipe(
    module: nn.Module, config: TrainConfig, validation: Validation | None
) -> dict[str, Any]:
    """Whatever makes it another training when it changes; the frozen weights are stored nowhere."""
    recipe = {k: v for k, v in asdict(config).items() if k not in NOT_RECIPE}
    recipe["frozen weights"] = frozen_sum(module)
    if validation is not None:
        recipe["validation"] = validation.recipe
    return recipe


def _on_whole_model(validation: Validation, sharded: Sharded) -> Validation:
    def measure() -> float:
        with sharded.gathered():
            return validation.measure()

    return replace(validation, measure=measure)


def _ended(state: TrainState, config: TrainConfig, validation: Validation | None) -> bool:
    stopped = validation is not None and validation.exhausted(state.validation)
    return stopped or state.step >= config.steps


def _measured_best(state: TrainState, config: TrainConfig, validation: Validation) -> bool:
    """Measure if it is time to; True when these weights are to be kept."""
    if not validation.due(state.step, config.steps):
        return False
    state.module.eval()
    with torch.no_grad(), _average_in_place(state):
        measured = torch.tensor(validation.measure(), dtype=torch.float64)
        value = _mean_over_processes(measured.to(next(state.module.parameters()).device))
    state.module.train()
    _finite("validation", value, state.step, config)
    state.validation.append((state.step, value))
    best = best_of(state.validation)
    return validation.keep == "best" and best == state.validation[-1]


def _keep(state: TrainState, folder: Path, validation: Validation | None) -> int:
    """Go back to the best weights if they are wanted; how many steps the kept ones have taken."""
    best = best_of(state.validation)
    if validation is None or validation.keep == "last" or best is None or best[0] == state.step:
        return state.step
    load_weights_of(state, folder, best[0])
    return best[0]


def device_of(config: TrainConfig) -> torch.device:
    """Where a training takes place."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def _optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("the model has no parameter with requires_grad: nothing can be trained")
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
    )


def _average(module: nn.Module, config: TrainConfig) -> dict[str, Tensor]:
    if not config.ema:
        return {}
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    return {name: p.detach().to(torch.float32, copy=True) for name, p in named}


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
    norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)  # of all shards together
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
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
                local(state.average[name]).lerp_(local(parameter).float(), 1 - decay)


@torch.no_grad()
def _publish_average(state: TrainState) -> None:
    for name, parameter in state.module.named_parameters():
        if name in state.average:
            parameter.copy_(state.average[name])


@contextmanager
def _average_in_place(state: TrainState) -> Iterator[None]:
    """The module has the averaged weights inside, its own again outside, bit by bit."""
    named = [(n, p) for n, p in state.module.named_parameters() if n in state.average]
    own = [parameter.detach().clone() for _, parameter in named]
    _publish_average(state)
    try:
        yield
    finally:
        for (_, parameter), weights in zip(named, own, strict=True):
            parameter.data.copy_(weights)
