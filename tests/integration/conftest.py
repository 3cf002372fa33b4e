"""Runs of ``ray_job.py`` as a user starts them: another process, ended by its own id."""

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

import pytest

from configs.policy import EmbeddedPolicyConfig, PolicyConfig
from configs.reward import EmbeddedRewardConfig, RewardConfig
from models.build import build_policy, build_reward

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600.0
MARK = "VLAW_TEST_RUN"  # an environment variable that every process of a run inherits

SMALL = [
    "robot.height=24", "robot.width=40",
    "policy.embedded.width=32", "policy.embedded.layers=1",
    "world_model.embedded.channels=[16,32]",
    "reward.embedded.width=8",
    "cluster.object_store_mb=100", "cluster.dashboard=false",
    *(
        f"{learner}.train.{setting}"
        for learner in ("policy", "world_model", "reward")
        for setting in ("steps=4", "batch=4", "warmup=1", "checkpoint_every=2")
    ),
]  # fmt: skip


@dataclass
class Job:
    """One ``ray_job.py`` in a process group of its own."""

    arguments: list[str]
    log: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "ray_job.py"), *self.arguments],
            cwd=self.log.parent,
            env=os.environ | {MARK: self.mark},
            stdin=subprocess.DEVNULL,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def end(self) -> int:
        """Wait for the end and return the exit status."""
        return self.process.wait(TIMEOUT_S)

    def interrupt(self) -> None:
        """What Ctrl-C does: SIGINT to the group that the terminal started."""
        os.killpg(self.process.pid, signal.SIGINT)

    def living(self) -> list[int]:
        """Processes of this run that are still there, children of children included."""
        wanted = f"{MARK}={self.mark}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:  # it ended while this looked, or is not ours
                continue
        return found

    def kill(self) -> None:
        for number in self.living():
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue


Start = Callable[..., Job]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """``start(*arguments)`` begins a job; whatever it leaves behind ends with the tests."""
    jobs: list[Job] = []

    def begin(*arguments: str) -> Job:
        jobs.append(Job(list(arguments), tmp_path_factory.mktemp("job") / "output.txt"))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.kill()


@pytest.fixture(scope="session")
def loop(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of one iteration of the whole loop: K = 4 real, N = 5 imagined, 2 evaluated.

    The policy and the reward model have random weights, made here once. The world model is trained
    from nothing. P('yes') of an untrained model is near a half, so alpha = 0.1 accepts all.
    """
    bases = tmp_path_factory.mktemp("bases")
    policy = PolicyConfig(embedded=EmbeddedPolicyConfig(width=32, layers=1))
    reward = RewardConfig(embedded=EmbeddedRewardConfig(width=8))
    for name, model in (("policy", build_policy(policy, 1)), ("reward", build_reward(reward, 2))):
        (bases / name).mkdir()
        model.save(bases / name)
    return [
        *SMALL, "task=book", "method.iterations=1",
        f"policy.checkpoint={bases / 'policy'}", f"reward.checkpoint={bases / 'reward'}",
        "world_model.checkpoint=scratch",
        "each_task.rollouts=4", "each_task.imagine=5", "each_task.alpha=0.1",
        "each_task.max_ticks=24", "imagination.max_chunks=3", "imagination.slots=4",
        "demos.per_task=2", "evaluation.episodes=2",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def undisturbed(
    start: Start, loop: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The folder and the output of one run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    job = start(*loop, f"out={folder}")
    assert job.end() == 0, job.output
    return folder, job.output


def events(folder: Path) -> list[dict[str, object]]:
    path = folder / "events.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_for(what: Callable[[], bool], seconds: float) -> bool:
    """Whether ``what`` came true in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if what():
            return True
        time.sleep(0.1)
    return what()
