"""How large the published models are, what a GPU must hold, and whether a plan can fit."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from configs.run import RunConfig
from configs.training import TrainConfig
from services.model_sizes import ModelSize, model_sizes

GIB = 2**30
USABLE = 0.95  # of a GPU's memory; the rest is CUDA's own
GPU_COUNTS = (1, 2, 4, 8, 16)
# Bytes that one transformer layer keeps for its backward pass, per token and channel, in 16 bits
# and without an attention matrix (Korthikanti et al. 2022, section 4.1). Taken for residual
# convolution blocks, too: an estimate.
LAYER_BYTES = 34
INPUT_BYTES = 2  # what is kept of a layer that is recomputed


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one GPU while training; everything but activations is exact arithmetic."""

    weights: float  # float32 masters
    gradients: float
    moments: float  # AdamW's two, float32
    average: float  # EMA
    copies: float  # 16-bit casts, gathered blocks, DDP's buckets
    activations: float  # estimated

    @property
    def total(self) -> float:
        return sum(getattr(self, item.name) for item in fields(self))

    def __str__(self) -> str:
        named = [f"{f.name} {getattr(self, f.name) / GIB:.1f}" for f in fields(self)]
        return ", ".join(named)


def training_memory(size: ModelSize, train: TrainConfig, workers: int) -> Memory:
    """Bytes on each of ``workers`` GPUs; ``train.batch`` is spread over them."""
    sharded = train.sharding == "fsdp" and workers > 1
    share = 1 / workers if sharded else 1.0
    copies = 2.0 * size.parameters if train.bf16 else 0.0
    if sharded:
        copies = (4.0 + 2.0 * train.bf16) * size.gathered
    elif workers > 1:
        copies += 4.0 * size.trained  # DistributedDataParallel's buckets
    return Memory(
        weights=4.0 * size.parameters * share,
        gradients=4.0 * size.trained * share,
        moments=8.0 * size.trained * share,
        average=4.0 * size.trained * share if train.ema else 0.0,
        copies=copies,
        activations=-(-train.batch // workers) * _activations(size, train.bf16),
    )


def _activations(size: ModelSize, bf16: bool) -> float:
    """Bytes per sample: what every layer keeps, and all of the widest one."""
    kept = INPUT_BYTES if size.recompute else LAYER_BYTES
    every = sum(kept * stream.layers * stream.channels for stream in size.streams)
    live = LAYER_BYTES * max(stream.channels for stream in size.streams)
    return (every + live) * (1.0 if bf16 else 2.0)


def inference_bytes(size: ModelSize, samples: int, low: bool) -> float:
    """Float32 weights, their 16-bit casts where ``low``, and one layer of ``samples`` at once."""
    live = LAYER_BYTES * max(stream.channels for stream in size.streams) * samples
    return size.parameters * (6.0 if low else 4.0) + live * (1.0 if low else 2.0)


def report(config: RunConfig) -> list[str]:
    """The sizes as lines of text: parameters, inference, training by number of GPUs."""
    sizes = model_sizes(config)
    if not sizes:
        return ["no published model in this config (scale=full has them): nothing to size"]
    available = USABLE * config.cluster.gpu_memory_gb
    lines = []
    for size in sizes:
        train = _train(config, size)
        low = _low(config, size)
        lines += [
            f"{size.name}: {size.parameters:,} parameters, {size.trained:,} trained",
            *(f"    {name:<16} {count:>15,}" for name, count in size.parts.items()),
            f"  inference: {inference_bytes(size, 1, low) / GIB:.1f} GiB for one sample",
            f"  training, batch {train.batch}, GiB per GPU (of {available:.0f} usable):",
            *_counts(size, train, available),
        ]
    return [*lines, *_shared_lines(config, sizes), *problems(config, sizes)]


def _counts(size: ModelSize, train: TrainConfig, available: float) -> Iterator[str]:
    for workers in GPU_COUNTS:
        cells = []
        for way in ("ddp", "fsdp"):
            memory = training_memory(size, replace(train, sharding=way), workers)
            fits = "fits" if memory.total <= available * GIB else "too large"
            cells.append(f"{way} {memory.total / GIB:7.1f} {fits:<9}")
        yield f"    {workers:>2} GPUs: {'  '.join(cells)}"
    memory = training_memory(size, train, GPU_COUNTS[-2])
    yield f"    of which at 8 GPUs with {train.sharding}: {memory}"


def _shared_lines(config: RunConfig, sizes: list[ModelSize]) -> Iterator[str]:
    for name, need, gpus in _inference_needs(config, sizes):
        fit = int(_room(config, 1.0) // need)
        yield f"{name}: {need / GIB:.1f} GiB on {gpus:g} GPU; one GPU holds {fit}"


def packed(config: RunConfig) -> RunConfig:
    """The config with as large a share of a GPU per imagination worker as its memory needs, where
    ``cluster.pack_gpus`` asks for it: 1, 1/2, 1/3, ...

    Raises:
        ValueError: no published model, so nothing is known of its memory; or one is too large.
    """
    if not config.cluster.pack_gpus:
        return config
    needs = {name: need for name, need, _ in _inference_needs(config, _real(config))}
    if "imagination worker" not in needs:
        raise ValueError(
            "cluster.pack_gpus=true needs the size of a published policy or world model: give "
            "cluster.worker_gpus=<share of a GPU> instead"
        )
    count = int(_room(config, 1.0) // needs["imagination worker"])
    share = 1 / count if count else 1.0  # too large even alone: check_plan says so
    return replace(config, cluster=replace(config.cluster, worker_gpus=share))


def check_plan(config: RunConfig) -> None:
    """Refuse a plan that cannot fit its GPUs; processes without a GPU are not looked at.

    Raises:
        ValueError: one message that names every process that cannot fit and what to change.
    """
    cluster = config.cluster
    if not max(cluster.learner_gpus, cluster.worker_gpus, cluster.scorer_gpus):
        return
    if found := problems(config, _real(config)):
        raise ValueError("; ".join(found))


def _real(config: RunConfig) -> list[ModelSize]:
    """Without a reward model that is a tiny random one (no ``reward.qwen.path``)."""
    tiny = config.reward.kind == "qwen" and not config.reward.qwen.path
    return [size for size in model_sizes(config) if not (tiny and size.flag == "reward")]


def problems(config: RunConfig, sizes: list[ModelSize]) -> list[str]:
    """What does not fit, and which settings would help."""
    cluster, found = config.cluster, []
    for size in sizes:
        if not cluster.learner_gpus:
            break
        train, room = _train(config, size), _room(config, cluster.learner_gpus)
        memory = training_memory(size, train, cluster.learner_workers)
        if memory.total > room:
            found.append(
                f"the {size.flag} learner needs about {memory.total / GIB:.0f} GiB on each of "
                f"{cluster.learner_workers} GPUs ({memory}; activations are an estimate), but only "
                f"{room / GIB:.0f} of cluster.gpu_memory_gb={cluster.gpu_memory_gb:g} can be used. "
                f"Change {', '.join(_relief(size, train, cluster.learner_workers))}"
            )
    for name, need, gpus in _inference_needs(config, sizes):
        if gpus and need > _room(config, gpus):
            flag = "scorer_gpus" if name == "reward scorer" else "worker_gpus"
            found.append(
                f"the {name} needs about {need / GIB:.0f} GiB, but cluster.{flag}={gpus:g} of "
                f"cluster.gpu_memory_gb={cluster.gpu_memory_gb:g} leaves "
                f"{_room(config, gpus) / GIB:.0f}. Raise cluster.{flag} (up to 1), or lower "
                f"{'reward.max_batch' if name == 'reward scorer' else 'imagination.slots'}"
            )
    return found


def _relief(size: ModelSize, train: TrainConfig, workers: int) -> list[str]:
    more = f"cluster.learner_workers={2 * workers}"
    return [
        more if train.sharding == "fsdp" else f"{size.flag}.train.sharding=fsdp",
        *size.relief,
        f"{size.flag}.train.batch (now {train.batch})",
        "cluster.gpu_memory_gb (larger GPUs)",
    ]


def _room(config: RunConfig, gpus: float) -> float:
    return USABLE * config.cluster.gpu_memory_gb * GIB * min(1.0, gpus)


def _inference_needs(
    config: RunConfig, sizes: list[ModelSize]
) -> Iterator[tuple[str, float, float]]:
    """(process, bytes, share of a GPU). An imagination worker holds policy and world model."""
    by_flag = {size.flag: size for size in sizes}
    samples = {
        "policy": config.imagination.slots,
        "world_model": 2 * config.world_model.ctrl_world.batch_slots,  # with and without guidance
        "reward": config.reward.max_batch,
    }
    need = {
        flag: inference_bytes(size, samples[flag], _low(config, size))
        for flag, size in by_flag.items()
    }
    held = [need[flag] for flag in ("policy", "world_model") if flag in need]
    if held:
        yield "imagination worker", sum(held), config.cluster.worker_gpus
    if "reward" in need:
        yield "reward scorer", need["reward"], config.cluster.scorer_gpus


def _train(config: RunConfig, size: ModelSize) -> TrainConfig:
    trains = {
        "policy": config.policy.train,
        "world_model": config.world_model.train,
        "reward": config.reward.train,
    }
    return trains[size.flag]


def _low(config: RunConfig, size: ModelSize) -> bool:
    dtypes = {
        "policy": config.policy.pi05.dtype,
        "world_model": config.world_model.ctrl_world.dtype,
        "reward": config.reward.qwen.dtype,
    }
    return dtypes[size.flag] == "bfloat16"
