"""Stages that train the world model, the reward model and the policy, and measure them."""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cluster.auditing import audit_labels, audited_store
from cluster.checkpoints import Kind, base_folder
from cluster.context import Context, Versions
from cluster.handles import run_once
from cluster.latents import extract, training_ids
from cluster.training import OnStep, fit
from configs.method import SteeringConfig
from configs.policy import PolicyConfig
from configs.reward import RewardConfig
from configs.training import TrainConfig
from configs.world_model import WorldModelConfig
from contracts.types import Checkpoint
from learners.audited import RewardSources
from learners.loop import TrainResult
from learners.policy import PolicySources, train_policy
from learners.replay_quality import evaluate_replay
from learners.reward import train_reward
from learners.selection import Selection, held_out, real_successes
from learners.world_model import WorldModelSources, train_world_model
from models.build import load_world_model
from models.device import on_gpu
from replay.store import ReplayStore


@dataclass(frozen=True, slots=True)
class Places:
    """The folders of one training run."""

    base: Path | None  # weights to begin with; None: fresh ones
    state: Path  # checkpoints for exact resume
    out: Path  # the trained weights


Work = Callable[[Places, OnStep], TrainResult]


@dataclass(frozen=True, slots=True)
class Course:
    """One training: what is made, from which version, and what to write in its lineage."""

    kind: Kind
    version: int
    parent: int | None  # None: the base that the config names
    data: dict[str, int]


def learn(
    run: Context, name: str, course: Course, work: Work, train: TrainConfig
) -> dict[str, Any]:
    """Train, publish the checkpoint with its lineage, and return its losses."""
    folder = run.folder / "training" / name.replace("/", "-")
    parent = _parent(run, course)
    places = Places(parent, folder / "state", folder / "weights")
    with run.reporter.stage(name, train.steps, "steps", course.kind) as bar:
        learner = partial(_remember, work, places)
        result = fit(learner, name.replace("/", "-"), folder, run.config.cluster, bar)
    lineage = {
        "parent": f"{course.kind} v{course.parent}" if course.parent is not None else "",
        "steps": result["kept_step"],
        "data": course.data,
    }
    checkpoint = run.checkpoints.publish(course.kind, course.version, places.out, lineage)
    shutil.rmtree(folder, ignore_errors=True)  # published; only a run that was cut short needs it
    return {"checksum": checkpoint.checksum, "data": course.data} | result


def _remember(work: Work, places: Places, on_step: OnStep) -> dict[str, Any]:
    """Runs in the learner's process; what comes back must be plain values."""
    result = work(places, on_step)
    return {
        "losses": list(result.losses),
        "numbers": dict(result.numbers),
        "validation": [list(measured) for measured in result.validation],
        "kept_step": result.kept_step,
    }


def _parent(run: Context, course: Course) -> Path | None:
    if course.parent is not None:
        return Path(run.checkpoints.open(course.kind, course.parent).uri)
    config = run.config
    settings = {
        "policy": config.policy.checkpoint,
        "world_model": config.world_model.checkpoint,
        "reward": config.reward.checkpoint,
    }
    return base_folder(course.kind, settings[course.kind])


def dream(run: Context, iteration: int, versions: Versions) -> dict[str, Any]:
    """Post-train the world model on all of D_real, failures too, with D_DROID (Eq. 1, 2)."""
    config = run.config.world_model
    wanted = training_ids(run)
    real, droid = wanted["real"], wanted["demos"]
    stores = run.store_folder("real"), run.store_folder("demos")
    work = partial(_world_model, config, stores, (real, droid))
    fresh = versions.world_model == 0 and config.checkpoint == "scratch"
    if config.kind == "ctrl_world" and config.ctrl_world.cache_latents and not fresh:
        parent = run.checkpoints.open("world_model", versions.world_model)
        extract(run, Path(parent.uri), wanted)
    course = Course(
        "world_model",
        iteration,
        None if fresh else versions.world_model,
        {"real episodes": len(real), "D_DROID episodes": len(droid)},
    )
    return learn(run, f"{iteration} train world model", course, work, config.train)


def _world_model(
    config: WorldModelConfig,
    stores: tuple[Path, Path],
    ids: tuple[list[str], list[str]],
    places: Places,
    on_step: OnStep,
) -> TrainResult:
    """``stores`` and ``ids`` are those of D_real and of D_DROID."""
    sources = WorldModelSources(
        Selection(ReplayStore.open(stores[0]), ids[0]),
        Selection(ReplayStore.open(stores[1]), ids[1]) if ids[1] else None,
    )
    return train_world_model(config, sources, places.base, places.state, places.out, on_step)


