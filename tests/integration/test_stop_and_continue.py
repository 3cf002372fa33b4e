"""A run that is stopped, killed and continued ends as the run that nobody disturbed, bit by bit."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from replay.store import ReplayStore

pytestmark = pytest.mark.ray

STOPPED = "stopped; the same command continues where it stopped"


def count(run: Path, store: str) -> int:
    folder = run / "stores" / store
    return len(ReplayStore.open(folder).ids()) if folder.exists() else 0


@pytest.fixture(scope="module")
def disturbed(start, loop, events, tmp_path_factory):
    """Stopped by Ctrl-C while it collects, imagines and trains, then killed, and continued at once.

    It imagines one at a time until a worker is killed and the run stopped, then with two
    workers of three slots: none of it may show in what comes out.
    """
    folder = tmp_path_factory.mktemp("disturbed") / "run"

    def begun(stage: str) -> bool:
        return stage in {event["stage"] for event in events(folder, "begin")}

    def stop(job) -> None:
        job.interrupt()
        assert job.end() == 1, job.output
        assert job.output.splitlines()[-1] == STOPPED
        assert "Traceback" not in job.output
        assert job.vanish() == {}

    job = start(folder, *loop, "robot.count=1")
    job.when(lambda: begun("1 collect") and count(folder, "real") >= 1)
    stop(job)
    assert 1 <= count(folder, "real") < 6

    job = start(folder, *loop, "imagination.slots=1")
    job.when(lambda: begun("1 imagine") and count(folder, "imagined") >= 1)
    workers = [n for n, line in job.living().items() if "ImaginationProcess" in line]
    assert len(workers) == 1
    os.kill(workers[0], signal.SIGKILL)
    before = count(folder, "imagined")
    job.when(lambda: count(folder, "imagined") > before)
    stop(job)
    assert before < count(folder, "imagined") < 24

    state = folder / "training" / "1 train policy" / "state"
    job = start(folder, *loop, "each_task.workers=2", "imagination.slots=3")
    job.when(lambda: bool(list(state.glob("step-*"))))
    stop(job)
    assert 2 <= max(int(path.name[5:]) for path in state.glob("step-*")) < 60

    job = start(folder, *loop)
    job.when(lambda: begun("train control"))
    job.process.kill()  # as if the machine ran out of memory: nobody says goodbye to Ray
    assert job.end() == -signal.SIGKILL

    job = start(folder, *loop)
    assert job.end() == 0, job.output
    return folder


@pytest.mark.parametrize("name", ["demos", "real", "evaluation", "imagined"])
def test_every_trajectory_is_the_one_of_the_undisturbed_run(disturbed, undisturbed, name):
    ours, theirs = (ReplayStore.open(run / "stores" / name) for run in (disturbed, undisturbed))
    assert sorted(ours.ids()) == sorted(theirs.ids())
    for trajectory_id in ours.ids():
        one, other = ours.trajectory(trajectory_id), theirs.trajectory(trajectory_id)
        assert one.provenance == other.provenance
        for part in ("actions", "joint_position", "gripper_position", "frames"):
            np.testing.assert_array_equal(getattr(one, part), getattr(other, part))


def test_every_verdict_is_the_same(disturbed, undisturbed):
    for name in ("real", "imagined"):
        ours, theirs = (ReplayStore.open(run / "stores" / name) for run in (disturbed, undisturbed))
        assert ours.verdicts() == theirs.verdicts()


def test_every_checkpoint_is_the_same(disturbed, undisturbed):
    """The control's, too, and the policy's, whose training went on at its last checkpoint."""
    ours, theirs = (
        {
            (version["kind"], version["version"]): version["checksum"]
            for version in json.loads((run / "report.json").read_text())["lineage"]
        }
        for run in (disturbed, undisturbed)
    )
    assert len(ours) == 5
    assert ours == theirs


def test_no_stage_that_was_done_began_again(disturbed, events):
    begins = [event["stage"] for event in events(disturbed, "begin")]
    twice = {stage for stage in begins if begins.count(stage) > 1}
    assert twice == {"1 collect", "1 imagine", "1 train policy", "train control"}
    assert not (disturbed / "training" / "1 train policy").exists()
