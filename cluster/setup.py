"""What must stand before the first iteration: base checkpoints under the run's own versions."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError

from cluster import policy_learning
from cluster.checkpoints import MANIFEST, Kind, base_folder, verified
from cluster.context import Context
from configs.policy import PolicyConfig
from configs.reward import RewardConfig
from configs.run import RunConfig
from configs.world_model import WorldModelConfig
from models.build import load_policy, load_reward, load_world_model
from models.remote.policy import OpenpiPolicy
from services.stages import read_json

PRETRAINED = "pretraining.json"  # beside committed weights: the command and data that made them

Part = PolicyConfig | WorldModelConfig | RewardConfig


def check_bases(config: RunConfig) -> None:
    """Refuse bases that would fail minutes later, in another process.

    Small ones are loaded on trial; of large ones the folder must be there, and whole where it is
    another run's checkpoint.

    Raises:
        ValueError: it names the folder and what to give instead.
    """
    if config.policy.kind == "remote":
        _probe(config.policy)
    for kind, part in _parts(config):
        folder = base_folder(kind, part.checkpoint)
        if folder is None:
            continue
        if (folder / MANIFEST).exists():
            verified(folder)
        if part.kind == "embedded":
            _try(config, kind, folder)


def _parts(config: RunConfig) -> Iterator[tuple[Kind, Part]]:
    if config.policy.kind != "remote":
        yield "policy", config.policy
    if config.method.kind == "vlaw" and config.job != "evaluate":
        yield "world_model", config.world_model
        yield "reward", config.reward


def _try(config: RunConfig, kind: Kind, folder: Path) -> None:
    try:
        match kind:
            case "policy":
                load_policy(config.policy, folder, 0)
            case "world_model":
                size = (config.robot.height, config.robot.width)
                load_world_model(config.world_model, folder, 0, size)
            case "reward":
                load_reward(config.reward, folder, 0)
    except SafetensorError as error:
        raise ValueError(
            f"{kind}.checkpoint: {folder} is damaged ({error}). Give another folder"
        ) from error


def publish_bases(run: Context) -> dict[str, Any]:
    """Publish what the config gives as version 0, so that later versions have a parent.

    A policy from scratch is first cloned from the demonstrations, because somebody has to act in
    iteration 1. A world model or reward model from scratch begins with D_real as version 1.
    """
    config = run.config
    cloned = {}
    if config.policy.checkpoint == "scratch":
        cloned = policy_learning.clone_demonstrations(run)
    else:
        publish_policy(run)
    if config.method.kind == "vlaw":
        _publish(run, "world_model", config.world_model.checkpoint)
        _publish(run, "reward", config.reward.checkpoint)
    return {"cloned": cloned}


def publish_policy(run: Context) -> dict[str, Any]:
    """Publish the policy alone: its weights, or which server has them."""
    config = run.config.policy
    if config.kind != "remote":
        _publish(run, "policy", config.checkpoint)
        return {}
    with TemporaryDirectory() as folder:
        policy = OpenpiPolicy(config, 0)
        policy.save(Path(folder))
        policy.close()
        lineage: dict[str, object] = {"parent": config.remote.uri, "steps": 0, "data": {}}
        run.checkpoints.publish("policy", 0, Path(folder), lineage)
    return {}


def _probe(config: PolicyConfig) -> None:
    """Ask the server for one plan before anything starts."""
    policy = OpenpiPolicy(config, 0)
    try:
        policy.probe()
    finally:
        policy.close()


def _publish(run: Context, kind: Kind, setting: str) -> None:
    source = base_folder(kind, setting)
    if source is None:
        return
    made = source / PRETRAINED
    facts = read_json(made) if made.exists() else {}
    lineage = {"parent": setting, "steps": facts.get("steps", 0), "data": facts.get("data", {})}
    run.checkpoints.publish(kind, 0, source, lineage)
