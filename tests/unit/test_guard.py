"""A task whose D_syn+ is empty or too small does not update the policy (Algorithm 1, line 4)."""

import io

import pytest
from rich.console import Console

from cluster import policy_learning, vlaw
from cluster.checkpoints import CheckpointFolder
from cluster.context import Context, Versions
from cluster.scoring import count_outcomes
from configs.run import MethodConfig, RunConfig, TaskOverrides
from contracts.types import Label, Provenance, Verdict
from envs.fake import counting_trajectory
from replay.store import ReplayStore
from services.progress import Reporter
from services.stages import Stages

NEWEST = Versions(policy=0, world_model=1, reward=1)


@pytest.fixture
def run(tmp_path):
    """Of book two trajectories are accepted, of erase one could not be scored."""
    store = ReplayStore.create_or_open(tmp_path / "stores" / "imagined")
    for task in ("book", "erase"):
        for k in range(3):
            name = f"imagined-1-{task}-{k:05d}"
            parent = f"real-1-{task}-{k % 2:05d}"
            made_by = Provenance(name, "imagined", task, iteration=1, seed=k, parent=parent)
            store.add(counting_trajectory(made_by, 12), None)
    found = {"book-00000": 0.9, "book-00001": 0.81, "book-00002": 0.8, "erase-00000": 0.1}
    verdicts = [Verdict(f"imagined-1-{name}", p_yes, 1.0, 1) for name, p_yes in found.items()]
    nan = float("nan")
    store.add_verdicts([*verdicts, Verdict("imagined-1-erase-00001", nan, nan, 1, "boom")])
    store.close()
    real = ReplayStore.create_or_open(tmp_path / "stores" / "real")
    for k, success in enumerate((True, False, True)):
        made_by = Provenance(f"real-1-book-{k:05d}", "real", "book", iteration=1, seed=k)
        label = Label(made_by.trajectory_id, success, "simulator", "")
        real.add(counting_trajectory(made_by, 12), label)
    real.close()
    config = RunConfig(task={"book": TaskOverrides(), "erase": TaskOverrides()})
    console = Console(file=io.StringIO(), width=200)
    with Reporter(tmp_path, console) as reporter:
        yield Context(
            config, tmp_path, ["book", "erase"], Stages(tmp_path / "stages"), reporter,
            CheckpointFolder(tmp_path / "checkpoints"), replay=None,
        )  # fmt: skip


def test_the_task_that_has_none_is_refused_and_the_other_one_is_not(run):
    (reason,) = vlaw.refusals(run, NEWEST).items()
    assert reason[0] == "erase"
    assert reason[1].startswith("D_syn+ holds 0 trajectories with P('yes') > 0.8, fewer than")
    assert "It has no real success either" in reason[1]


def test_physics_as_the_judge_takes_what_really_succeeds(run):
    """Of the accepted only one does, and of erase one that could not be scored."""
    run.config.method.judge = "physics"
    names = [f"imagined-1-book-0000{k}" for k in range(3)]
    truths = {"book": dict(zip(names, (False, True, False), strict=True))}
    truths["erase"] = {"imagined-1-erase-00001": True}
    run.stages.run("1 truth", lambda: truths)
    found = {"book": {names[1]: 1.0}, "erase": {"imagined-1-erase-00001": 1.0}}
    assert policy_learning.accepted_ids(run, 1) == found
    assert vlaw.refusals(run, NEWEST) == {}
    with pytest.raises(ValueError, match=r"method\.judge=physics.*evaluation\.truth=all"):
        RunConfig(task={"book": TaskOverrides()}, method=MethodConfig(judge="physics"))


def test_too_few_are_as_good_as_none(run):
    run.config.task["book"].min_success = 3
    refused = vlaw.refusals(run, NEWEST)
    assert set(refused) == {"book", "erase"}
    assert "Its real successes (2) stay" in refused["book"]
    run.config.task["book"].min_success = 2
    assert set(vlaw.refusals(run, NEWEST)) == {"erase"}


