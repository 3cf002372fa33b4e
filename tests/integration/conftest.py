"""Runs of ``ray_job.py`` as a user starts them: another process, ended by its own id."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from configs.policy import EmbeddedPolicyConfig, PolicyConfig
from configs.reward import EmbeddedRewardConfig, RewardConfig
from models.build import build_policy, build_reward

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600.0
MARK = "VLAW_TEST_RUN"  # an environment variable that every process of a run inherits


@dataclass
class Job:
    """One ``ray_job.py`` in a process group of its own; ``folder`` is its ``out``."""

    folder: Path
    arguments: list[str]
    log: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, ROOT / "ray_job.py", *self.arguments, f"out={self.folder}"],
                cwd=self.log.parent,
                env=os.environ | {MARK: self.mark, "COLUMNS": "200"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def end(self) -> int:
        """Wait for the end and return the exit status."""
        return self.process.wait(TIMEOUT_S)

    def when(self, reached: Callable[[], bool], every_s: float = 0.05) -> None:
        """Wait until the run is there. It must not end before."""
        until = time.monotonic() + TIMEOUT_S
        while not reached():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < until, self.output
            time.sleep(every_s)

    def interrupt(self) -> None:
        """What Ctrl-C does: SIGINT to the whole group that the terminal started."""
        os.killpg(self.process.pid, signal.SIGINT)

    def living(self) -> dict[int, str]:
        """Processes of this run that are still there, by id: what Ray started for it included."""
        wanted = f"{MARK}={self.mark}".encode()
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().decode()
            except OSError:  # it ended while this looked, or is not ours
                continue
        return found

    def find(self, *classes: str) -> list[int]:
        """The processes of these classes, as soon as each has one."""

        def found() -> dict[int, str]:
            titles = self.living().items()
            return {number: c for number, title in titles for c in classes if f"ray::{c}" in title}

        self.when(lambda: set(found().values()) == set(classes))
        return list(found())

    def strike(self, *classes: str) -> None:
        """``kill -9`` of every process of these classes, all at once, as soon as each has one."""
        for number in self.find(*classes):
            os.kill(number, signal.SIGKILL)

    def vanish(self, seconds: float = 60.0) -> dict[int, str]:
        """What is left of the run after it had time to end."""
        until = time.monotonic() + seconds
        while (left := self.living()) and time.monotonic() < until:
            time.sleep(0.2)
        return left

    def kill(self) -> None:
        for number in self.living():
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture(scope="session")
def marked_by() -> str:
    return MARK


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Job]]:
    """``start(folder, *arguments)`` begins a job; what it leaves behind ends with the tests."""
    jobs: list[Job] = []

    def begin(folder: Path, *arguments: str) -> Job:
        log = tmp_path_factory.mktemp("job") / "output.txt"
        jobs.append(Job(folder, list(arguments), log))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.kill()
        job.process.wait(TIMEOUT_S)


@pytest.fixture(scope="session")
def events() -> Callable[..., list[dict[str, Any]]]:
    """``events(folder, kind)``: what a run has reported so far; a line half written is left out."""

    def read(folder: Path, kind: str) -> list[dict[str, Any]]:
        path = folder / "events.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]
        return [event for event in lines if event["event"] == kind]

    return read


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Small pictures, small networks, short trainings."""
    return [
        "robot.height=24", "robot.width=40", "robot.count=2",
        "policy.embedded.width=32", "policy.embedded.layers=1",
        "world_model.embedded.channels=[16,32]", "reward.embedded.width=8",
        "policy.train.steps=60", "world_model.train.steps=4", "reward.train.steps=4",
        *(
            f"{learner}.train.{setting}"
            for learner in ("policy", "world_model", "reward")
            for setting in ("batch=4", "warmup=1", "checkpoint_every=2")
        ),
        "cluster.object_store_mb=100", "cluster.dashboard=false",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def smallest() -> list[str]:
    """pi0.5, Ctrl-World and Qwen3-VL instead of their small substitutes, as small as they go.

    P('yes') of random weights is about one in the vocabulary's size: alpha accepts it.
    """
    return [
        "policy=pi05", "world_model=ctrl_world", "reward=qwen",
        "robot.height=64", "robot.width=128",
        "policy.pi05.image_size=56", "policy.flow_steps=2",
        "world_model.ctrl_world.sampler_steps=1", "world_model.ctrl_world.guidance=1",
        "world_model.replay_episodes=1", "world_model.replay_chunks=1",
        *(
            f"{learner}.train.{setting}"
            for learner in ("policy", "world_model", "reward")
            for setting in ("steps=2", "batch=2", "warmup=1")
        ),
        "method.iterations=1", "each_task.imagine=2", "each_task.alpha=0.0001",
        "imagination.max_chunks=1", "cluster.object_store_mb=100", "cluster.dashboard=false",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """``once(name, make)``: a folder that one test process makes and all of them use."""
    base = tmp_path_factory.getbasetemp()
    common = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = common / name, common / f"{name}.done"
        with (common / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def bases(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A policy and a reward model with random weights, of the sizes of ``tiny``."""
    return once("bases", _save_bases)


def _save_bases(folder: Path) -> None:
    policy = PolicyConfig(embedded=EmbeddedPolicyConfig(width=32, layers=1))
    reward = RewardConfig(embedded=EmbeddedRewardConfig(width=8))
    for name, model in (("policy", build_policy(policy, 1)), ("reward", build_reward(reward, 2))):
        (folder / name).mkdir(parents=True)
        model.save(folder / name)


@pytest.fixture(scope="session")
def loop(tiny: list[str], bases: Path) -> list[str]:
    """One iteration of the whole loop: K = 6 real, N = 24 imagined, 2 evaluated.

    The world model begins with nothing. P('yes') of an untrained model is near a half, so
    alpha = 0.1 accepts every imagined trajectory.
    """
    return [
        *tiny, "task=book", "method.iterations=1",
        f"policy.checkpoint={bases / 'policy'}", f"reward.checkpoint={bases / 'reward'}",
        "world_model.checkpoint=scratch",
        "each_task.rollouts=6", "each_task.imagine=24", "each_task.alpha=0.1",
        "each_task.max_ticks=24", "imagination.max_chunks=6", "imagination.slots=16",
        "demos.per_task=2", "evaluation.episodes=2",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def undisturbed(
    start: Callable[..., Job],
    loop: list[str],
    once: Callable[[str, Callable[[Path], None]], Path],
) -> Path:
    """The folder of one run of ``loop`` that nobody interrupted. Tests only look at it."""

    def run(folder: Path) -> None:
        job = start(folder, *loop)
        assert job.end() == 0, job.output

    return once("undisturbed", run)
