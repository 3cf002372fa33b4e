"""Trains the policy by flow matching on successes of D_real and D_syn (Eq. 4, 7)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from configs.policy import IdleConfig, PolicyConfig
from configs.training import TrainConfig
from contracts.constants import NO_VERSION, NUM_JOINTS, TICKS_PER_FRAME
from learners.advantage import advantage_weights
from learners.loop import OnStep, TrainResult, device_of, shard, train
from learners.selection import (
    Episodes,
    Selection,
    Windows,
    commit,
    my_share,
    save_weights,
    step_rng,
)
from models.build import build_policy, load_policy, see_once
from models.interfaces import PolicyBatch, Rows, TrainablePolicy
from replay.idle import IdleRule, kept_ticks

BLOCK = 512  # windows that are read at once
STATISTICS_BATCH = 512  # windows that a fresh policy's normalisation is fitted on


@dataclass(frozen=True, slots=True)
class PolicySources:
    """What the policy learns from: real successes and, if there are any, accepted imagined ones.

    With ``beta`` > 0 a trajectory weighs exp(A / beta), A being its entry in ``advantage``.
    """

    real: Selection
    imagined: Selection | None = None
    real_share: float = 0.5  # of a batch, where both have trajectories
    beta: float = 0.0
    advantage: Mapping[str, float] = field(default_factory=dict)


def action_window(
    actions: Float32[np.ndarray, "ticks 8"], tick: int, horizon: int
) -> Float32[np.ndarray, "horizon 8"]:
    """The ``horizon`` actions from ``tick`` on; past the end: zero velocity, the last gripper.

    openpi repeats the last action instead, which teaches the arm to drift after the end.
    """
    rows = tick + np.arange(horizon)
    window = actions[np.minimum(rows, len(actions) - 1)].copy()
    window[rows >= len(actions), :NUM_JOINTS] = 0
    return window


class PolicyData:
    """Batches of windows that begin at a frame: as many of every task, and of a task's
    ``real_share`` from real trajectories where it has both kinds. The batch of a step is a function
    of (seed, step) and of which trajectories there are.

    By windows alone a task with few successes would hardly be seen, and the shared policy would
    forget it.

    Raises:
        ValueError: there is no trajectory at all.
    """

    def __init__(
        self,
        sources: PolicySources,
        horizon: int,
        config: TrainConfig,
        idle: IdleConfig | None = None,
    ) -> None:
        self._horizon, self._config = horizon, config
        selections = [sources.real] + ([sources.imagined] if sources.imagined else [])
        parts = [Episodes(selection) for selection in selections]
        shares = [sources.real_share, 1 - sources.real_share]
        windows = [_moving(part, idle or IdleConfig()) for part in parts]
        filled = [(p, w, s) for p, w, s in zip(parts, windows, shares, strict=False) if len(w)]
        if not filled and any(map(len, parts)):
            raise ValueError(
                "the idle filter leaves no tick of the successful trajectories to train the policy "
                "on: they are shorter than policy.idle.moving and policy.idle.tail. Lower those, "
                "or switch it off with policy.idle.origins=[]"
            )
        if not filled:
            raise ValueError(
                "zero successful trajectories to train the policy on; collect more rollouts "
                "(task.<name>.rollouts) or demonstrations (demos.per_task)"
            )
        self._parts = [part for part, _, _ in filled]
        self._numbered = np.concatenate(  # (place, 3): part, episode in it, frame
            [
                np.concatenate([np.full((len(found), 1), part), found], axis=1)
                for part, (_, found, _) in enumerate(filled)
            ]
        )
        self._by_task = self._places([share for _, _, share in filled])
        task = {row.id: row.provenance.task for part in self._parts for row in part.rows}
        self._weight = advantage_weights(sources.advantage, task, sources.beta)

    @property
    def num_windows(self) -> int:
        return len(self._numbered)

    def sample(self, step: int) -> PolicyBatch:
        """This process's share of the batch of one step."""
        return self._batch(self._mine(step))

    def rows(self, step: int) -> Rows:
        """The same windows by their places in ``all``."""
        mine = self._mine(step)
        return Rows(torch.from_numpy(mine), self._weights(self._numbered[mine]))

    def statistics(self) -> PolicyBatch:
        """A large batch for normalisation, equal in every process."""
        return self._batch(self._draw("policy statistics", 0, STATISTICS_BATCH))

    def all(self, block: int) -> Iterator[PolicyBatch]:
        """Every window once, in order, ``block`` of them at a time."""
        for start in range(0, self.num_windows, block):
            yield self._batch(np.arange(start, min(start + block, self.num_windows)))

    def _mine(self, step: int) -> np.ndarray:
        return self._draw("policy", step, self._config.batch)[my_share(self._config.batch)]

    def _places(self, shares: list[float]) -> list[list[tuple[np.ndarray, float]]]:
        """For each task its places in ``all`` by part, with the part's share of the task."""
        named = np.array([self._parts[p].rows[row].provenance.task for p, row, _ in self._numbered])
        parts = self._numbered[:, 0]
        wanted = [part for part, share in enumerate(shares) if share] or [0]
        found = []
        for task in sorted(set(named[np.isin(parts, wanted)])):
            places = [np.flatnonzero((named == task) & (parts == part)) for part in wanted]
            there = [(its, shares[part]) for its, part in zip(places, wanted, strict=True)]
            found.append([(its, share) for its, share in there if len(its)])
        return found

    def _draw(self, stream: str, step: int, count: int) -> np.ndarray:
        """Places in ``all``, in random order."""
        rng = step_rng(self._config.seed, stream, step)
        order = rng.permutation(len(self._by_task))  # who gets what the division leaves over
        drawn = []
        for turn, index in enumerate(order):
            size = len(range(turn, count, len(order)))
            *first, (last, _) = self._by_task[index]
            for places, share in first:
                drawn.append(rng.choice(places, round(size * share)))
                size -= len(drawn[-1])
            drawn.append(rng.choice(last, size))
        return rng.permutation(np.concatenate(drawn))

    def _weights(self, picks: np.ndarray) -> np.ndarray:
        rows = [self._parts[part].rows[episode] for part, episode, _ in picks]
        return np.array([self._weight[row.id] for row in rows], np.float32)

    def _batch(self, places: np.ndarray) -> PolicyBatch:
        picks = self._numbered[places]
        images: list[np.ndarray] = [np.empty(0)] * len(picks)
        for part, episodes in enumerate(self._parts):
            mine = np.flatnonzero(picks[:, 0] == part)
            found = episodes.frames([(int(picks[i, 1]), [int(picks[i, 2])]) for i in mine])
            for index, frame in zip(mine, found, strict=True):
                images[index] = frame[0]
        rows = [self._parts[part].rows[episode] for part, episode, _ in picks]
        ticks = [TICKS_PER_FRAME * int(frame) for frame in picks[:, 2]]
        pairs = list(zip(rows, ticks, strict=True))
        return PolicyBatch(
            images=np.stack(images),
            joint_position=np.stack([row.joint_position[tick] for row, tick in pairs]),
            gripper_position=np.stack([row.gripper_position[tick] for row, tick in pairs]),
            instructions=[row.instruction for row in rows],
            actions=np.stack([action_window(r.actions, tick, self._horizon) for r, tick in pairs]),
            weight=self._weights(picks),
        )


