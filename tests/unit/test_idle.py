"""openpi's idle filter on runs that were worked by hand."""

import numpy as np
import pytest

from configs.policy import IdleConfig
from configs.training import TrainConfig
from contracts.types import Provenance
from envs.fake import counting_trajectory
from learners.policy import PolicyData, PolicySources
from learners.selection import Selection
from replay.idle import IdleRule, kept_ranges, kept_ticks
from replay.store import ReplayStore

OPENPI = IdleRule()


def commands(*runs: tuple[str, int]) -> np.ndarray:
    """Runs of ticks: "m" changes joint 2 by 0.5 at every tick, "i" repeats the last command."""
    rows, level = [], 0.0
    for kind, ticks in runs:
        for _ in range(ticks):
            if kind == "m":
                level = 0.5 - level
            rows.append(level)
    velocity = np.full((len(rows), 7), 0.3, np.float32)
    velocity[:, 2] = rows
    return velocity


@pytest.mark.parametrize(
    ("runs", "kept"),
    [
        # The first tick has none before it and counts as moving; the last ten of a run are cut.
        ([("m", 30)], [(0, 20)]),
        ([("m", 20), ("i", 7), ("m", 20)], [(0, 10), (27, 37)]),  # 7 idle ticks go
        ([("m", 20), ("i", 6), ("m", 20)], [(0, 36)]),  # 6 stay
        ([("m", 15), ("i", 7), ("m", 16)], [(22, 28)]),  # 15 moving ticks are too few, 16 are not
        ([("i", 8), ("m", 30)], [(8, 28)]),  # idle: ticks 1-7; tick 0 alone is too short a run
        ([("m", 30), ("i", 20)], [(0, 20)]),
        ([("m", 15)], []),
        ([("i", 40)], []),
        ([], []),
    ],
)
def test_ranges_worked_by_hand(runs, kept):
    velocity = commands(*runs)
    assert kept_ranges(velocity, OPENPI) == kept
    inside = [tick for first, end in kept for tick in range(first, end)]
    assert np.flatnonzero(kept_ticks(velocity, OPENPI)).tolist() == inside


def test_a_run_no_longer_than_the_tail_leaves_nothing():
    assert kept_ranges(commands(("m", 16)), IdleRule(tail=16)) == []
    assert kept_ranges(commands(("m", 16)), IdleRule(tail=15)) == [(0, 1)]


def test_idle_means_that_no_joint_changed_its_command():
    """A constant velocity is idle too, and one joint is enough to move: openpi looks at changes."""
    steady = np.full((40, 7), 0.8, np.float32)
    assert kept_ranges(steady, OPENPI) == []
    steady[:, 6] = np.arange(40) * 0.002
    assert kept_ranges(steady, OPENPI) == [(0, 30)]
    steady[:, 6] = np.arange(40) * 0.0005  # less than 0.001 per tick
    assert kept_ranges(steady, OPENPI) == []


def test_the_defaults_filter_real_recordings_and_no_simulation():
    idle = IdleConfig()
    assert idle.origins == ["recorded"]
    assert IdleRule(idle.still, idle.idle, idle.moving, idle.tail) == OPENPI
    with pytest.raises(ValueError, match=r"policy.idle.origins='simulated' is not one of"):
        IdleConfig(origins=["simulated"])


def test_a_policy_trains_where_a_recorded_arm_moves_and_anywhere_in_others(tmp_path):
    """20 moving ticks, 10 idle, 21 moving: chunks may begin at 0-9, 30-40 and at frames."""
    velocity = commands(("m", 20), ("i", 10), ("m", 21))
    store = ReplayStore.create_or_open(tmp_path)
    for origin in ("recorded", "real"):
        made_by = Provenance(origin, origin, "wipe", iteration=0, seed=0)
        trajectory = counting_trajectory(made_by, len(velocity))
        trajectory.actions[:, :7] = velocity
        store.add(trajectory, None)
    plan = TrainConfig(batch=64)

    def ticks(name: str, idle: IdleConfig) -> set[float]:
        data = PolicyData(PolicySources(Selection(store, [name])), 15, plan, idle)
        return {float(t) for step in range(8) for t in data.sample(step).joint_position[:, 0]}

    assert ticks("recorded", IdleConfig()) == {0, 3, 6, 9, 30, 33, 36, 39}
    assert ticks("real", IdleConfig()) == set(range(0, 51, 3))
    assert ticks("recorded", IdleConfig(origins=[])) == set(range(0, 51, 3))
    with pytest.raises(ValueError, match=r"idle filter leaves no tick .*policy.idle.origins=\[\]"):
        ticks("recorded", IdleConfig(moving=60))
    store.close()
