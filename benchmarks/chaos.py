"""Kills random processes of a run at random moments, and compares what comes out with a run that
nobody disturbed: ``python benchmarks/chaos.py --minutes 10``. Prints what was killed and found.

A run is continued by the same command whenever it ends too early, and a new one begins when it is
done. ``--seed`` decides what is killed after how long; what lives at that moment it cannot decide.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from replay.store import ReplayStore  # noqa: E402
from tests.integration.conftest import Job  # noqa: E402

STORES = ("demos", "real", "evaluation", "imagined")
SETTINGS = [
    "task=book", "method.iterations=1",
    "world_model.train.steps=30", "reward.train.steps=30", "policy.train.steps=60",
    *(f"{m}.train.{s}" for m in ("policy", "world_model", "reward")
      for s in ("batch=4", "warmup=1", "checkpoint_every=5")),
    "each_task.rollouts=8", "each_task.imagine=24", "each_task.alpha=0.05",
    "imagination.max_chunks=6", "imagination.slots=4", "demos.per_task=4",
    "evaluation.episodes=4", "cluster.object_store_mb=100", "cluster.dashboard=false",
]  # fmt: skip
ENDS_THE_JOB = 0.08  # of all strikes; more, and a slow machine never gets far
NODE = {"gcs_server": "head node (GCS)", "raylet": "node (raylet)"}
SPARED = {"IDLE", "DashboardAgent", "RuntimeEnvAgent"}  # they hold nothing of a run, or end a node


@dataclass
class Chaos:
    """What was done to the runs and what they did."""

    rng: random.Random
    until: float
    killed: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    early: list[str] = field(default_factory=list)  # last lines of jobs that ended by themselves

    def disturb(self, job: Job) -> bool:
        """Kill something until the job ends or time is over; True when it ended well."""
        self.starts += 1
        ended_by_us = False
        while job.process.poll() is None and time.monotonic() < self.until:
            pause = time.monotonic() + self.rng.uniform(0.5, 9.0)
            while job.process.poll() is None and time.monotonic() < pause:
                time.sleep(0.05)
            if job.process.poll() is None:
                ended_by_us |= self._strike(job)
        status = job.process.wait(900)
        if status and not ended_by_us:
            self.early.append((job.output.strip().splitlines() or ["no output"])[-1])
        return status == 0

    def _strike(self, job: Job) -> bool:
        """Kill one process of the run, each kind as likely as another; True: the job ends by it."""
        kinds: dict[str, list[int]] = {"driver": [job.process.pid], "Ctrl-C": [job.process.pid]}
        for number, line in job.living().items():
            if (title := re.match(r"ray::(\w+)", line)) and title[1] not in SPARED:
                kinds.setdefault(title[1], []).append(number)
            for program, name in NODE.items():
                if line.split("\0")[0].endswith(f"/{program}"):
                    kinds.setdefault(name, []).append(number)
        final = {"driver", "Ctrl-C", *NODE.values()}
        ends = self.rng.random() < ENDS_THE_JOB
        choice = sorted(final & kinds.keys() if ends else kinds.keys() - final)
        if not choice:
            return False
        kind = self.rng.choice(choice)
        try:
            hit = signal.SIGINT if kind == "Ctrl-C" else signal.SIGKILL
            os.kill(self.rng.choice(sorted(kinds[kind])), hit)
        except ProcessLookupError:
            return False
        self.killed[kind] += 1
        print(f"{time.strftime('%H:%M:%S')} {kind}", flush=True)
        return kind in final


def differences(ours: Path, theirs: Path) -> list[str]:
    """Everything in which two finished runs are not the same, bit by bit."""
    found = []
    for name in STORES:
        one, other = (ReplayStore.open(run / "stores" / name) for run in (ours, theirs))
        if sorted(one.ids()) != sorted(other.ids()):
            found.append(f"{name}: other ids")
            continue
        found += [f"{name}/{i}" for i in one.ids() if not _same(one, other, i)]
        if one.verdicts() != other.verdicts():
            found.append(f"{name}: verdicts")
    if _checksums(ours) != _checksums(theirs):
        found.append("checkpoints")
    return found


def _same(one: ReplayStore, other: ReplayStore, name: str) -> bool:
    a, b = one.trajectory(name), other.trajectory(name)
    parts = ("actions", "joint_position", "gripper_position", "frames")
    return a.provenance == b.provenance and all(
        np.array_equal(getattr(a, part), getattr(b, part)) for part in parts
    )


def _checksums(run: Path) -> dict[tuple[str, int], str]:
    lineage = json.loads((run / "report.json").read_text(encoding="utf-8"))["lineage"]
    return {(version["kind"], version["version"]): version["checksum"] for version in lineage}


def told(run: Path) -> int:
    """How many losses the run has reported."""
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return sum(json.loads(line)["event"] == "lost" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/chaos"))
    parser.add_argument("settings", nargs="*", help="further settings, as for ray_job.py")
    given = parser.parse_args()
    out, settings = given.out.resolve(), [*SETTINGS, *given.settings]
    (out / "logs").mkdir(parents=True, exist_ok=True)
    calm = out / "undisturbed"
    began = time.monotonic()
    job = Job(calm, settings, out / "logs" / "undisturbed.txt")
    if job.process.wait(1800):
        sys.exit(job.output)
    calm_s = time.monotonic() - began
    chaos = Chaos(random.Random(given.seed), time.monotonic() + given.minutes * 60)
    rows, number = [], 0
    while time.monotonic() < chaos.until:
        number += 1
        folder, starts = out / f"run-{number}", chaos.starts
        while not chaos.disturb(
            job := Job(folder, settings, out / "logs" / f"{number}-{chaos.starts}.txt")
        ):
            if left := job.vanish(90):
                sys.exit(f"left behind: {left}")
        wrong = differences(folder, calm)
        verdict = "; ".join(wrong) or "same"
        rows.append(f"| {number} | {chaos.starts - starts} | {told(folder)} | {verdict} |")
    _print(chaos, rows, calm_s, given)


def _print(chaos: Chaos, rows: list[str], calm_s: float, given: argparse.Namespace) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    print(
        f"\ncommit {commit}, seed {given.seed}, {given.minutes:g} minutes of disturbance, ", end=""
    )
    print(f"undisturbed run {calm_s:.0f} s, {sum(chaos.killed.values())} kills\n")
    print("| killed | times |\n|---|---|")
    for kind, times in sorted(chaos.killed.items(), key=lambda item: (-item[1], item[0])):
        print(f"| {kind} | {times} |")
    print("\n| run | starts of the command | losses told | against the undisturbed run |")
    print("|---|---|---|---|")
    print("\n".join(rows))
    print(f"\njobs that ended though nobody ended them: {len(chaos.early)}")
    for line in chaos.early:
        print(f"  {line}")


if __name__ == "__main__":
    main()