def _moving(episodes: Episodes, idle: IdleConfig) -> Windows:
    """Windows that begin where the arm moves, of the origins that are filtered; all of others."""
    rule = IdleRule(idle.still, idle.idle, idle.moving, idle.tail)
    kept = [
        kept_ticks(row.actions[:, :NUM_JOINTS], rule)
        if row.provenance.origin in idle.origins
        else np.ones(row.num_ticks, bool)
        for row in episodes.rows
    ]
    windows = _with_an_action(episodes)
    starts = [flags[::TICKS_PER_FRAME] for flags in kept]
    return windows[np.concatenate(starts)] if starts else windows


def _with_an_action(episodes: Episodes) -> Windows:
    """Windows that begin before the last tick: the last frame may show the very end."""
    windows = episodes.windows(ahead=0)
    ticks = np.array([row.num_ticks for row in episodes.rows])
    return windows[windows[:, 1] * TICKS_PER_FRAME < ticks[windows[:, 0]]]


def train_policy(
    cfg: PolicyConfig,
    sources: PolicySources,
    base_folder: Path | None,
    state_dir: Path,
    out_folder: Path,
    on_step: OnStep,
) -> TrainResult:
    """Train from the weights in ``base_folder`` (None: fresh ones) and write ``out_folder``.

    Called again after a crash it continues at the last checkpoint in ``state_dir``.

    Raises:
        ValueError: there is nothing to train on, or the folders belong to something else.
        DivergedError: the loss is not finite.
    """
    data = PolicyData(sources, cfg.horizon, cfg.train, cfg.idle)
    policy = _start(cfg, base_folder, data)
    policy.module().to(device_of(cfg.train))
    torch.set_num_threads(cfg.train.threads)
    seen = see_once(cfg, policy, data.all(BLOCK), cfg.train.seed)
    trained, sample = (policy, data.sample) if seen is None else (seen, data.rows)
    result = train(trained, sample, cfg.train, state_dir, on_step)
    if shard()[0] == 0:
        commit(save_weights(policy, out_folder), out_folder)
    return result


def _start(cfg: PolicyConfig, base_folder: Path | None, data: PolicyData) -> TrainablePolicy:
    if base_folder is not None:
        return load_policy(cfg, base_folder, NO_VERSION)
    policy = build_policy(cfg, cfg.train.seed)
    policy.fit_statistics(data.statistics())
    return policy
