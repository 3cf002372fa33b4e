"""What must stand before the first iteration: base checkpoints under the run's own versions."""

from typing import Any

from cluster import learning
from cluster.checkpoints import Kind, base_folder
from cluster.context import Context
from services.stages import read_json

PRETRAINED = "pretraining.json"  # beside committed weights: the command and data that made them


def publish_bases(run: Context) -> dict[str, Any]:
    """Publish what the config gives as version 0, so that later versions have a parent.

    A policy from scratch is first cloned from the demonstrations, because somebody has to act in
    iteration 1. A world model or reward model from scratch begins with D_real as version 1.
    """
    config = run.config
    cloned = {}
    if config.policy.checkpoint == "scratch":
        cloned = learning.clone_demonstrations(run)
    else:
        _publish(run, "policy", config.policy.checkpoint)
    if config.method.kind == "vlaw":
        _publish(run, "world_model", config.world_model.checkpoint)
        _publish(run, "reward", config.reward.checkpoint)
    return {"cloned": cloned}


def _publish(run: Context, kind: Kind, setting: str) -> None:
    source = base_folder(kind, setting)
    if source is None:
        return
    made = source / PRETRAINED
    facts = read_json(made) if made.exists() else {}
    lineage = {"parent": setting, "steps": facts.get("steps", 0), "data": facts.get("data", {})}
    run.checkpoints.publish(kind, 0, source, lineage)
