"""Labelled clips: balanced, true to their label, and no shortcut through an episode's length."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from configs.reward import RewardConfig
from configs.training import TrainConfig
from contracts.types import Clip, Label, Provenance, Score
from envs.fake import counting_trajectory
from learners.reward import RewardData, calibrate
from learners.selection import Selection
from replay.images import ImageCoding
from replay.store import ReplayStore, StoreOptions

LOSSLESS = StoreOptions(ImageCoding("png"))
Episode = tuple[str, str, int, bool, str]  # id, task, ticks, success, ending


def data_of(folder: Path, episodes: list[Episode], batch: int = 400) -> RewardData:
    """The i-th episode's green channel is i."""
    store = ReplayStore.create_or_open(folder, LOSSLESS)
    for index, (name, task, ticks, success, ending) in enumerate(episodes):
        made_by = Provenance(name, "real", task, iteration=1, seed=index)
        store.add(counting_trajectory(made_by, ticks, ending), Label(name, success, "simulator"))
    store.close()
    opened = ReplayStore.open(folder, LOSSLESS)
    cfg = RewardConfig(num_frames=4, train=TrainConfig(batch=batch))
    return RewardData(Selection(opened, opened.ids()), cfg)


def owner(clip: Clip) -> int:
    return int(clip.frames[0, 0, 0, 0, 1])


def shown(clip: Clip) -> list[int]:
    """Which frames of the episode the clip shows, read from its pixels."""
    return clip.frames[:, 0, 0, 0, 0].tolist()


TWO_TASKS: list[Episode] = [
    ("a", "wipe", 60, True, "done"),  # 21 frames
    ("b", "wipe", 90, False, "timeout"),  # 31
    ("c", "wipe", 90, False, "timeout"),
    ("d", "wipe", 90, False, "timeout"),
    ("e", "draw", 30, True, "timeout"),  # 11
    ("f", "draw", 45, False, "timeout"),  # 16
]


def test_outcomes_and_tasks_are_drawn_equally_often(tmp_path):
    """Half "yes", exactly. 200 "yes" over two tasks: 100 +- 7 each, though labels are 2 of 6."""
    batch = data_of(tmp_path, TWO_TASKS).sample(0)
    assert int(batch.success.sum()) == 200
    yes = Counter(owner(c) for c, s in zip(batch.clips, batch.success, strict=True) if s)
    assert set(yes) == {0, 4}
    assert abs(yes[0] - 100) < 30
    no = [owner(c) for c, s in zip(batch.clips, batch.success, strict=True) if not s]
    failures = Counter(o for o in no if o in (1, 2, 3, 5))
    # 60 % of 200 are real failures, half of them of the task with one failure
    assert abs(sum(failures.values()) - 120) < 30
    assert abs(failures[5] - 60) < 30
    assert min(failures[i] for i in (1, 2, 3)) > 5


def test_every_clip_is_true_to_its_label(tmp_path):
    """ "yes" shows its own instruction up to the last frame. "no" is a failure, another task's
    instruction, or a success that ended by itself and is cut at 30 to 60 %."""
    batch = data_of(tmp_path, TWO_TASKS).sample(1)
    last = {0: 20, 1: 30, 2: 30, 3: 30, 4: 10, 5: 15}
    own = {0: "do wipe", 1: "do wipe", 2: "do wipe", 3: "do wipe", 4: "do draw", 5: "do draw"}
    kinds: Counter[str] = Counter()
    for clip, success in zip(batch.clips, batch.success, strict=True):
        episode, frames = owner(clip), shown(clip)
        assert frames == sorted(frames)
        assert frames[0] <= last[episode] / 4
        if success:
            assert clip.instruction == own[episode]
            assert frames[-1] == last[episode]
            kinds["yes"] += 1
        elif episode in (0, 4) and clip.instruction != own[episode]:
            assert frames[-1] == last[episode]
            kinds["swap"] += 1
        elif episode in (0, 4):
            assert episode == 0  # e ran to its last tick: when it succeeded is not known
            assert 6 <= frames[-1] <= 12
            kinds["cut"] += 1
        else:
            assert clip.instruction == own[episode]
            assert last[episode] // 2 <= frames[-1] <= last[episode]
            kinds["failure"] += 1
    assert kinds["yes"] == 200
    assert min(kinds["swap"], kinds["cut"]) > 15


