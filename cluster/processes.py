"""What runs inside the processes that imagine and score: built there, from the run's config."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from actors.imagination import ImaginationSettings, ImaginationStats, ImaginationWorker, Models
from cluster.handles import RemoteQueue
from cluster.metrics import RayMeter
from configs.reward import RewardConfig
from configs.run import RunConfig
from contracts.kinematics import flange_pose
from contracts.protocols import RewardModel, TrajectoryWriter
from contracts.types import Checkpoint, Clip, Score
from models.build import (
    build_reward,
    load_acting_policy,
    load_adapter,
    load_reward,
    load_world_model,
)
from models.device import on_gpu
from services.scoring import RewardScorer


def dreamers(config: RunConfig, policy: Checkpoint, world_model: Checkpoint) -> Models:
    """What an imagination worker imagines with, on the GPU if its process has one."""
    folder, version = Path(world_model.uri), world_model.version
    size = (config.robot.height, config.robot.width)
    actor = load_acting_policy(config.policy, Path(policy.uri), policy.version)
    return Models(
        policy=on_gpu(actor),
        world_model=on_gpu(load_world_model(config.world_model, folder, version, size)),
        adapter=load_adapter(config.world_model, folder),
        kinematics=flange_pose,
    )


SWITCH_S = 0.0005  # the group whose turn it is does not wait 5 ms for the interpreter


class ImaginationProcess:
    """Policy and world model on one GPU share. ``name`` is how its queue knows it."""

    def __init__(
        self,
        name: str,
        settings: ImaginationSettings,
        build: Callable[[], Models],
        queue: RemoteQueue,
    ) -> None:
        queue.hello(name)
        self._name, self._queue = name, queue
        torch.set_num_threads(1)
        sys.setswitchinterval(SWITCH_S)
        self._worker = ImaginationWorker(build(), settings, meter=RayMeter())

    def run(self, sink: TrajectoryWriter) -> ImaginationStats:
        """Work until the queue hands out no more."""
        return self._worker.run(self._name, self._queue, sink)


class ScorerProcess:
    """The reward model, on a GPU if the process has one; callers' clips are scored in batches.

    ``checkpoint=None``: the model that the config builds, before any training.
    """

    def __init__(self, config: RewardConfig, checkpoint: Checkpoint | None) -> None:
        torch.set_num_threads(1)
        self._scorer = RewardScorer(
            lambda: _reward_model(config, checkpoint),
            config.max_batch,
            config.max_wait_s,
            RayMeter(),
        )

    async def score(self, clip: Clip) -> Score:
        return await self._scorer.score(clip)


def _reward_model(config: RewardConfig, checkpoint: Checkpoint | None) -> RewardModel:
    if checkpoint is None:
        return on_gpu(build_reward(config, config.train.seed))
    return on_gpu(load_reward(config, Path(checkpoint.uri), checkpoint.version))
