"""Processes, nodes and results that are lost while work is spread over them: on two nodes."""

import os
import signal
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster

from cluster.checkpoints import CheckpointFolder
from cluster.collecting import episodes, on_robots
from cluster.context import Context
from cluster.handles import Stall, answer, cluster_has, end, spread, start, up
from configs.run import RunConfig, TaskOverrides
from contracts.errors import StoppedError
from contracts.types import Label, Provenance, Trajectory
from envs.fake import counting_trajectory
from replay.store import ReplayStore
from services.progress import Reporter
from services.replay import ReplayService
from services.stages import Stages

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:lance is not fork-safe"),  # forks of Ray exec at once
]

MB = 2**20


class Worker:
    """Squares numbers. Where ``folder`` holds a file named like the number, it dies or hangs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._strike("unborn", signal.SIGKILL)

    def square(self, number: int) -> int:
        self._strike(f"dies-{number}", signal.SIGKILL)
        self._strike(f"hangs-{number}", signal.SIGSTOP)
        return number * number

    def _strike(self, name: str, deed: signal.Signals) -> None:
        """Each file is one death."""
        for mark in sorted(self._folder.glob(f"{name}-*")):
            try:
                mark.unlink()
            except FileNotFoundError:  # another one was faster
                continue
            os.kill(os.getpid(), deed)

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def frames(self, number: int) -> np.ndarray:
        return np.full(60 * MB, number, np.uint8)

    def total(self, frames: np.ndarray) -> int:
        return int(frames[::MB].sum())


class Robot:
    """Plays one counted episode a call; dies in every first attempt at one of ``fatal``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self, name: str) -> tuple[Trajectory, Label]:
        mark = self._folder / name
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        made_by = Provenance(name, "real", "wipe", iteration=1, seed=0)
        return counting_trajectory(made_by, 12), Label(name, True, "simulator")


@dataclass
class Diary:
    """What a test's ``spread`` has told."""

    losses: list[str] = field(default_factory=list)
    done: dict[int, int] = field(default_factory=dict)
    times: Counter = field(default_factory=Counter)

    def note(self, number: int, result: int) -> None:
        self.done[number] = result
        self.times[number] += 1

    def stall(self, timeout_s: float = 60.0, retries: int = 3, **services: object) -> Stall:
        return Stall("squares", timeout_s, "look", retries, services, self.losses.append)


