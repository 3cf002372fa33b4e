"""Trains the reward model on labelled real trajectories and calibrates it on held-out ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.reward import RewardConfig
from contracts.constants import NO_VERSION
from contracts.protocols import RewardModel
from contracts.types import Clip, Score
from learners.loop import OnStep, TrainResult, shard, train
from learners.selection import Episodes, Selection, commit, my_share, save_weights, step_rng
from models.build import build_reward, load_reward
from models.interfaces import RewardBatch, TrainableReward
from replay.codec import EpisodeRow

STATISTICS_BATCH = 64
TRIM = 0.25  # of an episode that may be missing from a clip's beginning
LINGER = 0.5  # share of successes whose last frame is shown on for longer
SWAP, CUT = 0.2, 0.2  # shares of the "no" clips made from successes, where that is possible
CUT_RANGE = (0.3, 0.6)  # of a success: shown up to there it is not one yet


@dataclass(frozen=True, slots=True)
class _Pick:
    """One clip to show: frames ``index`` of episode ``row``, which run to time ``times``."""

    row: int
    index: tuple[int, ...]
    times: tuple[int, ...]
    instruction: str
    success: bool


class RewardData:
    """Labelled clips, half "yes" and half "no", tasks equally often.

    P('yes') carries the odds of its training set, so an unbalanced one moves the threshold. Each
    outcome is drawn from the tasks that have it. Against shortcuts (VLAW reference, RoboReward):
    beginnings are trimmed; the end of a success lingers up to the longest episode of its task and
    a failure is cut short, so that length does not tell them apart as it does on the robot, where
    successes end early; some "no" clips are successes with another task's instruction, or cut
    before completion where the ending shows when that was.

    Raises:
        ValueError: an episode has no label, or no "yes" or no "no" can be made.
    """

    def __init__(self, selection: Selection, cfg: RewardConfig) -> None:
        self._cfg = cfg
        self._episodes = Episodes(selection)
        self._rows = self._episodes.rows
        missing = [row.id for row in self._rows if row.label is None]
        if missing:
            raise ValueError(f"{len(missing)} episodes carry no label, such as {missing[0]!r}")
        self._tasks = sorted({row.provenance.task for row in self._rows})
        self._successes = self._by_task(success=True)
        self._failures = self._by_task(success=False)
        self._longest = {
            task: max(row.num_frames for row in self._rows if row.provenance.task == task)
            for task in self._tasks
        }
        self._ended = self._by_task(success=True, ending="done")
        self._denials = self._ways_to_deny()
        if not self._successes or not self._denials:
            yes = sum(map(len, self._successes.values()))
            raise ValueError(
                f"{yes} successes among {len(self._rows)} labelled episodes: the reward model "
                "needs both outcomes; collect more rollouts (task.<name>.rollouts)"
            )

    def sample(self, step: int) -> RewardBatch:
        """This process's share of the batch of one step."""
        picks = self._draw("reward", step, self._cfg.train.batch)
        return self._batch(picks[my_share(self._cfg.train.batch)])

    def statistics(self) -> RewardBatch:
        """A batch for normalisation, equal in every process."""
        return self._batch(self._draw("reward statistics", 0, STATISTICS_BATCH))

    def _by_task(self, success: bool, ending: str = "") -> dict[str, list[int]]:
        """Rows of one outcome by task; with ``ending``, those that ended so."""
        groups: dict[str, list[int]] = {}
        for index, row in enumerate(self._rows):
            if _success(row) == success and row.ending.startswith(ending):
                groups.setdefault(row.provenance.task, []).append(index)
        return groups

    def _ways_to_deny(self) -> list[tuple[float, Callable[[np.random.Generator], "_Pick"]]]:
        """How "no" clips can be made from these episodes, with shares that add up to 1."""
        ways = [
            (1 - SWAP - CUT, self._failure, bool(self._failures)),
            (SWAP, self._swapped, len(self._tasks) > 1 and bool(self._successes)),
            (CUT, self._cut_short, bool(self._ended)),
        ]
        total = sum(share for share, _, possible in ways if possible)
        return [(share / total, make) for share, make, possible in ways if possible]

    def _draw(self, stream: str, step: int, count: int) -> list[_Pick]:
        rng = step_rng(self._cfg.train.seed, stream, step)
        picks = [self._yes(rng) if i % 2 == 0 else self._no(rng) for i in range(count)]
        return [picks[i] for i in rng.permutation(count)]

    def _yes(self, rng: np.random.Generator) -> _Pick:
        row = _choose(rng, self._successes)
        last = self._rows[row].num_frames - 1
        end = last
        if rng.random() < LINGER:
            end = int(rng.integers(last, self._longest[self._rows[row].provenance.task]))
        return self._pick(rng, row, end, self._rows[row].instruction, True)

    def _no(self, rng: np.random.Generator) -> _Pick:
        way = rng.choice(len(self._denials), p=[share for share, _ in self._denials])
        return self._denials[way][1](rng)

    def _swapped(self, rng: np.random.Generator) -> _Pick:
        row = _choose(rng, self._successes)
        task = self._rows[row].provenance.task
        others = [r.instruction for r in self._rows if r.provenance.task != task]
        other = others[rng.integers(len(others))]
        return self._pick(rng, row, self._rows[row].num_frames - 1, other, False)

    def _cut_short(self, rng: np.random.Generator) -> _Pick:
        row = _choose(rng, self._ended)
        end = int(rng.uniform(*CUT_RANGE) * (self._rows[row].num_frames - 1))
        return self._pick(rng, row, end, self._rows[row].instruction, False)

    def _failure(self, rng: np.random.Generator) -> _Pick:
        row = _choose(rng, self._failures)
        last = self._rows[row].num_frames - 1
        end = int(rng.integers(last // 2, last + 1))
        return self._pick(rng, row, end, self._rows[row].instruction, False)

    def _pick(
        self, rng: np.random.Generator, row: int, end: int, instruction: str, success: bool
    ) -> _Pick:
        """Evenly spaced frames from a random beginning to ``end``, the episode's last held on."""
        last = self._rows[row].num_frames - 1
        start = int(rng.uniform(0, TRIM) * min(end, last))
        times = np.linspace(start, end, self._cfg.num_frames).round().astype(int)
        index = np.minimum(times, last)
        return _Pick(row, tuple(index.tolist()), tuple(times.tolist()), instruction, success)

    def _batch(self, picks: Sequence[_Pick]) -> RewardBatch:
        frames = self._episodes.frames([(pick.row, pick.index) for pick in picks])
        clips = [
            Clip(images, pick.times, pick.instruction)
            for images, pick in zip(frames, picks, strict=True)
        ]
        return RewardBatch(clips, np.array([pick.success for pick in picks]))


def _success(row: EpisodeRow) -> bool:
    return row.label is not None and row.label.success


def _choose(rng: np.random.Generator, groups: dict[str, list[int]]) -> int:
    """A task, then one of its episodes."""
    names = sorted(groups)
    group = groups[names[rng.integers(len(names))]]
    return group[rng.integers(len(group))]


def train_reward(
    cfg: RewardConfig,
    labelled: Selection,
    base_folder: Path | None,
    state_dir: Path,
    out_folder: Path,
    on_step: OnStep,
) -> TrainResult:
    """Train from the weights in ``base_folder`` (None: fresh ones) and write ``out_folder``.

    Give only what ``selection.held_out`` keeps for training. Called again after a crash it
    continues at the last checkpoint in ``state_dir``.

    Raises:
        ValueError: labels are missing or one-sided, or the folders belong to something else.
        DivergedError: the loss is not finite.
    """
    data = RewardData(labelled, cfg)
    model = _start(cfg, base_folder, data)
    result = train(model, data.sample, cfg.train, state_dir, on_step)
    if shard()[0] == 0:
        commit(save_weights(model, out_folder), out_folder)
    return result


def _start(cfg: RewardConfig, base_folder: Path | None, data: RewardData) -> TrainableReward:
    if base_folder is not None:
        return load_reward(cfg, base_folder, NO_VERSION)
    model = build_reward(cfg, cfg.train.seed)
    model.fit_statistics(data.statistics())
    return model


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts at one threshold; "accepted" is P('yes') > alpha, strictly (Eq. 3)."""

    alpha: float
    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far P('yes') can be trusted. ``auc`` is NaN where one outcome is absent."""

    p_yes: tuple[float, ...]
    success: tuple[bool, ...]
    mass: float  # mean P('yes') + P('no'): far below 1 the prompt is not understood
    auc: float
    sweep: tuple[Confusion, ...]

    @property
    def n(self) -> int:
        return len(self.p_yes)


def calibrate(
    model: RewardModel,
    clips: Sequence[Clip],
    labels: Sequence[bool],
    alphas: Sequence[float],
    batch: int = 16,
) -> Calibration:
    """Score labelled clips and count at every threshold of ``alphas``, in their order.

    Raises:
        ValueError: there are not as many labels as clips.
    """
    if len(clips) != len(labels):
        raise ValueError(f"{len(clips)} clips and {len(labels)} labels: give one label per clip")
    scores: list[Score] = []
    for start in range(0, len(clips), batch):
        scores += model.score(clips[start : start + batch])
    p_yes, success = np.array([s.p_yes for s in scores]), np.array(labels, bool)
    return Calibration(
        p_yes=tuple(p_yes.tolist()),
        success=tuple(success.tolist()),
        mass=float(np.mean([s.mass for s in scores])) if scores else float("nan"),
        auc=_auc(p_yes, success),
        sweep=tuple(_confusion(p_yes, success, alpha) for alpha in alphas),
    )


def _confusion(p_yes: np.ndarray, success: np.ndarray, alpha: float) -> Confusion:
    yes = p_yes > alpha
    return Confusion(
        alpha,
        true_positive=int(np.sum(yes & success)),
        false_positive=int(np.sum(yes & ~success)),
        false_negative=int(np.sum(~yes & success)),
        true_negative=int(np.sum(~yes & ~success)),
    )


def _auc(p_yes: np.ndarray, success: np.ndarray) -> float:
    """Chance that a random success scores above a random failure, ties half (Mann-Whitney U)."""
    if success.all() or not success.any():
        return float("nan")
    margin = p_yes[success][:, None] - p_yes[~success]
    return float(np.mean((np.sign(margin) + 1) / 2))
