"""``job=study``: the paper's comparison of methods, as one run per variant and seed."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from configs.checks import at_least, one_of

if TYPE_CHECKING:
    from configs.run import RunConfig


def _vlaw(config: "RunConfig") -> "RunConfig":
    return replace(config, method=replace(config.method, kind="vlaw"))


def _filtered_bc(config: "RunConfig") -> "RunConfig":
    return replace(config, method=replace(config.method, kind="filtered_bc"))


def _dsrl(config: "RunConfig") -> "RunConfig":
    return replace(config, method=replace(config.method, kind="dsrl"))


def _half(config: "RunConfig") -> "RunConfig":
    """Of every task's own N, too."""
    tasks = {
        name: own if own.imagine is None else replace(own, imagine=max(1, own.imagine // 2))
        for name, own in config.task.items()
    }
    numbers = replace(config.each_task, imagine=max(1, config.each_task.imagine // 2))
    return _vlaw(replace(config, each_task=numbers, task=tasks))


def _imagined_only(config: "RunConfig") -> "RunConfig":
    one = _vlaw(config)
    return replace(one, method=replace(one.method, real_share=0.0))


def _true_judge(config: "RunConfig") -> "RunConfig":
    one = _vlaw(config)
    evaluation = replace(one.evaluation, truth="all")
    return replace(one, method=replace(one.method, judge="physics"), evaluation=evaluation)


def _later_starts(config: "RunConfig") -> "RunConfig":
    one = _vlaw(config)
    return replace(one, imagination=replace(one.imagination, later_starts=0.5))


def _short_turns(config: "RunConfig") -> "RunConfig":
    """Twice the iterations with half of every task's K, and all of its N in each."""
    one = _vlaw(config)
    tasks = {
        name: own if own.rollouts is None else replace(own, rollouts=max(1, own.rollouts // 2))
        for name, own in one.task.items()
    }
    return replace(
        one,
        method=replace(one.method, iterations=2 * one.method.iterations),
        each_task=replace(one.each_task, rollouts=max(1, one.each_task.rollouts // 2)),
        task=tasks,
    )


def _all_real(config: "RunConfig") -> "RunConfig":
    """K + N real episodes of every task, and no world model."""

    def asked(name: str) -> int:
        numbers = config.for_task(name)
        return numbers.rollouts + numbers.imagine

    tasks = {name: replace(own, rollouts=asked(name)) for name, own in config.task.items()}
    return _filtered_bc(replace(config, task=tasks))


VARIANTS: dict[str, Callable[["RunConfig"], "RunConfig"]] = {
    "vlaw": _vlaw,
    "filtered_bc": _filtered_bc,
    "dsrl": _dsrl,  # the policy stays; SAC steers its noise
    "vlaw_true_judge": _true_judge,  # D_syn+ by what imagined actions do in physics
    "all_real": _all_real,  # what a perfect world model and a perfect judge would give
    "vlaw_later_starts": _later_starts,  # half of imagination from the middle of real episodes
    "vlaw_short_turns": _short_turns,  # the same real budget in twice as many iterations
    "vlaw_half": _half,  # Figure 9: half as many imagined trajectories
    "vlaw_imagined_only": _imagined_only,  # Figure 9: no real data in the policy's batches
}


@dataclass
class StudyConfig:
    """Section 5.3 of the paper. Every variant of a seed has the same starts and, but for
    ``all_real``, the same real budget."""

    variants: list[str] = field(default_factory=lambda: list(VARIANTS))
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])  # of everything but the bases
    redraws: int = 10_000  # of seeds and starts, for the bootstrap's intervals

    def __post_init__(self) -> None:
        for name in self.variants:
            one_of("study.variants", name, VARIANTS)
        for name in ("variants", "seeds"):
            chosen = getattr(self, name)
            if not chosen or len(set(chosen)) != len(chosen):
                raise ValueError(f"study.{name}={chosen} must name one or more, each once")
        at_least("study.redraws", self.redraws, 100)


def check_study(config: "RunConfig") -> None:
    """Raise ValueError where the runs of a study could not be compared."""
    if config.robot.kind != "mujoco":
        raise ValueError(
            f"job=study plays every method many times over and needs robot=mujoco, not "
            f"{config.robot.kind}. On a rig, compare two runs: method=vlaw and method=filtered_bc"
        )
    if not config.evaluation.episodes or not config.method.update_policy:
        raise ValueError(
            "job=study compares policies by their evaluation: give evaluation.episodes=50 and "
            "method.update_policy=true"
        )


def variant(config: "RunConfig", name: str, seed: int) -> "RunConfig":
    """The settings of one run of the study: a loop, whose trainings follow the seed as well.

    The same-steps control belongs to the first variant alone: it depends on none.
    """
    control = config.evaluation.control and name == config.study.variants[0]
    seeded = {
        part: replace(getattr(config, part), train=replace(getattr(config, part).train, seed=seed))
        for part in ("policy", "world_model", "reward")
    }
    evaluation = replace(config.evaluation, control=control)
    return VARIANTS[name](replace(config, job="loop", seed=seed, evaluation=evaluation, **seeded))
