"""A task that wants so many accepted trajectories: the first ones in the order of the work."""

import itertools

import pytest

from cluster.checkpoints import CheckpointFolder
from cluster.context import Context
from cluster.imagining import _Task, first_accepted
from cluster.policy_learning import accepted_ids
from configs.run import RunConfig, TaskOverrides
from contracts.types import Provenance, Verdict
from envs.fake import counting_trajectory
from replay.store import ReplayStore
from services.progress import Reporter
from services.stages import Stages

NAMES = [f"imagined-1-book-{k:05d}" for k in range(6)]
GOOD = {NAMES[1], NAMES[2], NAMES[4], NAMES[5]}


def verdict(name: str, version: int = 1) -> Verdict:
    return Verdict(name, 0.9 if name in GOOD else 0.1, 1.0, version)


def task(scored, accept: int) -> _Task:
    return _Task(NAMES, None, accept, 0.8, set(NAMES), {name: verdict(name) for name in scored})


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_who_was_quicker_does_not_decide(order):
    """However the verdicts come, the first two accepted ones are 1 and 2."""
    found = task([], 2)
    for k in (*order, 5, 4, 3):
        found.verdicts[NAMES[k]] = verdict(NAMES[k])
        assert first_accepted(found) in ([], NAMES[1:2], NAMES[1:3])
    assert first_accepted(found) == NAMES[1:3]
    assert found.enough()


def test_an_earlier_trajectory_without_a_verdict_may_still_come_first():
    assert first_accepted(task(NAMES[2:], 2)) == []
    assert not task(NAMES[2:], 2).enough()
    assert not task(NAMES[:2], 2).enough()


def test_without_a_wanted_number_all_are_imagined():
    assert not task(NAMES, 0).enough()
    assert task(NAMES, 0).counts() == {"accepted": 4, "rejected": 2, "errors": 0}


def test_a_scoring_error_is_neither_accepted_nor_rejected():
    found = task(NAMES, 2)
    found.verdicts[NAMES[1]] = Verdict(NAMES[1], float("nan"), float("nan"), 1, "boom")
    assert found.counts() == {"accepted": 3, "rejected": 2, "errors": 1}
    assert first_accepted(found) == [NAMES[2], NAMES[4]]


@pytest.mark.parametrize(("accept", "expected"), [(0, sorted(GOOD)), (2, NAMES[1:3]), (3, 3)])
def test_the_policy_learns_from_the_first_accepted_ones(tmp_path, accept, expected):
    """Stored and scored in another order than that of the work, over two iterations."""
    store = ReplayStore.create_or_open(tmp_path / "stores" / "imagined")
    second = [name.replace("imagined-1", "imagined-2") for name in NAMES[:3]]
    for name in (*reversed(NAMES), *second):
        made_by = Provenance(name, "imagined", "book", iteration=int(name[9]), seed=0)
        store.add(counting_trajectory(made_by, 12), None)
    store.add_verdicts([verdict(name) for name in reversed(NAMES)])
    store.add_verdicts([Verdict(name, 0.95, 1.0, 1) for name in second])
    store.close()
    config = RunConfig(task={"book": TaskOverrides(accept=accept)})
    with Reporter(tmp_path) as reporter:
        run = Context(
            config, tmp_path, ["book"], Stages(tmp_path / "stages"), reporter,
            CheckpointFolder(tmp_path / "checkpoints"), replay=None,
        )  # fmt: skip
        found = accepted_ids(run, 1)["book"]
    if expected == 3:
        expected = [NAMES[1], NAMES[2], NAMES[4]]
    assert sorted(found) == [*expected, *(second[:accept] if accept else second)]
