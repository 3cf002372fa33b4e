"""Time and peak GPU memory of the published sizes with random weights, on one CUDA device.

One imagination chunk of policy and world model, and one training step of each model.
Run: python benchmarks/full_size.py [hydra overrides of scale=full]; needs CUDA. `--tiny` runs the
same code on the small default widths of the same classes, on a CPU.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from configs import schema
from configs.run import RunConfig
from configs.training import TrainConfig
from contracts.types import Clip, Observation, RobotState, StartState
from models.build import build_policy, build_reward, build_world_model
from models.interfaces import Batch, PolicyBatch, RewardBatch, Trainable, WorldModelBatch

ROOT = Path(__file__).parents[1]
TASK = "put the cup on the plate"
TINY = [
    "policy=pi05",
    "world_model=ctrl_world",
    "reward=qwen",
    "task=draw",
    "policy.pi05.image_size=56",
    "world_model.ctrl_world.sampler_steps=2",
    "robot.height=64",
    "robot.width=128",
]


def configured(tiny: bool, overrides: list[str]) -> RunConfig:
    schema.register()
    base = TINY if tiny else ["scale=full"]
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        return schema.to_run(compose("run", [*base, "job=sizes", *overrides]))


def measure(name: str, device: torch.device, work: Callable[[], object]) -> None:
    """Print the second run's time and its peak memory; the first run warms up."""
    for _ in range(2):
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    peak = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device.type == "cuda" else "-"
    print(f"| {name} | {seconds:.2f} s | {peak} |", flush=True)


def training_step(model: Trainable, batch: Batch, train: TrainConfig) -> Callable[[], None]:
    """Loss, gradients and one AdamW step, as learners/loop.py takes it on one process."""
    module = model.module().train()
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-8)
    device = parameters[0].device.type

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=train.bf16):
            loss = model.loss(batch, torch.Generator().manual_seed(0)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def policy_rows(config: RunConfig, device: torch.device, batch: int) -> None:
    policy = build_policy(config.policy, seed=0)
    module = policy.module().to(device).eval()
    images = np.zeros((batch, 3, config.robot.height, config.robot.width, 3), np.uint8)
    given = PolicyBatch(
        images,
        np.zeros((batch, 7), np.float32),
        np.zeros(batch, np.float32),
        [TASK] * batch,
        np.random.default_rng(0).normal(size=(batch, config.policy.horizon, 8)).astype(np.float32),
        np.ones(batch, np.float32),
    )
    policy.fit_statistics(given)
    zero = np.zeros(7, np.float32)
    seen = Observation(images[0], RobotState(zero, zero, zero[:6], 0.0, 0.0), TASK)
    measure("pi0.5: one decision", device, lambda: policy.act([seen], [0]))
    name = f"pi0.5: training step, batch {batch}"
    measure(name, device, training_step(policy, given, config.policy.train))
    del module


def world_model_rows(config: RunConfig, device: torch.device, batch: int) -> None:
    size = (config.robot.height, config.robot.width)
    model = build_world_model(config.world_model, size, seed=0)
    module = model.module().to(device).eval()
    frame = np.zeros((3, *size, 3), np.uint8)
    start = StartState("real", 0, "task", TASK, frame, np.zeros(7, np.float32), 0.0)
    poses = np.zeros((1, 5, 7), np.float32)
    steps = config.world_model.ctrl_world.sampler_steps
    name = f"Ctrl-World: one chunk, {steps} guided steps"
    measure(name, device, lambda: model.imagine([model.begin(start, 0)], poses))
    given = WorldModelBatch(
        np.zeros((batch, 11, 3, *size, 3), np.uint8),
        np.zeros((batch, 11, 7), np.float32),
        [TASK] * batch,
        np.ones(batch, np.float32),
    )
    name = f"Ctrl-World: training step, batch {batch}"
    measure(name, device, training_step(model, given, config.world_model.train))
    del module


def reward_rows(config: RunConfig, device: torch.device, batch: int) -> None:
    """A checkpoint folder in reward.qwen.path; without one the tiny random model is measured."""
    reward = build_reward(config.reward, seed=0)
    module = reward.module().to(device).eval()
    count = config.reward.num_frames
    frames = np.zeros((count, 3, config.robot.height, config.robot.width, 3), np.uint8)
    clip = Clip(frames, tuple(range(count)), TASK)
    name = "Qwen3-VL" if config.reward.qwen.path else "Qwen3-VL (tiny: no reward.qwen.path)"
    measure(f"{name}: one score", device, lambda: reward.score([clip]))
    given = RewardBatch([clip] * batch, np.arange(batch) % 2 == 0)
    step = training_step(reward, given, config.reward.train)
    measure(f"{name}: training step, batch {batch}", device, step)
    del module


def main() -> None:
    tiny = "--tiny" in sys.argv
    overrides = [argument for argument in sys.argv[1:] if argument != "--tiny"]
    if not tiny and not torch.cuda.is_available():
        sys.exit("error: no CUDA device here; --tiny runs the same code at tiny widths")
    config = configured(tiny, overrides)
    device = torch.device("cpu" if tiny else "cuda")
    torch.set_num_threads(1 if tiny else torch.get_num_threads())
    print("| what | time | peak memory |\n|---|---|---|")
    for rows, batch in ((policy_rows, 2), (world_model_rows, 1), (reward_rows, 2)):
        rows(config, device, batch)
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
