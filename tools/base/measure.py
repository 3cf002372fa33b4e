"""What the base models are worth: closed loop, recorded poses, play that nobody learned from."""

from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scripted import Scripted, pool

from actors.rollout import EpisodeRequest, run_episode
from configs.run import RunConfig
from contracts.statistics import auc, wilson
from contracts.types import Clip
from envs.mujoco.robot import MujocoRobot
from learners.replay_quality import evaluate_replay
from models.build import load_reward, load_world_model
from models.embedded.policy import EmbeddedPolicy
from replay.store import clip_indices

ALPHA = 0.8
CHUNKS = 5

Order = tuple[RunConfig, Path, str, int]  # weights, task, seed of the start


def measure(config: RunConfig, played: Scripted, folder: Path) -> dict[str, Any]:
    """All that can be said of the three folders in ``folder``."""
    return {
        "policy": success(config, folder / "policy"),
        "world model": _replayed(config, played, folder / "world_model"),
        "reward": _judged(config, played, folder / "reward"),
    }


def success(config: RunConfig, folder: Path) -> dict[str, str]:
    """Successes of ``evaluation.episodes`` starts by task, with the 95 % Wilson interval."""
    first, count = config.evaluation.seed, config.evaluation.episodes
    orders = [(config, folder, t, s) for t in config.task for s in range(first, first + count)]
    with pool() as workers:
        ended = list(workers.map(_episode, orders))
    good = {t: sum(e for o, e in zip(orders, ended, strict=True) if o[2] == t) for t in config.task}
    return {task: _rate(k, count) for task, k in good.items()}


@cache
def _actor(folder: Path) -> tuple[list[MujocoRobot], list[EmbeddedPolicy]]:
    """What this process keeps between episodes; filled by the first."""
    torch.set_num_threads(1)
    return [], []


def _episode(order: Order) -> bool:
    config, folder, task, seed = order
    robots, policies = _actor(folder)
    if not robots:
        robots.append(MujocoRobot(config.robot))
        policies.append(EmbeddedPolicy.load(config.policy, folder, 0))
    robot, execute, settle = robots[0], config.policy.execute, config.robot.settle_ticks
    request = EpisodeRequest(
        f"{task}-{seed}", task, 0, seed, config.max_ticks(task), execute, settle
    )
    run_episode(robot, policies[0], request, robot.privileged_success)
    return robot.privileged_success()


def _replayed(config: RunConfig, played: Scripted, folder: Path) -> dict[str, Any]:
    names = played.ids("play", held_out=True)
    size = (config.robot.height, config.robot.width)
    found = {}
    for steps in (1, 3):
        own = replace(config.world_model.embedded, sampler_steps=steps)
        model = load_world_model(replace(config.world_model, embedded=own), folder, 0, size)
        scores = evaluate_replay(model, [played.trajectory(name) for name in names], CHUNKS)
        found[f"{steps} sampler steps"] = asdict(scores)
    return found


def _judged(config: RunConfig, played: Scripted, folder: Path) -> dict[str, Any]:
    names = played.ids("play", held_out=True)
    reward = load_reward(config.reward, folder, 0)
    p_yes = np.array([reward.score([_clip(config, played, name)])[0].p_yes for name in names])
    truth = np.array([played.label(name).success for name in names])
    accepted = p_yes > ALPHA
    return {
        "episodes": len(names),
        "auc": auc(p_yes, truth),
        "accepted successes": f"{(accepted & truth).sum()}/{truth.sum()}",
        "accepted failures": f"{(accepted & ~truth).sum()}/{(~truth).sum()}",
    }


def _clip(config: RunConfig, played: Scripted, name: str) -> Clip:
    trajectory = played.trajectory(name)
    index = clip_indices(len(trajectory.frames), config.reward.num_frames)
    return Clip(trajectory.frames[list(index)], index, trajectory.instruction)


def _rate(good: int, count: int) -> str:
    interval = wilson(good, count)
    return f"{good}/{count} ({100 * interval.low:.0f}-{100 * interval.high:.0f} %)"
