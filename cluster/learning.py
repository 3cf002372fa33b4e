"""How a stage trains a model, and those of the world model and the reward model."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
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
from configs.reward import RewardConfig
from configs.training import TrainConfig
from configs.world_model import WorldModelConfig
from contracts.types import Checkpoint
from learners.audited import RewardSources
from learners.loop import TrainResult
from learners.replay_quality import evaluate_replay
from learners.reward import train_reward
from learners.selection import Selection, held_out
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