def replay_quality(run: Context, version: int) -> dict[str, Any]:
    """PSNR and SSIM of a world model on real episodes that no training has seen."""
    store = run.reader("evaluation")
    ids = [i for i in store.ids() if i.startswith(("evaluation-base-", "recorded-"))]
    ids = sorted(ids)[:: max(1, len(ids) // run.config.world_model.replay_episodes)]
    if not ids:
        return {}
    checkpoint = run.checkpoints.open("world_model", version)
    arguments = (run.config.world_model, run.frame_size, checkpoint)
    cluster = run.config.cluster
    with run.reporter.stage(f"{version} replay quality", len(ids), "episodes") as bar:
        bar.hold(cluster.learner_gpus)
        found = run_once(
            _replay_quality,
            (cluster.learner_cpus, cluster.learner_gpus),
            cluster.stall_timeout_s,
            *arguments,
            run.store_folder("evaluation"),
            ids,
        )
        bar.at(len(ids))
    return found


def _replay_quality(
    config: WorldModelConfig,
    size: tuple[int, int],
    checkpoint: Checkpoint,
    store: Path,
    ids: list[str],
) -> dict[str, Any]:
    torch.set_num_threads(1)
    model = on_gpu(load_world_model(config, Path(checkpoint.uri), checkpoint.version, size))
    episodes = ReplayStore.open(store)
    known = [episodes.trajectory(i) for i in ids if episodes.num_frames(i) > 4]
    return asdict(evaluate_replay(model, known, config.replay_chunks)) if known else {}


def judge(run: Context, iteration: int, versions: Versions) -> dict[str, Any]:
    """Post-train the reward model on the labels of D_real, whole episodes held out."""
    config = run.config.reward
    kept, out = held_out(run.reader("real").ids(), config.holdout)
    fresh = versions.reward == 0 and config.checkpoint == "scratch"
    data = {"labelled episodes": len(kept), "held out": len(out)}
    said = audit_labels(run, iteration)
    if said:
        data["audited imagined"] = len(said)
    course = Course("reward", iteration, None if fresh else versions.reward, data)
    work = partial(_reward, config, (run.store_folder("real"), kept), (audited_store(run), said))
    return learn(run, f"{iteration} train reward", course, work, config.train)


def _reward(
    config: RewardConfig,
    real: tuple[Path, list[str]],
    audited: tuple[Path, dict[str, bool]],
    places: Places,
    on_step: OnStep,
) -> TrainResult:
    sources = RewardSources(
        Selection(ReplayStore.open(real[0]), real[1]),
        Selection(ReplayStore.open(audited[0]), list(audited[1])) if audited[1] else None,
        audited[1],
    )
    return train_reward(config, sources, places.base, places.state, places.out, on_step)


def outcomes(run: Context) -> tuple[int, int]:
    """(successes, failures) among the labelled episodes that the reward model may train on."""
    store = run.reader("real")
    kept, _ = held_out(store.ids(), run.config.reward.holdout)
    labels = [label.success for label in map(store.label, kept) if label is not None]
    return sum(labels), len(labels) - sum(labels)


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
    for i in range(1, run.config.method.iterations + 1):
        for task, answers in (run.stages.result(f"{i} truth") or {}).items():
            found[task] |= {name: 1.0 for name, success in answers.items() if success}
    return found


def improve(run: Context, iteration: int, versions: Versions, refused: list[str]) -> dict[str, Any]:
    """Post-train the policy on successes of D_real and D_syn+ (Eq. 4).

    A refused task imagines nothing for it, but its real successes stay: all tasks share one policy,
    and it forgets what it no longer sees.
    """
    tasks = [task for task in run.tasks if task not in refused]
    real = list(real_successes(run.reader("real")).ids)
    imagined: dict[str, float] = {}
    if run.config.method.kind == "vlaw":
        by_task = accepted_ids(run, versions.reward)
        imagined = {name: p for task in tasks for name, p in by_task[task].items()}
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
        (method.real_share, method.advantage_beta),
    )
    return learn(run, f"{iteration} train policy", course, work, run.config.policy.train)


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
    nothing = (run.store_folder("imagined"), {})
    work = partial(_policy, config, (run.store_folder("demos"), demos), nothing, (0.5, 0.0))
    course = Course("policy", version, parent, {"demonstrations": len(demos)})
    return learn(run, name, course, work, config.train)


def replace_steps(config: PolicyConfig, iterations: int) -> PolicyConfig:
    """The same training, ``iterations`` times as long."""
    longer = replace(config.train, steps=config.train.steps * iterations)
    return replace(config, train=longer)


def _policy(
    config: PolicyConfig,
    real: tuple[Path, list[str]],
    imagined: tuple[Path, dict[str, float]],
    balance: tuple[float, float],
    places: Places,
    on_step: OnStep,
) -> TrainResult:
    sources = PolicySources(
        Selection(ReplayStore.open(real[0]), real[1]),
        Selection(ReplayStore.open(imagined[0]), list(imagined[1])) if imagined[1] else None,
        real_share=balance[0],
        beta=balance[1],
        score=dict.fromkeys(real[1], 1.0) | imagined[1],
    )
    return train_policy(config, sources, places.base, places.state, places.out, on_step)
