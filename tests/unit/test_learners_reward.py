"""Labelled clips: balanced, true to their label, and no shortcut through an episode's length."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from configs.reward import EmbeddedRewardConfig, RewardConfig, RewardValidationConfig
from configs.training import TrainConfig
from contracts.types import Clip, Label, Provenance, Score
from envs.fake import counting_trajectory
from learners.audited import RewardSources
from learners.reward import HeldOut, RewardData, apart, train_reward
from learners.selection import Selection
from models.build import load_reward
from replay.images import ImageCoding
from replay.store import ReplayStore, StoreOptions

LOSSLESS = StoreOptions(ImageCoding("png"))
Episode = tuple[str, str, int, bool, str]  # id, task, ticks, success, ending


def stored(folder: Path, episodes: list[Episode]) -> Selection:
    """The i-th episode's green channel is i, its red channel the frame's number."""
    store = ReplayStore.create_or_open(folder, LOSSLESS)
    for index, (name, task, ticks, success, ending) in enumerate(episodes):
        made_by = Provenance(name, "real", task, iteration=1, seed=index)
        store.add(counting_trajectory(made_by, ticks, ending), Label(name, success, "simulator"))
    store.close()
    opened = ReplayStore.open(folder, LOSSLESS)
    return Selection(opened, opened.ids())


def data_of(
    folder: Path, episodes: list[Episode], batch: int = 400, swap: float = 0.2, clip: float = 0.2
) -> RewardData:
    train = TrainConfig(batch=batch)
    cfg = RewardConfig(num_frames=4, swap_share=swap, clip_share=clip, train=train)
    return RewardData(RewardSources(stored(folder, episodes)), cfg)


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


@pytest.mark.parametrize(("swap", "clip"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5)])
def test_shares_of_made_failures_are_options(tmp_path, swap, clip):
    """Of 200 "no" clips: swapped, cut, and real failures, each within four deviations of 7."""
    batch = data_of(tmp_path, TWO_TASKS, swap=swap, clip=clip).sample(0)
    own = {0: "do wipe", 4: "do draw"}
    made = [
        "swap" if c.instruction != own[owner(c)] else "clip"
        for c, s in zip(batch.clips, batch.success, strict=True)
        if not s and owner(c) in own
    ]
    found = Counter(made)
    assert (found["swap"] == 0) == (swap == 0)
    assert (found["clip"] == 0) == (clip == 0)
    assert abs(found["swap"] - 200 * swap) < 28
    assert abs(found["clip"] - 200 * clip) < 28


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
        RewardData(RewardSources(Selection(opened, ["x"])), RewardConfig())


@dataclass
class Reading:
    """P('yes') is the last frame's number in 1/100, P('no') half of the rest."""

    version: int = 1
    batches: list[int] = field(default_factory=list)

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        self.batches.append(len(clips))
        p = [shown(clip)[-1] / 100 for clip in clips]
        return [Score(one, one + (1 - one) / 2) for one in p]


def test_held_out_likelihood_by_hand(tmp_path):
    """Whole episodes end at frames 20 (success), 30 30 30 (failures), 10 (success), 15 (failure).

    P(right) is .2 and .1 for "yes", (1 - p) / 2 for "no". Both outcomes count one half.
    """
    judge, model = HeldOut(stored(tmp_path, TWO_TASKS), RewardConfig(max_batch=4)), Reading()
    yes = [-math.log(0.2), -math.log(0.1)]
    no = [-math.log(0.35)] * 3 + [-math.log(0.425)]
    assert judge.nll(model) == pytest.approx((sum(yes) / 2 + sum(no) / 4) / 2)
    assert model.batches == [4, 2]


class Sure:
    """Says yes with all of the probability that a float32 has."""

    version = 1

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        return [Score(1.0, 1.0)] * len(clips)


def test_a_wrong_certainty_is_punished_but_finite(tmp_path):
    found = HeldOut(stored(tmp_path, TWO_TASKS), RewardConfig()).nll(Sure())
    assert found == pytest.approx(-math.log(1e-6) / 2)


def many(task: str, count: int, successes: int) -> list[Episode]:
    return [(f"{task}{k:02d}", task, 12, k < successes, "done") for k in range(count)]


def split(selection: Selection, share: float, seed: int = 0) -> tuple[set[str], set[str]]:
    validation = RewardValidationConfig(share=share)
    cfg = RewardConfig(validation=validation, train=TrainConfig(seed=seed))
    kept, judges = apart(selection, cfg)
    return set(kept.ids), set(judges.ids)


def test_episodes_are_kept_apart_by_task_and_outcome(tmp_path):
    """A quarter of 8 and 4, of 4 and 8: 2 + 1, 1 + 2."""
    selection = stored(tmp_path, [*many("wipe", 12, 8), *many("draw", 12, 4)])
    kept, judges = split(selection, 0.25)
    assert kept | judges == set(selection.ids)
    assert not kept & judges
    groups = Counter(
        (name[:4], int(name[4:]) < {"wipe": 8, "draw": 4}[name[:4]]) for name in judges
    )
    assert groups == {("wipe", True): 2, ("wipe", False): 1, ("draw", True): 1, ("draw", False): 2}
    assert split(selection, 0.25) == (kept, judges)
    assert split(selection, 0.25, seed=1) != (kept, judges)


def test_nothing_is_kept_apart_that_training_needs(tmp_path):
    one_each = stored(tmp_path / "a", many("wipe", 2, 1))
    assert split(one_each, 0.9) == (set(one_each.ids), set())
    one_sided = stored(tmp_path / "b", many("wipe", 9, 8))  # its one failure is needed
    assert split(one_sided, 0.5)[1] == set()
    assert split(one_sided, 0.0)[1] == set()


def test_training_stops_early_and_keeps_the_best_weights(tmp_path):
    """A learning rate far too high: what is kept is the lowest of the measurements."""
    labelled = stored(tmp_path / "store", many("wipe", 12, 6))
    train = TrainConfig(steps=60, batch=4, warmup=0, learning_rate=0.02, device="cpu")
    validation = RewardValidationConfig(share=0.4, every=2, patience=2)
    cfg = RewardConfig(
        num_frames=4, embedded=EmbeddedRewardConfig(width=4), train=train, validation=validation
    )
    state, out = tmp_path / "state", tmp_path / "out"
    found = train_reward(cfg, RewardSources(labelled), None, state, out, lambda step, loss: None)
    values = dict(found.validation)
    assert found.numbers["validation episodes"] == 4
    assert found.steps < 60
    assert values[found.kept_step] == min(values.values())
    assert found.steps == found.kept_step + 4  # two measurements without a new best
    kept = load_reward(cfg, out, version=1)
    judge = HeldOut(apart(labelled, cfg)[1], cfg)
    assert judge.nll(kept) == pytest.approx(values[found.kept_step], rel=1e-5)
