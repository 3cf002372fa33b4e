"""What a run will cost, from its numbers and measured rates; arithmetic only."""

from dataclasses import dataclass

from configs.robot import TASKS
from configs.run import RunConfig
from contracts.constants import CONTROL_HZ, FRAME_HZ, NEW_FRAMES

JPEG_BYTES_PER_PIXEL = 0.25  # measured on both the simulated and the recorded views at quality 95
RESET_S = 30.0  # a person puts the scene back; the paper gives no figure


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds of one unit of each kind of work on one worker."""

    source: str
    episode_tick: float  # a real robot's tick: 1/15 s; simulated: what physics and views cost
    reset: float
    chunk: float  # one slot of one world-model call, policy included
    policy_step: float
    world_model_step: float
    reward_step: float


EMBEDDED = Rates("measured on 2 CPU cores, embedded models", 0.0035, 0.2, 0.02, 0.09, 0.25, 0.08)
FULL = Rates(
    "published: Ctrl-World about 5 s a chunk on one H100; training rates are guesses",
    1 / CONTROL_HZ,
    RESET_S,
    5.0,
    3.0,
    4.5,
    8.0,
)


def estimate(config: RunConfig, tasks: list[str]) -> list[str]:
    """Lines that say how many trajectories and steps, how long, and how much disk."""
    simulated = config.robot.kind == "mujoco" and config.policy.kind == "embedded"
    rates = EMBEDDED if simulated else FULL
    iterations = config.method.iterations
    numbers = {task: config.for_task(task) for task in tasks}
    real = iterations * sum(n.rollouts for n in numbers.values())
    imagined = iterations * sum(n.imagine for n in numbers.values())
    if config.method.kind == "filtered_bc":
        imagined = 0
    ticks = sum(n.rollouts * (n.max_ticks or TASKS.get(task, 200)) for task, n in numbers.items())
    workers = sum(n.fewest_workers for n in numbers.values())
    seconds = {
        "real rollouts": iterations
        * (ticks * rates.episode_tick + real * rates.reset)
        / config.robot.count,
        "imagination": imagined * config.imagination.max_chunks * rates.chunk / max(1, workers),
        "training": iterations * _training_s(config, rates),
    }
    disk = disk_bytes(config, real, imagined) / 2**30
    return [
        f"  {iterations} iterations of {config.method.kind}: {real} real episodes,"
        f" {imagined} imagined trajectories, {config.policy.train.steps} policy,"
        f" {config.world_model.train.steps} world-model, {config.reward.train.steps} reward steps"
        " each",
        *(f"  {name:<14} about {span(value)}" for name, value in seconds.items()),
        f"  total          about {span(sum(seconds.values()))}, {disk:.2f} GiB of trajectories",
        f"  rates: {rates.source}",
    ]


def _training_s(config: RunConfig, rates: Rates) -> float:
    policy = config.policy.train.steps * rates.policy_step
    if config.method.kind == "filtered_bc":
        return policy
    world_model = config.world_model.train.steps * rates.world_model_step
    return (
        policy
        + world_model
        + config.reward.train.steps * rates.reward_step / config.method.iterations
    )


def disk_bytes(config: RunConfig, real: int, imagined: int) -> float:
    """Bytes of JPEG frames; states and actions are less than a hundredth of them."""
    frame = 3 * config.robot.height * config.robot.width * JPEG_BYTES_PER_PIXEL
    real_frames = real * max(TASKS.values()) / CONTROL_HZ * FRAME_HZ
    return frame * (real_frames + imagined * config.imagination.max_chunks * NEW_FRAMES)


def span(seconds: float) -> str:
    """``90`` -> ``1.5 min``."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