def test_length_does_not_give_a_success_away(tmp_path):
    """Successes last 21 frames and failures 31; some "yes" clips linger to the failures' time."""
    batch = data_of(tmp_path, TWO_TASKS[:4]).sample(0)
    times = {True: set(), False: set()}
    for clip, success in zip(batch.clips, batch.success, strict=True):
        times[bool(success)].add(clip.frame_index[-1])
        assert shown(clip)[-1] == min(clip.frame_index[-1], {0: 20}.get(owner(clip), 30))
    assert times[True] == set(range(20, 31))
    assert times[False] >= set(range(15, 31))


def test_clips_follow_from_seed_and_step(tmp_path):
    data = data_of(tmp_path, TWO_TASKS, batch=16)
    one, again, other = data.sample(5), data.sample(5), data.sample(6)
    assert [c.frame_index for c in one.clips] == [c.frame_index for c in again.clips]
    assert [c.frame_index for c in one.clips] != [c.frame_index for c in other.clips]
    np.testing.assert_array_equal(one.success, again.success)


def test_no_failure_at_all_still_leaves_something_to_deny(tmp_path):
    """One success that ended by itself: every "no" is that success, cut."""
    batch = data_of(tmp_path, TWO_TASKS[:1], batch=20).sample(0)
    ends = [shown(c)[-1] for c, s in zip(batch.clips, batch.success, strict=True) if not s]
    assert len(ends) == 10
    assert max(ends) <= 12


def test_one_sided_labels_are_refused(tmp_path):
    with pytest.raises(ValueError, match="0 successes among 2 labelled"):
        data_of(tmp_path / "no", TWO_TASKS[1:3])
    with pytest.raises(ValueError, match="1 successes among 1 labelled"):
        data_of(tmp_path / "yes", TWO_TASKS[4:5])  # nothing to swap with, no known end


def test_unlabelled_episode_is_refused(tmp_path):
    store = ReplayStore.create_or_open(tmp_path, LOSSLESS)
    store.add(counting_trajectory(Provenance("x", "imagined", "wipe", 1, 0), 12), None)
    store.close()
    opened = ReplayStore.open(tmp_path, LOSSLESS)
    with pytest.raises(ValueError, match="1 episodes carry no label, such as 'x'"):
        RewardData(Selection(opened, ["x"]), RewardConfig())


@dataclass
class Reading:
    """P('yes') of a clip is written in its first pixel, in 1/100."""

    version: int = 1
    batches: list[int] = field(default_factory=list)

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        self.batches.append(len(clips))
        return [Score(int(c.frames[0, 0, 0, 0, 0]) / 100, 0.5) for c in clips]


def clips_of(percent: Sequence[int]) -> list[Clip]:
    return [Clip(np.full((2, 3, 4, 4, 3), p, np.uint8), (0, 1), "wipe") for p in percent]


def test_calibration_counts_by_hand():
    """Successes score .9 .8 .3, failures .8 .2. Strictly above .8 only the .9 is accepted.

    AUC: of 6 pairs .9 wins 2, .8 wins 1 and ties 1, .3 wins 1: 4.5 / 6.
    """
    model = Reading()
    labels = [True, True, True, False, False]
    found = calibrate(model, clips_of([90, 80, 30, 80, 20]), labels, [0.8, 0.25], batch=2)
    assert model.batches == [2, 2, 1]
    assert found.auc == pytest.approx(0.75)
    assert (found.n, found.mass) == (5, 0.5)
    strict, loose = found.sweep
    assert (strict.true_positive, strict.false_positive) == (1, 0)
    assert (strict.false_negative, strict.true_negative) == (2, 2)
    assert (loose.true_positive, loose.false_positive) == (3, 1)
    assert (loose.false_negative, loose.true_negative) == (0, 1)


def test_calibration_without_one_outcome_has_no_auc():
    assert math.isnan(calibrate(Reading(), clips_of([90, 80]), [True, True], [0.5]).auc)
    empty = calibrate(Reading(), [], [], [0.5])
    assert (empty.n, empty.sweep[0].true_positive) == (0, 0)
    with pytest.raises(ValueError, match="1 clips and 0 labels"):
        calibrate(Reading(), clips_of([90]), [], [0.5])
