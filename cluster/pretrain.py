"""Trains the base models of the embedded scale from scripted demonstrations: ``job=pretrain``."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster import learning
from cluster.calibration import calibration
from cluster.checkpoints import BASE, Kind
from cluster.collecting import demonstrations, evaluate, play
from cluster.context import Context, Versions
from cluster.setup import PRETRAINED
from models.embedded.policy import EmbeddedPolicy
from models.embedded.reward import EmbeddedReward
from models.embedded.world_model import EmbeddedWorldModel
from services.stages import fingerprint, write_json

Embedded = EmbeddedPolicy | EmbeddedWorldModel | EmbeddedReward
FIRST_LOSSES = 3  # kept beside the weights, so that a test can retrain this much and compare


def base_models(run: Context) -> None:
    """Demonstrations and noisy play in, three base models out, in ``models/embedded/base``.

    Deterministic from the seed on one machine. The policy clones the demonstrations; the world
    model learns from these and from the play, whose failures it needs; the reward model learns
    from the play's labels.

    Raises:
        ValueError: the config would start from weights that exist.
    """
    config = run.config
    for flag in ("policy", "world_model", "reward"):
        setting = asdict(config)[flag]["checkpoint"]
        if setting != "scratch":
            raise ValueError(
                f"job=pretrain makes the base: use {flag}.checkpoint=scratch, not {setting}"
            )
    stage = run.stages.run
    stage("demonstrations", lambda: demonstrations(run))
    stage("1 collect", lambda: play(run))
    stage("base", lambda: {"cloned": learning.clone_demonstrations(run)})
    stage("evaluate base", lambda: evaluate(run, "base", 0))
    stage("1 train world model", lambda: learning.dream(run, 1, Versions()))
    stage("1 replay quality", lambda: learning.replay_quality(run, 1))
    stage("1 train reward", lambda: learning.judge(run, 1, Versions()))
    stage("1 calibration", lambda: calibration(run, 1, "1 calibration"))
    _keep(run, "policy", 0, run.stages.result("base") or {})
    _keep(run, "world_model", 1, run.stages.result("1 train world model") or {})
    _keep(run, "reward", 1, run.stages.result("1 train reward") or {})


def _keep(run: Context, kind: Kind, version: int, result: dict[str, Any]) -> None:
    """Copy a checkpoint to where the code looks for bases, in half precision, with its story."""
    source = Path(run.checkpoints.open(kind, version).uri)
    target = BASE / kind
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("checkpoint.json"))
    _load(run, kind, source).save(target, half=True)
    _load(run, kind, target)  # what cannot be loaded must not be committed
    settings = json.loads((run.folder / "run.json").read_text())["settings"]
    result = result.get("cloned", result)
    config = run.config
    train = {"policy": config.policy, "world_model": config.world_model, "reward": config.reward}
    write_json(
        target / PRETRAINED,
        {
            "command": "make base",
            "settings": fingerprint(settings),
            "seed": run.config.seed,
            "steps": train[kind].train.steps,
            "data": result["data"],
            "full_precision_checksum": result["checksum"],
            "first_losses": result["losses"][:FIRST_LOSSES],
        },
    )


def _load(run: Context, kind: Kind, folder: Path) -> Embedded:
    config = run.config
    match kind:
        case "policy":
            return EmbeddedPolicy.load(config.policy, folder, 0)
        case "world_model":
            return EmbeddedWorldModel.load(config.world_model, folder, 0)
        case "reward":
            return EmbeddedReward.load(config.reward, folder, 0)
