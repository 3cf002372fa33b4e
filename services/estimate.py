"""What a run will cost, stage by stage, from its numbers and the seconds of one unit of work."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace

from configs.robot import TASKS
from configs.run import RunConfig
from contracts.constants import CONTROL_HZ, FRAME_HZ, NEW_FRAMES, TICKS_PER_CHUNK
from services.report_data import Amount

JPEG_BYTES_PER_PIXEL = 0.25  # measured on both the simulated and the recorded views at quality 95
PHYSICS_TICK_S = 0.0015  # of one simulated tick without pictures, measured
RESET_S = 30.0  # a person puts the scene back; the paper gives no figure
KINDS = {  # of stages, by what their names contain; the first that fits
    "train": "training",
    "imagine": "imagination",
    "score": "scoring",
    "truth": "evaluation",
    "calibration": "scoring",
    "evaluate": "evaluation",
    "replay quality": "evaluation",
    "demonstrations": "demonstrations",
    "collect": "real rollouts",
    "base": "training",
}


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds of one unit of each kind of work on one worker; see ``configs.estimate.RATES``."""

    source: str
    start: float
    episode_tick: float
    reset: float
    chunk: float
    clip: float
    policy_step: float
    world_model_step: float
    reward_step: float
    episode_share: float = 1.0
    chunk_share: float = 1.0
    real_bytes: float = 0.0
    imagined_bytes: float = 0.0


EMBEDDED = Rates(
    "measured on 2 CPU cores, embedded models",
    start=10.0,  # before a policy trains its frozen encoders look at all windows: minutes more
    episode_tick=0.008,
    reset=0.0,
    chunk=0.025,
    clip=0.06,
    policy_step=0.05,
    world_model_step=0.25,
    reward_step=0.25,
    episode_share=0.67,
)
FULL = Rates(
    "published: Ctrl-World about 5 s a chunk on one H100; the others are guesses",
    start=60.0,
    episode_tick=1 / CONTROL_HZ,
    reset=RESET_S,
    chunk=5.0,
    clip=0.5,
    policy_step=3.0,
    world_model_step=4.5,
    reward_step=8.0,
)


def built_in(config: RunConfig) -> Rates:
    """The rates of a run about which nobody has measured anything."""
    simulated = config.robot.kind == "mujoco" and config.policy.kind == "embedded"
    return EMBEDDED if simulated else FULL


def given(config: RunConfig, rates: Rates) -> Rates:
    """``rates`` with those that ``estimate.rates`` names in their place."""
    own = config.estimate.rates or {}
    if not own:
        return rates
    source = f"{', '.join(own)} as given; the others {rates.source}"
    return replace(rates, source=source, **{name: float(value) for name, value in own.items()})


@dataclass(frozen=True, slots=True)
class Cost:
    """What one stage is expected to take."""

    stage: str
    units: int
    amount: Amount

    @property
    def kind(self) -> str:
        return next((kind for part, kind in KINDS.items() if part in self.stage), "other")


def estimate(config: RunConfig, tasks: list[str], rates: Rates) -> list[Cost]:
    """The stages of ``job=loop`` in their order. Stages without work of their own are left out."""
    return list(_Plan(config, tasks, rates).stages())


