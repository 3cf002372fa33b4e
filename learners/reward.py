"""Trains the reward model on labelled real trajectories, whole episodes of which judge it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from configs.reward import RewardConfig
from contracts.constants import NO_VERSION
from contracts.protocols import RewardModel
from contracts.seeds import fold
from contracts.types import Clip, Score
from learners.audited import LabelledEpisodes, RewardSources
from learners.loop import OnStep, TrainResult, shard, train
from learners.selection import Episodes, Selection, commit, my_share, save_weights, step_rng
from learners.validation import Validation
from models.build import build_reward, load_reward
from models.interfaces import RewardBatch, TrainableReward
from replay.codec import EpisodeRow
from replay.store import clip_indices

STATISTICS_BATCH = 64
TRIM = 0.25  # of an episode that may be missing from a clip's beginning
LINGER = 0.5  # share of successes whose last frame is shown on for longer
CUT_RANGE = (0.3, 0.6)  # of a success: shown up to there it is not one yet
LEAST = 1e-6  # probability: a score is a float32's, and P('no') a difference of two


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
    successes end early; of the "no" clips, ``reward.swap_share`` are successes with another task's
    instruction and ``reward.clip_share`` successes that are cut before completion, where the ending
    shows when that was. What cannot be made is left to the other kinds.

    Raises:
        ValueError: an episode has no label, or no "yes" or no "no" can be made.
    """

    def __init__(self, sources: RewardSources, cfg: RewardConfig) -> None:
        self._cfg = cfg
        self._episodes = LabelledEpisodes(sources)
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
        swap, clip = self._cfg.swap_share, self._cfg.clip_share
        ways = [
            (1 - swap - clip, self._failure, bool(self._failures)),
            (swap, self._swapped, len(self._tasks) > 1 and bool(self._successes)),
            (clip, self._cut_short, bool(self._ended)),
        ]
        possible = [(share, make) for share, make, can in ways if can and share > 0]
        total = sum(share for share, _ in possible)
        return [(share / total, make) for share, make in possible]

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


class HeldOut:
    """The negative log-likelihood of whole episodes that no batch shows, clips as they are scored.

    Both outcomes count alike, however many there are of each.
    """

    def __init__(self, selection: Selection, cfg: RewardConfig) -> None:
        self._episodes = Episodes(selection)
        self._cfg = cfg

    def nll(self, model: RewardModel) -> float:
        """Mean of -log P(right answer), in nats: over successes, over failures, and of the two."""
        losses: dict[bool, list[float]] = {True: [], False: []}
        rows = self._episodes.rows
        for row, score in zip(rows, self._scores(model), strict=True):
            losses[_success(row)].append(-math.log(_right(score, _success(row))))
        return sum(sum(side) / len(side) for side in losses.values()) / len(losses)

    def _scores(self, model: RewardModel) -> Iterator[Score]:
        rows, size = self._episodes.rows, self._cfg.max_batch
        picks = [clip_indices(row.num_frames, self._cfg.num_frames) for row in rows]
        for start in range(0, len(rows), size):
            part = range(start, min(start + size, len(rows)))
            frames = self._episodes.frames([(row, picks[row]) for row in part])
            yield from model.score(
                [
                    Clip(images, picks[row], rows[row].instruction)
                    for images, row in zip(frames, part, strict=True)
                ]
            )


def _right(score: Score, success: bool) -> float:
    """Probability of the right answer; what rounding may have made zero is not."""
    return max(score.p_yes if success else score.mass - score.p_yes, LEAST)


def apart(labelled: Selection, cfg: RewardConfig) -> tuple[Selection, Selection]:
    """Split labelled episodes into those to train on and those to stop by.

    ``reward.validation.share`` of each outcome of each task, rounded; which ones follows from the
    seed. Nothing is kept apart where that would leave either side without an outcome.
    """
    groups: dict[tuple[str, bool], list[str]] = {}
    for row in Episodes(labelled).rows:
        groups.setdefault((row.provenance.task, _success(row)), []).append(row.id)
    judges: dict[bool, list[str]] = {True: [], False: []}
    for (_, success), names in groups.items():
        order = sorted(names, key=lambda name: fold(cfg.train.seed, "reward validation", name))
        judges[success] += order[: min(round(cfg.validation.share * len(names)), len(names) - 1)]
    chosen = {*judges[True], *judges[False]} if judges[True] and judges[False] else set[str]()
    kept = [name for name in labelled.ids if name not in chosen]
    return replace(labelled, ids=kept), replace(labelled, ids=sorted(chosen))


def train_reward(
    cfg: RewardConfig,
    labelled: RewardSources,
    base_folder: Path | None,
    state_dir: Path,
    out_folder: Path,
    on_step: OnStep,
) -> TrainResult:
    """Train from the weights in ``base_folder`` (None: fresh ones) and write ``out_folder``.

    Give only what ``selection.held_out`` keeps for training: the others calibrate. With a
    ``reward.validation.share`` the weights are those of the lowest likelihood loss on real episodes
    that are kept out, and training may end early. Called again after a crash it continues at the
    last checkpoint in ``state_dir``.

    Raises:
        ValueError: labels are missing or one-sided, or the folders belong to something else.
        DivergedError: the loss is not finite.
    """
    kept, judges = apart(labelled.real, cfg)
    data = RewardData(replace(labelled, real=kept), cfg)
    model = _start(cfg, base_folder, data)
    validation = None
    if judges.ids:
        measure = partial(HeldOut(judges, cfg).nll, model)
        validation = Validation(cfg.validation.every, measure, cfg.validation.patience)
    result = train(model, data.sample, cfg.train, state_dir, on_step, validation)
    if shard()[0] == 0:
        commit(save_weights(model, out_folder), out_folder)
    return replace(result, numbers={"validation episodes": float(len(judges.ids))})


def _start(cfg: RewardConfig, base_folder: Path | None, data: RewardData) -> TrainableReward:
    if base_folder is not None:
        return load_reward(cfg, base_folder, NO_VERSION)
    model = build_reward(cfg, cfg.train.seed)
    model.fit_statistics(data.statistics())
    return model
