"""Stages that train the policy: on successes, by its noise, on demonstrations alone."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cluster.context import Context, Versions
from cluster.learning import Course, Places, learn
from cluster.training import OnStep
from configs.method import SteeringConfig
from configs.policy import PolicyConfig
from learners.advantage import advantages
from learners.loop import TrainResult
from learners.policy import PolicySources, train_policy
from learners.selection import Selection, real_successes
from replay.store import ReplayStore


@dataclass(frozen=True, slots=True)
class _Weighing:
    """What a trajectory counts for; see ``PolicySources``."""

    real_share: float = 0.5
    beta: float = 0.0
    advantage: dict[str, float] | None = None


def accepted_ids(run: Context, reward_version: int) -> dict[str, dict[str, float]]:
    """D_syn+ of all iterations so far: P('yes') of every accepted trajectory, by task (Eq. 3).

    Of a task with ``accept``, the first that many of each iteration, in the order of the work:
    which ones were imagined beyond them depends on how quick the workers were. With
    ``method.judge=physics`` they are those whose actions succeed in the simulator, each with 1.
    """
    if run.config.method.judge == "physics":
        return _really_succeed(run)
    store = run.reader("imagined")
    found: dict[str, dict[str, float]] = {task: {} for task in run.tasks}
    taken: Counter[tuple[str, int]] = Counter()
    for name, verdict in sorted(store.verdicts(reward_version).items()):
        story = store.provenance(name)
        numbers, of = run.config.for_task(story.task), (story.task, story.iteration)
        if verdict.accepted(numbers.alpha) and not 0 < numbers.accept <= taken[of]:
            found[story.task][name] = verdict.p_yes
            taken[of] += 1
    return found


def _really_succeed(run: Context) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {task: {} for task in run.tasks}
    for task, answers in _truths(run):
        found[task] |= {name: 1.0 for name, success in answers.items() if success}
    return found


def _truths(run: Context) -> Iterator[tuple[str, dict[str, bool]]]:
    """(task, what the simulator says of imagined trajectories), iteration by iteration."""
    for i in range(1, run.config.method.iterations + 1):
        yield from (run.stages.result(f"{i} truth") or {}).items()


def improve(run: Context, iteration: int, versions: Versions, refused: list[str]) -> dict[str, Any]:
    """Post-train the policy on successes of D_real and D_syn+ (Eq. 4).

    A refused task imagines nothing for it, but its real successes stay: all tasks share one policy,
    and it forgets what it no longer sees.
    """
    tasks = [task for task in run.tasks if task not in refused]
    real = list(real_successes(run.reader("real")).ids)
    imagined: list[str] = []
    if run.config.method.kind == "vlaw":
        by_task = accepted_ids(run, versions.reward)
        imagined = [name for task in tasks for name in by_task[task]]
    course = Course(
        "policy",
        iteration,
        versions.policy,
        {"real successes": len(real), "imagined successes": len(imagined)},
    )
    method = run.config.method
    work = partial(
        _policy,
        run.config.policy,
        (run.store_folder("real"), real),
        (run.store_folder("imagined"), imagined),
        _Weighing(
            method.real_share,
            method.advantage_beta,
            _advantages(run, versions.reward) if method.advantage_beta else None,
        ),
    )
    return learn(run, f"{iteration} train policy", course, work, run.config.policy.train)


def _advantages(run: Context, reward_version: int) -> dict[str, float]:
    """Of every labelled real episode and every scored imagined trajectory."""
    real, imagined = run.reader("real"), run.reader("imagined")
    labels = {name: real.label(name) for name in real.ids()}
    score = {name: float(label.success) for name, label in labels.items() if label is not None}
    start = {name: name for name in score}
    if run.config.method.judge == "physics":
        answers = [one.items() for _, one in _truths(run)]
        score |= {name: float(success) for one in answers for name, success in one}
    else:
        verdicts = imagined.verdicts(reward_version).items()
        score |= {name: one.p_yes for name, one in verdicts if not one.error}
    rows = imagined.episodes(score.keys() - start.keys())
    return advantages(score, start | {row.id: row.provenance.parent for row in rows})


def steer(run: Context, iteration: int, versions: Versions) -> dict[str, Any]:
    """Choose the policy's noise anew by SAC on all decisions of D_real (DSRL)."""
    config, store = run.config, run.reader("real")
    real = list(store.ids())
    played = {store.provenance(name).policy_version for name in real}  # a refused one never did
    policies = {
        version: Path(run.checkpoints.open("policy", version).uri) for version in sorted(played)
    }
    course = Course("policy", iteration, versions.policy, {"real episodes": len(real)})
    work = partial(_steer, config.policy, config.method.steering, policies,
                   (run.store_folder("real"), real))  # fmt: skip
    steps = replace(config.policy.train, steps=config.method.steering.steps)
    return learn(run, f"{iteration} train policy", course, work, steps)


def _steer(
    config: PolicyConfig,
    steering: SteeringConfig,
    policies: dict[int, Path],
    real: tuple[Path, list[str]],
    places: Places,
    on_step: OnStep,
) -> TrainResult:
    # Late: its library takes seconds to import, and every learner's process imports this module.
    from learners.steering import SteeringSources, train_steering  # noqa: PLC0415

    sources = SteeringSources(Selection(ReplayStore.open(real[0]), real[1]), policies)
    return train_steering(config, steering, sources, places.out, on_step)


def control(run: Context, version: int, iterations: int) -> dict[str, Any]:
    """The base policy, trained on demonstrations alone for all the loop's policy steps in one."""
    return _clone(run, "train control", version, 0, replace_steps(run.config.policy, iterations))


def clone_demonstrations(run: Context) -> dict[str, Any]:
    """A base policy from fresh weights: behaviour cloning of the demonstrations."""
    return _clone(run, "train base policy", 0, None, run.config.policy)


def _clone(
    run: Context, name: str, version: int, parent: int | None, config: PolicyConfig
) -> dict[str, Any]:
    demos = list(real_successes(run.reader("demos")).ids)
    nothing = (run.store_folder("imagined"), [])
    work = partial(_policy, config, (run.store_folder("demos"), demos), nothing, _Weighing())
    course = Course("policy", version, parent, {"demonstrations": len(demos)})
    return learn(run, name, course, work, config.train)


def replace_steps(config: PolicyConfig, iterations: int) -> PolicyConfig:
    """The same training, ``iterations`` times as long."""
    longer = replace(config.train, steps=config.train.steps * iterations)
    return replace(config, train=longer)


def _policy(
    config: PolicyConfig,
    real: tuple[Path, list[str]],
    imagined: tuple[Path, list[str]],
    weighing: _Weighing,
    places: Places,
    on_step: OnStep,
) -> TrainResult:
    sources = PolicySources(
        Selection(ReplayStore.open(real[0]), real[1]),
        Selection(ReplayStore.open(imagined[0]), imagined[1]) if imagined[1] else None,
        real_share=weighing.real_share,
        beta=weighing.beta,
        advantage=weighing.advantage or {},
    )
    return train_policy(config, sources, places.base, places.state, places.out, on_step)