def test_imagination_that_does_not_follow_reality_may_be_refused(run):
    """Real episode 0 succeeded, and half of what began there is accepted; episode 1 failed, and all
    of it is. Of erase no start was labelled, so nobody can tell."""
    counts = count_outcomes(run, 1, 1)
    assert counts["book"]["starts"] == {"auc": 0.0, "successes": 1, "failures": 1}
    assert counts["erase"]["starts"] == {"auc": None, "successes": 0, "failures": 0}
    assert (counts["book"]["accepted"], counts["erase"]["scoring_error"]) == (2, 1)
    run.stages.run("1 score", lambda: counts)
    assert set(vlaw.refusals(run, NEWEST)) == {"erase"}  # the default asks for no agreement
    run.config.task["book"].min_agreement = run.config.task["erase"].min_agreement = 0.6
    refused = vlaw.refusals(run, NEWEST)
    assert "from the same start: AUC 0.00 (" in refused["book"]
    assert (
        "of 2 starts, below task.book.min_agreement=0.6. Its real successes (2)"
        in (refused["book"])
    )
    assert refused["erase"].startswith("D_syn+ holds 0")


def test_when_no_task_may_update_it_nothing_is_trained(run):
    """Training would need Ray, which is not there."""
    run.config.task["book"].alpha = 0.95
    assert vlaw.improve(run, 1, NEWEST) == NEWEST
    said = run.reporter.console.file.getvalue()
    assert "policy update refused for erase: D_syn+ holds 0" in said
    assert "no task may update the policy: it stays at v0" in said


def test_what_a_refused_task_has_done_stays_among_what_the_shared_policy_learns(run, monkeypatch):
    """All tasks share one policy: without them it forgot the refused one (9 of 20 to 0 of 20)."""
    learned = []
    monkeypatch.setattr(
        policy_learning, "learn", lambda _run, _name, course, *_: learned.append(course) or {}
    )
    run.config.task["book"].min_success = 3
    run.config.task["erase"].alpha = 0.05
    assert vlaw.improve(run, 1, NEWEST).policy == 1
    assert learned[0].data == {"real successes": 2, "imagined successes": 1}


def test_weights_compare_a_trajectory_with_all_from_its_start_and_rejected_ones_too(
    run, monkeypatch
):
    """Start 0: the real success, 0.9 and 0.8 (not accepted), mean 0.9. Start 1: the real failure
    and 0.81, mean 0.405. The one that could not be scored has no part in it."""
    learned = []
    monkeypatch.setattr(
        policy_learning, "learn", lambda _run, _name, _course, work, _: learned.append(work) or {}
    )
    run.config.method.advantage_beta = 0.5
    vlaw.improve(run, 1, NEWEST)
    assert learned[0].args[-1].beta == 0.5
    assert learned[0].args[-1].advantage == pytest.approx({
        "real-1-book-00000": 0.1, "imagined-1-book-00000": 0.0, "imagined-1-book-00002": -0.1,
        "real-1-book-00001": -0.405, "imagined-1-book-00001": 0.405,
        "real-1-book-00002": 0.0, "imagined-1-erase-00000": 0.0,
    })  # fmt: skip


def test_weights_by_physics_where_that_is_the_judge(run, monkeypatch):
    learned = []
    monkeypatch.setattr(
        policy_learning, "learn", lambda _run, _name, _course, work, _: learned.append(work) or {}
    )
    run.config.method.advantage_beta, run.config.method.judge = 0.5, "physics"
    truths = {"imagined-1-book-00000": True, "imagined-1-book-00002": False}
    run.stages.run("1 truth", lambda: {"book": truths})
    vlaw.improve(run, 1, NEWEST)
    found = learned[0].args[-1].advantage
    assert found["imagined-1-book-00000"] == found["real-1-book-00000"] == pytest.approx(1 / 3)
    assert found["imagined-1-book-00002"] == pytest.approx(-2 / 3)
