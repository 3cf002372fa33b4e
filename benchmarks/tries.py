"""How much does a policy's own noise cost, and how much could selection win?

Plays every start of the simulator several times with other seeds of the policy, at each scale of
its noise, and prints how often it succeeds, at how many starts at least one try does (what
choosing among tries could reach) and at how many every try does. Noise 0 is one plan per picture.

    python benchmarks/tries.py [policy.checkpoint=<folder>] [task=[book,scoop]] \\
        [--noise 1 0] [--starts 20] [--tries 6]
"""

import argparse
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from actors.rollout import EpisodeRequest, run_episode
from cluster.checkpoints import base_folder
from configs import schema
from configs.run import RunConfig
from contracts.protocols import Policy
from contracts.seeds import fold
from contracts.statistics import wilson
from contracts.types import ActionChunk, Observation
from envs.mujoco.robot import MujocoRobot
from models.build import load_policy

FIRST = 5000  # seed of the first start


@dataclass(frozen=True)
class Reseeded:
    """Decides as ``policy`` does with seeds of its own, so that one start can be tried again."""

    policy: Policy
    attempt: int
    version: int = 0

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        return self.policy.act(observations, [fold(seed, "try", self.attempt) for seed in seeds])


@dataclass(frozen=True)
class Work:
    config: RunConfig
    folder: Path
    task: str
    start: int
    attempt: int


@cache
def _robot() -> list[MujocoRobot]:
    torch.set_num_threads(1)
    return []


@cache
def _policy(noise: float) -> list[Policy]:
    return []


def succeeds(work: Work) -> bool:
    config, robots, policies = work.config, _robot(), _policy(work.config.policy.noise)
    if not robots:
        robots.append(MujocoRobot(config.robot))
    if not policies:
        policies.append(load_policy(config.policy, work.folder, 0))
    request = EpisodeRequest(
        f"{work.task}-{work.start}-{work.attempt}",
        work.task,
        0,
        FIRST + work.start,
        config.max_ticks(work.task),
        config.policy.execute,
        config.robot.settle_ticks,
    )
    acting = Reseeded(policies[0], work.attempt)
    run_episode(robots[0], acting, request, robots[0].privileged_success)
    return robots[0].privileged_success()


def rows(
    config: RunConfig, folder: Path, noises: Sequence[float], starts: int, tries: int
) -> Iterator[str]:
    """One line per task and scale of noise."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=spawn) as pool:
        for noise in noises:
            acting = replace(config, policy=replace(config.policy, noise=noise))
            each = tries if noise else 1
            for task in config.task:
                todo = [
                    Work(acting, folder, task, s, k) for s in range(starts) for k in range(each)
                ]
                done = np.array(list(pool.map(succeeds, todo))).reshape(starts, each)
                share = wilson(int(done.sum()), done.size)
                yield (
                    f"noise {noise:g}, {task}: {done.sum()} of {done.size} "
                    f"({100 * share.low:.0f}-{100 * share.high:.0f} % if tries were independent); "
                    f"of {starts} starts at least one of {each} tries succeeds at "
                    f"{done.any(axis=1).sum()}, every try at {done.all(axis=1).sum()}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--noise", type=float, nargs="+", default=[1.0, 0.0])
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--tries", type=int, default=6)
    parser.add_argument("overrides", nargs="*", help="of the run's config; before the options")
    asked = parser.parse_args()
    schema.register()
    try:
        with initialize_config_dir(str(Path(__file__).parents[1] / "configs"), version_base=None):
            config = schema.to_run(compose("run", ["task=[book,scoop,draw]", *asked.overrides]))
        folder = base_folder("policy", config.policy.checkpoint)
    except (ValueError, HydraException) as error:
        parser.error(str(error))
    if folder is None:
        parser.error("policy.checkpoint=scratch has no weights to play: name a folder")
    for line in rows(config, folder, asked.noise, asked.starts, asked.tries):
        print(line, flush=True)


if __name__ == "__main__":
    main()