@pytest.fixture(scope="module")
def two():
    """A head with two CPUs and the smallest object store; tests add and remove a second node."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    head = {"num_cpus": 2, "object_store_memory": 80 * MB, "include_dashboard": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own sockets
        cluster = Cluster(True, head_node_args=head | {"_system_config": quick})
        root = str(Path(__file__).resolve().parents[2])
        ray.init(
            cluster.address,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": root}},
        )
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def add_node(cluster: Cluster, **resources: float):
    node = cluster.add_node(num_cpus=1, resources=resources, object_store_memory=80 * MB)
    cluster.wait_for_nodes()
    return node


def crew(folder: Path, count: int = 2, **options: object) -> tuple[list, object]:
    asked = {"num_cpus": 0.5} | options
    workers = [start(Worker, folder, **asked) for _ in range(count)]
    return workers, lambda: up(start(Worker, folder, **asked), "worker", 20)


def square(worker, number: int):
    return worker.square.remote(number)


def test_a_piece_whose_worker_dies_begins_again_and_every_piece_is_done_once(two, tmp_path):
    """Three of them die before they are born: both of the first, and one that replaces them."""
    for mark in ("dies-3-a", "dies-3-b", "dies-5-a", "unborn-a", "unborn-b", "unborn-c"):
        (tmp_path / mark).touch()
    diary = Diary()
    workers, hire = crew(tmp_path)
    before = list(workers)
    spread(workers, range(8), square, diary.note, diary.stall(), hire)
    assert diary.done == {k: k * k for k in range(8)}
    assert set(diary.times.values()) == {1}
    assert len(diary.losses) == 6
    assert sum("Worker, process " in told for told in diary.losses) >= 3
    assert any("(2 of at most 3)" in told for told in diary.losses)
    assert len(workers) == 2
    assert workers != before
    end(*workers)


def test_a_piece_that_kills_every_worker_ends_the_stage_in_one_line(two, tmp_path):
    for k in range(4):
        (tmp_path / f"dies-1-{k}").touch()
    diary = Diary()
    workers, hire = crew(tmp_path, count=1)
    with pytest.raises(StoppedError, match=r"squares: Worker, process \d+ on .*lost 2 times. look"):
        spread(workers, [1], square, diary.note, diary.stall(retries=1), hire)
    assert len(diary.losses) == 1
    assert len(list(tmp_path.iterdir())) == 2  # two attempts, and no third
    end(*workers)


def test_a_worker_that_cannot_be_made_says_why(two, tmp_path):
    (worker,), hire = crew("not a folder", count=1)
    stall = Diary().stall(retries=0)
    with pytest.raises(StoppedError, match=r"could not start: .*'str' object has no attribute"):
        spread([worker], [1], square, Diary().note, stall, hire)
    end(worker)


def test_silence_names_the_service_that_hangs(two, tmp_path):
    """Both hang. Whoever only waits for a service is not to be blamed; what hangs is ended."""
    (tmp_path / "hangs-1-a").touch()
    diary = Diary()
    (service,), _ = crew(tmp_path, count=1, num_cpus=0)
    workers, hire = crew(tmp_path, count=1)
    answer(workers[0].square.remote(2))
    stall = diary.stall(timeout_s=0.5, store=service)
    with pytest.raises(StoppedError, match=r"nothing ended for 0.5 s; look. The same command"):
        spread(workers, [1], square, diary.note, stall, hire)
    (tmp_path / "hangs-7-a").touch()
    service.square.remote(7)
    stalled = stall.error()
    assert "nothing ended for 0.5 s; the store does not answer" in str(stalled)
    end(*workers, service)


def test_a_result_larger_than_the_object_store_has_room_for_is_spilled(two, tmp_path):
    """Four times 60 MB are under way in a store of 80 MB."""
    workers, _ = crew(tmp_path)
    made = [workers[0].frames.remote(k) for k in (1, 2, 3, 4)]
    totals = [answer(workers[1].total.remote(frames)) for frames in made]
    assert totals == [60, 120, 180, 240]
    end(*workers)


def test_work_of_a_dead_node_moves_and_a_missing_resource_is_named(two, tmp_path):
    node = add_node(two, robot=2)
    diary = Diary()
    workers, _ = crew(tmp_path, resources={"robot": 0.1})
    homes = {answer(worker.node.remote()) for worker in workers}
    assert homes == {node.node_id}
    asked = {"num_cpus": 0.5}

    def begin(worker, number: int):
        """The node dies with a finished result that nobody has fetched yet."""
        made = worker.frames.remote(number)
        if number == 2 and not diary.losses:
            ray.wait([made], fetch_local=False, timeout=30)
            two.remove_node(node, allow_graceful=False)
        return helper.total.remote(made)

    (helper,), _ = crew(tmp_path, count=1, num_cpus=0, max_restarts=-1, max_task_retries=-1)
    answer(helper.square.remote(1))
    hire = lambda: up(start(Worker, tmp_path, **asked), "worker", 30)  # noqa: E731
    spread(workers, [2, 3], begin, diary.note, diary.stall(timeout_s=90), hire)
    assert diary.done == {2: 120, 3: 180}
    assert set(diary.times.values()) == {1}
    assert len(diary.losses) >= 1
    assert {answer(worker.node.remote()) for worker in workers} != homes
    with pytest.raises(StoppedError, match="the robot did not start within 1 s") as gone:
        up(start(Worker, tmp_path, resources={"robot": 1}), "robot", 1)
    assert "The cluster has" in str(gone.value)
    assert "2 CPU" in str(gone.value)
    assert "(1 nodes are gone)" in str(gone.value)
    assert cluster_has() in str(gone.value)
    end(*workers, helper)


@pytest.fixture
def run(two, tmp_path):
    config = RunConfig(task={"book": TaskOverrides()})
    config.robot.resource, config.robot.count = "CPU", 1
    folder = tmp_path / "stores" / "real"
    replay = start(ReplayService, {"real": folder}, num_cpus=0)
    answer(replay.counts.remote())
    with Reporter(tmp_path) as reporter:
        stages, checkpoints = Stages(tmp_path / "stages"), CheckpointFolder(tmp_path / "c")
        yield Context(config, tmp_path, ["book"], stages, reporter, checkpoints, replay)
    end(replay)


@pytest.mark.parametrize("kind", ["mujoco", "droid"])
def test_only_a_simulated_robot_is_started_again(run, tmp_path, kind):
    run.config.robot.kind = kind
    run.config.robot.resource, run.config.cluster.worker_cpus = "node:__internal_head__", 0.0
    run.config.robot.count = 1
    began = time.monotonic()
    with run.reporter.stage("1 collect", 2, "episodes") as bar:
        robot, work = (Robot, tmp_path), episodes(run, ["a", "b"], "real")
        if kind == "mujoco":
            on_robots(run, robot, work, bar)
        else:
            said = r"1 collect: Robot, process \d+ on .*, died. It is not started again by itself: "
            with pytest.raises(StoppedError, match=said + "look at the robot, then run the same"):
                on_robots(run, robot, work, bar)
    assert time.monotonic() - began < 60
    stored = ReplayStore.open(tmp_path / "stores" / "real").ids()
    assert stored == (["a", "b"] if kind == "mujoco" else [])
