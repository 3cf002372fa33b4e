"""A run that is stopped, killed and continued ends as the run that nobody disturbed, bit by bit."""

import json
import os
import signal
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.cluster_utils import Cluster

from replay.store import ReplayStore

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(2400)]  # one long fixture

STOPPED = "stopped; the same command continues where it stopped"


def count(run: Path, store: str) -> int:
    folder = run / "stores" / store
    return len(ReplayStore.open(folder).ids()) if folder.exists() else 0


@dataclass
class Disturbance:
    """One run in ``folder``, begun and ended again and again by jobs with these ``arguments``."""

    folder: Path
    arguments: list[str]
    start: Callable[..., Any]
    events: Callable[..., list[dict[str, Any]]]
    marked_by: str

    def job(self, *more: str) -> Any:
        return self.start(self.folder, *self.arguments, *more)

    def begun(self, stage: str) -> bool:
        return stage in {event["stage"] for event in self.events(self.folder, "begin")}

    def count(self, store: str) -> int:
        return count(self.folder, store)

    def steps(self, stage: str) -> int:
        """Of a training, as far as it could be continued."""
        state = self.folder / "training" / stage / "state"
        return max((int(path.name[5:]) for path in state.glob("step-*")), default=0)

    def stop(self, job: Any) -> None:
        job.interrupt()
        assert job.end() == 1, job.output
        assert job.output.splitlines()[-1] == STOPPED
        assert "Traceback" not in job.output
        assert job.vanish() == {}

    def kill_driver(self, job: Any) -> None:
        """As if the machine ran out of memory: nobody says goodbye to Ray."""
        job.process.kill()
        assert job.end() == -signal.SIGKILL

    def while_it_collects(self) -> None:
        job = self.job("robot.count=1")
        job.when(lambda: self.begun("demonstrations"))
        job.strike("ReplayService")
        job.when(lambda: self.begun("evaluate base"))
        job.strike("PolicyServer")
        job.when(lambda: self.begun("1 collect") and self.count("real") >= 1)
        job.strike("RobotProcess", "ReplayService")
        before = self.count("real")
        job.when(lambda: self.count("real") > before)
        self.stop(job)
        assert before < self.count("real") < 6

    def while_it_imagines(self) -> None:
        """Of three workers two fit on the second node only, which loses its power."""
        with two_nodes(self.marked_by) as (address, node, mark):
            job = self.job(f"cluster.address={address}", "each_task.workers=3",
                           "imagination.slots=1", "robot.count=1")  # fmt: skip
            job.mark = mark  # its processes are those of the cluster
            job.when(lambda: self.begun("1 train world model"))
            learners = job.find("RayTrainWorker")
            job.when(lambda: self.steps("1 train world model") >= 2, every_s=0.001)
            for number in learners:  # there are two steps more, and then the last checkpoint
                os.kill(number, signal.SIGKILL)
            job.when(lambda: self.begun("1 calibration"))
            job.strike("ScorerProcess")
            job.when(lambda: self.count("imagined") >= 1)
            job.strike("ImaginationProcess")
            before = self.count("imagined")
            job.when(lambda: self.count("imagined") > before)
            told = self.lost("1 imagine", "imagination worker")
            raylet = node.all_processes["raylet"][0].process
            for child in (*children(raylet.pid), raylet.pid):
                os.kill(child, signal.SIGKILL)
            job.when(lambda: self.lost("1 imagine", "imagination worker") > told)
            before = self.count("imagined")
            job.when(lambda: self.count("imagined") > before)
            self.kill_driver(job)
        assert before < self.count("imagined") < 24

    def lost(self, stage: str, name: str) -> int:
        """How many deaths of ``name`` in a stage were told."""
        told = self.events(self.folder, "lost")
        return sum(e["stage"] == stage and e["message"].startswith(name) for e in told)

    def while_it_trains(self) -> None:
        job = self.job()
        self.wait_for_steps(job)
        job.strike("RayTrainWorker", "StepBoard")
        self.wait_for_steps(job)
        job.strike("TrainController")  # its worker may take another step before it ends, too
        job.when(lambda: "1 train policy" in {e["stage"] for e in self.events(self.folder, "lost")})
        job.when(lambda: self.begun("train control"))
        self.wait_for_steps(job, "train control")
        self.stop(job)
        assert 2 <= self.steps("train control") < 60

    def wait_for_steps(self, job: Any, stage: str = "1 train policy") -> None:
        before = self.steps(stage)
        job.when(lambda: self.steps(stage) > before)


@contextmanager
def two_nodes(marked_by: str) -> Iterator[tuple[str, Any, str]]:
    """The address of a Ray cluster of two nodes on this machine, the second one, and what marks
    their processes."""
    head = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    mark = uuid.uuid4().hex
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        patch.setenv(marked_by, mark)
        warnings.simplefilter("ignore")  # of Ray's own sockets
        cluster = Cluster(True, head_node_args=head | {"resources": {"robot": 2}})
        try:
            node = cluster.add_node(num_cpus=2, object_store_memory=100_000_000)
            cluster.wait_for_nodes()
            yield cluster.address, node, mark
        finally:
            cluster.shutdown()


def children(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(status.parent.name))
        except OSError:  # it ended while this looked
            continue
    return found


@pytest.fixture(scope="module")
def disturbed(start, loop, events, marked_by, tmp_path_factory):
    """The folder of a run of which every kind of process was killed, and that was stopped or lost
    its driver while it collected, imagined and trained, and was continued at once.

    It imagines with three workers on two nodes, then on what is left of them, then on a Ray of its
    own: none of it may show in what comes out.
    """
    folder = tmp_path_factory.mktemp("disturbed") / "run"
    run = Disturbance(folder, loop, start, events, marked_by)
    run.while_it_collects()
    run.while_it_imagines()
    run.while_it_trains()
    job = run.job()
    assert job.end() == 0, job.output
    return run.folder


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


def test_every_loss_of_a_robot_or_a_training_was_told(disturbed, events):
    told = [(event["stage"], event["message"]) for event in events(disturbed, "lost")]
    robots = [stage for stage, message in told if message.startswith("RobotProcess, process ")]
    controllers = [s for s, message in told if message.startswith("TrainController, process ")]
    assert robots == ["1 collect"]
    assert controllers == ["1 train policy"]


def test_no_stage_that_was_done_began_again(disturbed, events):
    begins = [event["stage"] for event in events(disturbed, "begin")]
    twice = {stage for stage in begins if begins.count(stage) > 1}
    assert twice == {"1 collect", "1 imagine", "train control"}
    assert not (disturbed / "training" / "1 train policy").exists()
