"""The process that replays: one world model, or a baseline, with the networks that measure it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from actors.imagination import ImaginationSettings, ImaginationWorker, Models
from configs.run import RunConfig
from contracts.constants import NEW_FRAMES, NO_VERSION
from contracts.kinematics import flange_pose
from contracts.types import Label, Trajectory, WorkItem
from models.build import (
    build_reward,
    build_world_model,
    load_acting_policy,
    load_adapter,
    load_reward,
    load_world_model,
)
from models.device import on_gpu
from models.interfaces import TrainableReward, TrainableWorldModel
from models.metrics.features import FidFeatures, FvdFeatures
from models.metrics.lpips import Lpips
from models.metrics.replay import Shown
from models.metrics.weights import WeightFile
from replay.store import ReplayStore
from services.judging import (
    Found,
    Networks,
    Part,
    ReplayJudge,
    Show,
    by_model,
    copy_first,
    copy_last,
    show_real,
    start_of,
)
from services.queue import TaskQueue
from services.replay_items import ReplayItem

Kind = Literal["real", "copy first", "copy last", "model"]
BASELINES: dict[Kind, Show] = {
    "real": show_real,
    "copy first": copy_first,
    "copy last": copy_last,
}


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table. A model without a folder has fresh random weights."""

    name: str
    kind: Kind
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Tools:
    """What every variant is measured with; ``files`` are the metrics' weights that were found."""

    store: Path
    files: dict[str, WeightFile]
    has_judge: bool
    judge: Path | None  # a reward model's folder; None: the one that the config builds
    policy: Path | None


class ReplayProcess:
    """Loads at its first call, so that what is wrong with a file ends that call with one message
    and not Ray's attempts to start the process."""

    def __init__(self, config: RunConfig, variant: Variant, tools: Tools) -> None:
        torch.set_num_threads(1)
        self._config, self._variant, self._tools = config, variant, tools

    def judge(self, items: Sequence[ReplayItem]) -> list[Found]:
        """What is measured of every item, in their order."""
        futures = [item for item in items if item.kind == "future"]
        replays = [item for item in items if item.kind != "future"]
        found = dict(zip(replays, self._judge.judge(self._show, replays), strict=True))
        if futures:
            imagined = self._judge.judge(self._imagine, futures)
            found |= dict(zip(futures, imagined, strict=True))
        return [found[item] for item in items]

    @cached_property
    def _judge(self) -> ReplayJudge:
        files = self._tools.files
        networks = Networks(
            lpips=Lpips(files["LPIPS"]) if "LPIPS" in files else None,
            fid=FidFeatures(files["FID"]) if "FID" in files else None,
            fvd=FvdFeatures(files["FVD"]) if "FVD" in files else None,
            reward=self._reward() if self._tools.has_judge else None,
            reward_frames=self._config.reward.num_frames,
        )
        return ReplayJudge(ReplayStore.open(self._tools.store), networks)

    @cached_property
    def _model(self) -> TrainableWorldModel:
        config, size = self._config.world_model, self._frame_size
        folder = self._variant.folder
        if folder is None:
            model = build_world_model(config, size, self._config.replay_eval.seed)
        else:
            model = load_world_model(config, folder, NO_VERSION, size)
        on_gpu(model)
        return model

    @property
    def _frame_size(self) -> tuple[int, int]:
        return self._config.robot.height, self._config.robot.width

    @property
    def _show(self) -> Show:
        if self._variant.kind == "model":
            return by_model(self._model)
        return BASELINES[self._variant.kind]

    def _reward(self) -> TrainableReward:
        config = self._config.reward
        if self._tools.judge is None:
            model = build_reward(config, config.train.seed)
        else:
            model = load_reward(config, self._tools.judge, NO_VERSION)
        on_gpu(model)
        return model

    @cached_property
    def _models(self) -> Models:
        config, folder, policy = self._config, self._variant.folder, self._tools.policy
        if folder is None or policy is None:
            raise ValueError("futures need the folders of a world model and of a policy")
        return Models(
            policy=load_acting_policy(config.policy, policy, NO_VERSION),
            world_model=self._model,
            adapter=load_adapter(config.world_model, folder),
            kinematics=flange_pose,
        )

    def _imagine(self, parts: Sequence[Part]) -> list[Shown]:
        """What the policy makes of each start in the world model."""
        chunks = max(-(-part.item.frames // NEW_FRAMES) for part in parts)
        work = [WorkItem(str(k), start_of(part), 0, part.item.seed) for k, part in enumerate(parts)]
        sink = _Kept({})
        settings = ImaginationSettings(len(parts), chunks)
        ImaginationWorker(self._models, settings).run("futures", TaskQueue(work), sink)
        return [
            sink.trajectories[str(k)].frames[1 : part.item.frames + 1]
            for k, part in enumerate(parts)
        ]


@dataclass(frozen=True, slots=True)
class _Kept:
    """Imagined trajectories stay in memory."""

    trajectories: dict[str, Trajectory]

    def add(self, trajectory: Trajectory, label: Label | None) -> bool:
        self.trajectories[trajectory.id] = trajectory
        return True