@dataclass(frozen=True, slots=True)
class _Plan:
    config: RunConfig
    tasks: list[str]
    rates: Rates

    def stages(self) -> Iterator[Cost]:
        moves = self.config.robot.kind != "recorded"  # recordings are read, not played
        for cost in self.all_stages():
            played = cost.kind in ("demonstrations", "real rollouts", "evaluation")
            if cost.units and (moves or not played):
                yield cost

    def all_stages(self) -> Iterator[Cost]:
        config = self.config
        kind, iterations = config.method.kind, config.method.iterations
        demos = 0 if config.demos.path else config.demos.per_task
        yield self.episodes("demonstrations", [demos] * len(self.tasks), 0.0)
        if config.policy.checkpoint == "scratch":
            yield self.training("base", config.policy.train.steps)
        yield self.evaluation("base")
        for i in range(1, iterations + 1):
            yield self.collect(i)
            if kind == "vlaw":
                yield from self.inside_the_world_model(i)
            if config.method.update_policy:
                steered = kind == "dsrl"
                steps = config.method.steering.steps if steered else config.policy.train.steps
                yield self.training(f"{i} train policy", steps)
                yield self.evaluation(f"{kind}-{i}")
        if config.evaluation.control and config.method.update_policy:
            yield self.training("train control", config.policy.train.steps * iterations)
            yield self.evaluation("control")

    def inside_the_world_model(self, i: int) -> Iterator[Cost]:
        config = self.config
        yield self.training(f"{i} train world model", config.world_model.train.steps)
        real = i * sum(n.rollouts for n in self.numbers())
        if i <= config.reward.train_iterations:
            yield self.training(f"{i} train reward", config.reward.train.steps)
            yield self.scoring(f"{i} calibration", 2 * round(real * config.reward.holdout))
        yield self.imagination(i)
        imagined = sum(n.imagine for n in self.numbers())
        yield self.scoring(f"{i} score", real + imagined)
        if config.robot.kind == "mujoco" and config.evaluation.truth != "none":
            yield self.truth(i)

    def numbers(self) -> list:
        return [self.config.for_task(task) for task in self.tasks]

    def episodes(self, stage: str, counts: Iterable[int], gpus: float | int) -> Cost:
        """So many episodes of each task, on all robots."""
        rates, ticks, total = self.rates, 0.0, 0
        for task, count in zip(self.tasks, counts, strict=True):
            longest = self.config.for_task(task).max_ticks or TASKS.get(task, max(TASKS.values()))
            ticks += count * longest * rates.episode_share
            total += count
        work = ticks * rates.episode_tick + total * rates.reset
        disk = total * (rates.real_bytes or self.frame_bytes() * self.real_frames())
        return self.cost(stage, total, work / self.config.robot.count, gpus, disk)

    def collect(self, i: int) -> Cost:
        counts = [n.rollouts for n in self.numbers()]
        return self.episodes(f"{i} collect", counts, self.config.cluster.worker_gpus)

    def evaluation(self, name: str) -> Cost:
        counts = [self.config.evaluation.episodes] * len(self.tasks)
        return self.episodes(f"evaluate {name}", counts, self.config.cluster.worker_gpus)

    def truth(self, i: int) -> Cost:
        """Physics alone, without pictures and policy; of ``accepted``, at most all are executed."""
        total = sum(n.imagine for n in self.numbers())
        ticks = total * self.config.imagination.max_chunks * TICKS_PER_CHUNK
        seconds = ticks * PHYSICS_TICK_S / self.config.robot.count
        return self.cost(f"{i} truth", total, seconds, 0)

    def training(self, stage: str, steps: int) -> Cost:
        rates, cluster = self.rates, self.config.cluster
        step = {
            "world model": rates.world_model_step,
            "reward": rates.reward_step,
        }.get(stage.partition("train ")[2], rates.policy_step)
        return self.cost(stage, steps, steps * step, cluster.learner_workers * cluster.learner_gpus)

    def scoring(self, stage: str, clips: int) -> Cost:
        return self.cost(stage, clips, clips * self.rates.clip, self.config.cluster.scorer_gpus)

    def imagination(self, i: int) -> Cost:
        """Each task has its workers; the stage ends with the slowest task."""
        config, rates = self.config, self.rates
        chunks = config.imagination.max_chunks * rates.chunk_share
        longest = max(n.imagine / n.fewest_workers for n in self.numbers())
        total = sum(n.imagine for n in self.numbers())
        workers = sum(n.fewest_workers for n in self.numbers())
        one = self.frame_bytes() * chunks * NEW_FRAMES
        disk = total * (rates.imagined_bytes or one)
        gpus = workers * config.cluster.worker_gpus
        return self.cost(f"{i} imagine", total, longest * chunks * rates.chunk, gpus, disk)

    def cost(
        self, stage: str, units: int, seconds: float | int, gpus: float | int, disk: float | int = 0
    ) -> Cost:
        whole = seconds + self.rates.start
        return Cost(stage, units, Amount(whole, whole * gpus, disk))

    def frame_bytes(self) -> float:
        """Of the JPEG pictures of all views; states and actions are less than a hundredth."""
        return 3 * self.config.robot.height * self.config.robot.width * JPEG_BYTES_PER_PIXEL

    def real_frames(self) -> float:
        return max(TASKS.values()) * self.rates.episode_share / CONTROL_HZ * FRAME_HZ


def total(amounts: Iterable[Amount]) -> Amount:
    """The sum, number by number."""
    rows = list(amounts)
    return Amount(*(sum(getattr(row, f.name) for row in rows) for f in fields(Amount)))


def lines(config: RunConfig, costs: list[Cost], rates: Rates) -> list[str]:
    """The estimate as text: how many trajectories and steps, how long, GPU-hours, disk."""
    units = {kind: sum(c.units for c in costs if c.kind == kind) for kind in KINDS.values()}
    whole = total(cost.amount for cost in costs)
    found = [
        f"  {config.method.iterations} iterations of {config.method.kind}:"
        f" {units['real rollouts']} real episodes, {units['imagination']} imagined trajectories,"
        f" {config.policy.train.steps} policy, {config.world_model.train.steps} world-model,"
        f" {config.reward.train.steps} reward steps each"
    ]
    for kind in dict.fromkeys(KINDS.values()):
        part = total(cost.amount for cost in costs if cost.kind == kind)
        if part.seconds:
            found.append(f"  {kind:<14} about {told(part)}")
    return [*found, f"  {'total':<14} about {told(whole)}", f"  rates: {rates.source}"]


def told(amount: Amount) -> str:
    parts = [span(amount.seconds)]
    if amount.gpu_seconds:
        parts.append(f"{amount.gpu_seconds / 3600:.1f} GPU-hours")
    if amount.disk_bytes:
        parts.append(f"{amount.disk_bytes / 2**30:.2f} GiB of trajectories")
    return ", ".join(parts)


def span(seconds: float) -> str:
    """``90`` -> ``1.5 min``."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
