"""``ray job submit`` on a cluster that asks for a token: submit, logs, stop, submit again."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from replay.store import ReplayStore

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300.0
EPISODES = 12
STOPPED = "stopped; the same command continues where it stopped"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(reached: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < until, what
        time.sleep(0.1)


@dataclass
class Cluster:
    """``ray start --head`` on this machine, with a token and a temporary folder of its own."""

    folder: Path
    token: str
    dashboard: int

    def start(self) -> None:
        ports = {"port": free_port(), "ray-client-server-port": free_port()}
        ports |= {"dashboard-agent-listen-port": free_port(), "dashboard-port": self.dashboard}
        ports |= {"min-worker-port": 0, "max-worker-port": 0}
        self.process = subprocess.Popen(
            [
                self.ray, "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2",
                f"--temp-dir={self.folder}", "--resources={\"robot\": 1}",
                "--object-store-memory=100000000", *(f"--{key}={n}" for key, n in ports.items()),
            ],
            env=self.environment(self.token) | {"RAY_JOB_STOP_WAIT_TIME_S": "60"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        wait_until(self.answers, "the cluster does not start")

    @property
    def ray(self) -> str:
        return str(Path(sys.executable).with_name("ray"))

    def answers(self) -> bool:
        assert self.process.poll() is None
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.dashboard)) == 0

    def environment(self, token: str | None) -> dict[str, str]:
        """``python`` of a job is that of the tests. The token file of this machine is not seen."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        address = f"http://127.0.0.1:{self.dashboard}"
        mine = {"PATH": path, "RAY_ADDRESS": address, "HOME": str(self.folder)}
        if token is not None:
            mine |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        return kept | {"MARK_OF_CLUSTER": str(self.folder)} | mine

    def job(self, *arguments: str, token: str | None = None) -> tuple[int, str]:
        """``ray job <arguments>``: (exit status, output)."""
        done = subprocess.run(
            [self.ray, "job", *arguments],
            cwd=ROOT,
            env=self.environment(token),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def request(self, method: str, path: str) -> dict[str, Any]:
        """What the commands of ``ray job`` ask the cluster over HTTP."""
        address = f"http://127.0.0.1:{self.dashboard}/api/jobs/{path}"
        header = {"Authorization": f"Bearer {self.token}"}
        answer = requests.request(method, address, headers=header, timeout=PATIENCE_S)
        answer.raise_for_status()
        return answer.json()

    def processes(self) -> dict[int, str]:
        """Of the cluster and its jobs, by id."""
        wanted, found = f"MARK_OF_CLUSTER={self.folder}".encode(), {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().decode()
            except OSError:  # it ended while this looked
                continue
        return found

    def stop(self) -> None:
        """By process ids: `ray stop` would end every Ray of this machine."""
        self.process.terminate()
        self.process.wait(60)
        for number in self.processes():
            os.kill(number, signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="vlaw-", dir="/tmp"))  # paths of sockets must be short
    started = Cluster(folder, secrets.token_hex(16), free_port())
    try:
        started.start()
        yield started
    finally:
        started.stop()
        shutil.rmtree(folder, ignore_errors=True)


def stored(run: Path) -> list[str]:
    folder = run / "stores" / "evaluation"
    return ReplayStore.open(folder).ids() if folder.exists() else []


def test_without_the_token_nothing_is_submitted(cluster):
    """401, at the first request: no code left this machine."""
    status, output = cluster.job("submit", "--working-dir", ".", "--", "python", "ray_job.py")
    assert status != 0
    assert "Unauthorized" in output
    assert not list(cluster.folder.glob("session_*/runtime_resources/working_dir_files/*"))


def test_a_job_is_submitted_stopped_and_submitted_again(cluster, tmp_path):
    run, token = tmp_path / "run", cluster.token
    command = [
        "--", "python", "ray_job.py", f"out={run}", "job=evaluate", "task=book", "robot.count=1",
        f"evaluation.episodes={EPISODES}", "each_task.max_ticks=24",
    ]  # fmt: skip

    def submit(name: str, *options: str) -> tuple[int, str]:
        wanted = ["--working-dir", ".", "--submission-id", name, *options, *command]
        return cluster.job("submit", *wanted, token=token)

    status, output = submit("first", "--no-wait")
    assert status == 0, output
    wait_until(lambda: bool(stored(run)), "no episode is stored")
    cluster.request("POST", "first/stop")  # what `ray job stop` sends, without its start
    wait_until(lambda: cluster.request("GET", "first")["status"] == "STOPPED", "it does not stop")
    assert 1 <= len(stored(run)) < EPISODES
    _, output = cluster.job("logs", "first", token=token)
    assert output.rstrip().splitlines()[-1] == STOPPED
    assert "Traceback" not in output
    assert not [line for line in cluster.processes().values() if "Robot" in line]
    ended = next(cluster.folder.glob("session_*/logs/jobs/supervisor-first.log")).read_text()
    assert "terminated gracefully" in ended

    rows = {row.id: row.num_ticks for row in ReplayStore.open(run / "stores/evaluation").episodes()}
    status, output = submit("second")  # waits, and prints what `ray job logs` prints
    assert status == 0, output
    assert "Job 'second' succeeded" in output
    assert re.search(rf"evaluate base +done +{EPISODES}/{EPISODES} episodes", output)
    assert "1 x robot" in output  # the plan, by node
    assert (run / "report.html").exists()
    again = {
        row.id: row.num_ticks for row in ReplayStore.open(run / "stores/evaluation").episodes()
    }
    assert len(again) == EPISODES
    assert rows.items() <= again.items()

    packages = list(
        cluster.folder.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    )
    assert len(packages) == 1  # the same code twice: one copy, and the driver shipped no other
    assert {path.name for path in packages[0].iterdir()} == {
        "actors", "cluster", "configs", "contracts", "envs", "learners", "models", "replay",
        "services", "ray_job.py",
    }  # fmt: skip
