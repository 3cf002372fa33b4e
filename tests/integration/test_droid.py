"""``robot=droid``: a run whose robot is behind the host that stands beside it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from envs.droid.client import DroidRobot
from replay.store import ReplayStore

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def host(tmp_path):
    """A host in front of simulated physics: its address and the folder of its records."""
    records, log = tmp_path / "records", tmp_path / "host.txt"
    command = [sys.executable, "-m", "envs.droid.host", "--backend", "mujoco", "--unattended"]
    command += ["--size", "24x40", "--port", "0", "--records", str(records)]
    (rig := tmp_path / "rig.toml").write_text("[limits]\nlate_s = 5\nclock_jump_s = 60\n")
    command += ["--rig", str(rig)]  # tests beside it take the processor away
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    until = time.monotonic() + 60
    while "robot.address=" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.1)
    yield log.read_text().partition("robot.address=")[2].split()[0], records
    process.terminate()
    assert process.wait(30) == 0, log.read_text()


@pytest.fixture
def flags(tiny, bases, host):
    return [
        *tiny, "job=evaluate", "robot=droid", f"robot.address={host[0]}", "robot.height=24",
        "robot.width=40", "robot.count=1", "task=[book]", f"policy.checkpoint={bases / 'policy'}",
        "evaluation.episodes=2", "each_task.max_ticks=60",
    ]  # fmt: skip


def at_rest(address):
    """Whoever drove is gone: the host goes on, and the arm is held."""
    watcher = DroidRobot(address)
    until = time.monotonic() + 20
    while watcher.health()["doing"] != "idle":
        assert time.monotonic() < until, watcher.health()
        time.sleep(0.1)
    watcher.close()


def endings(records, name):
    told = [json.loads(file.read_text()) for file in records.glob(f"{name}.*/episode.json")]
    return sorted(one["ending"] for one in told)


@pytest.mark.long
@pytest.mark.parametrize("lost", ["PolicyServer", "RobotProcess", "raylet"])
def test_whatever_else_is_lost_in_an_episode_the_arm_is_held_and_every_episode_is_there(
    start, flags, host, tmp_path, lost
):
    """Of the cluster: policy, the process that drives, a whole node."""
    address, records = host
    job = start(tmp_path / "run", *flags)
    played = tmp_path / "run" / "stores" / "evaluation"
    job.when(lambda: len(list(records.glob("evaluation-base-book-0001.*"))) > 0)
    if lost == "raylet":
        (number,) = [n for n, title in job.living().items() if "raylet/raylet" in title]
        os.kill(number, signal.SIGKILL)
    else:
        job.strike(lost)
    status = job.end()
    if status:  # nobody starts a robot's process, or a cluster, again by itself
        assert lost != "PolicyServer", job.output
        at_rest(address)
        (ending,) = endings(records, "evaluation-base-book-0001")
        # Processes notice a lost raylet seconds later: a short episode may still come to its end.
        assert ending.startswith("aborted:client_lost") or lost == "raylet"
        assert "evaluation-base-book-0000" in ReplayStore.open(played).ids()
        again = start(tmp_path / "run", *flags)
        assert again.end() == 0, again.output
    assert sorted(ReplayStore.open(played).ids()) == [
        f"evaluation-base-book-000{k}" for k in (0, 1)
    ]
    at_rest(address)


def test_a_driver_that_is_killed_leaves_a_held_arm_and_the_same_command_goes_on(
    start, flags, host, tmp_path
):
    address, records = host
    job = start(tmp_path / "run", *flags)
    played = tmp_path / "run" / "stores" / "evaluation"
    job.when(lambda: len(list(records.glob("evaluation-base-book-0001.*"))) > 0)
    job.kill()
    job.end()
    at_rest(address)
    (ending,) = endings(records, "evaluation-base-book-0001")
    assert ending.startswith("aborted:client_lost")
    assert len(ReplayStore.open(played).ids()) == 1

    again = start(tmp_path / "run", *flags)
    assert again.end() == 0, again.output
    store = ReplayStore.open(played)
    assert sorted(store.ids()) == [f"evaluation-base-book-000{k}" for k in (0, 1)]
    for name in store.ids():
        trajectory = store.trajectory(name)
        assert (trajectory.num_ticks, trajectory.ending) == (60, "timeout")
        assert store.label(name).source == "simulator"
    assert len(list(records.glob("evaluation-base-book-0001.*"))) == 2
