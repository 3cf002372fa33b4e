"""The whole way to a real robot, with stand-ins for what is not here: ``make robot-rehearsal``.

Ray driver, policy server and robot actor -> host -> zerorpc -> a stand-in of DROID's control
machine -> MuJoCo's physics in real time, three rendered cameras, and at the operator's page a
headless Chromium that presses the keys of a person. Prints how late the ticks beside the arm were,
how old the pictures, how long decisions took, and what was lost.

Needs Chromium and the packages of requirements-dev.txt; about three minutes.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from contracts.constants import CONTROL_HZ, VIEWS
from envs.droid.link import Link
from replay.store import ReplayStore
from tools.chromium import Chromium

ROOT = Path(__file__).resolve().parents[1]
STARTS_S = 120.0
GOAL_MS = 10.0  # lateness of 99 in 100 ticks

RIG = """\
[arm]
address = "{address}"
standin = true

[cameras]
kind = "shared"
frames = "{frames}"
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--tasks", default="book,scoop")
    add("--episodes", type=int, default=3, help="of each task")
    add("--ticks", type=int, default=150, help="longest episode")
    add("--size", default="192x320")
    add("--out", type=Path, default=Path("outputs/rehearsal"), help="must not exist")
    return parser.parse_args()


@contextlib.contextmanager
def process(log: Path, *command: object) -> Iterator[subprocess.Popen[bytes]]:
    """A program of ours while the block runs; what it says goes to ``log``."""
    with log.open("w") as output:
        running = subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=ROOT, stdout=output, stderr=output
        )
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.kill()


def said(running: subprocess.Popen[bytes], log: Path, words: str) -> str:
    """The word after ``words`` in the log, once it is there."""
    until = time.monotonic() + STARTS_S
    while words not in (text := log.read_text()):
        if running.poll() is not None or time.monotonic() > until:
            sys.exit(f"{log} never said {words!r}:\n{text[-2000:]}")
        time.sleep(0.1)
    return text.partition(words)[2].split()[0]


class Person:
    """Agrees to every start by keys, ends an episode once the task is done, and labels it."""

    KEYS = (("waiting_for_reset", "reset_done", "r"), ("ready", "start", "Enter"))

    def __init__(self, browser: Chromium, page: str, standin: str, picture: Path) -> None:
        self._browser, self._picture = browser, picture
        self._truth = Link(standin, 5.0)  # what a person sees by looking at the table
        browser.open(page)
        browser.until("!document.querySelector('#who').disabled")
        browser.click("#who")
        browser.type("rehearsal")
        browser.press("Enter")

    def look(self) -> None:
        """Do what is to be done now."""
        state = self._browser.run("document.body.dataset.state")
        for shown, act, key in self.KEYS:
            if state == shown and self._enabled(act):
                self._press(key)
        if state in ("running", "to_label") and self._enabled("success"):
            done = self._truth.call("success")
            if done or state == "to_label":
                self._press("s" if done else "f")
            if not self._picture.exists():
                self._browser.picture(self._picture)

    def _enabled(self, act: str) -> bool:
        return self._browser.run(f"!document.querySelector('[data-act={act}]').disabled")

    def _press(self, key: str) -> None:
        time.sleep(0.4)  # a key within 0.35 s of a change is not meant for what is there now
        self._browser.press(key)
        time.sleep(0.3)


def rehearse(given: argparse.Namespace) -> int:
    """The run's exit status."""
    out = given.out.resolve()
    out.mkdir(parents=True)
    frames = Path(f"/dev/shm/vlaw-rehearsal-{os.getpid()}")
    height, _, width = given.size.partition("x")
    with contextlib.ExitStack() as stack:
        log = out / "control_machine.txt"
        wanted = ("--port", 0, "--frames", frames, "--size", given.size)
        machine = stack.enter_context(process(log, "-m", "envs.droid.standin", *wanted))
        standin = said(machine, log, "address=")
        (rig := out / "rig.toml").write_text(RIG.format(address=standin, frames=frames))
        log = out / "host.txt"
        wanted = ("--backend", "droid_zerorpc", "--rig", rig, "--size", given.size)
        places = ("--port", 0, "--console-port", 0, "--records", out / "records")
        host = stack.enter_context(process(log, "-m", "envs.droid.host", *wanted, *places))
        address, page = said(host, log, "robot.address="), said(host, log, "operator's page: ")
        browser = stack.enter_context(Chromium(out / "profile", 1280, 900))
        person = Person(browser, page, standin, out / "page.png")
        flags = [
            "job=evaluate", "robot=droid", f"out={out / 'run'}", f"robot.address={address}",
            f"robot.height={height}", f"robot.width={width}", f"task=[{given.tasks}]",
            f"evaluation.episodes={given.episodes}", f"each_task.max_ticks={given.ticks}",
        ]  # fmt: skip
        run = stack.enter_context(process(out / "run.txt", "ray_job.py", *flags))
        while run.poll() is None:
            person.look()
            time.sleep(0.2)
        return run.returncode


def tell(out: Path, ticks: int) -> bool:
    """Print what was recorded; whether the goal is met."""
    folders = sorted(path.parent for path in (out / "records").glob("*/episode.json"))
    rows = [dict(np.load(folder / "ticks.npz")) for folder in folders]
    told = [json.loads((folder / "episode.json").read_text()) for folder in folders]
    late = np.concatenate([row["lateness_ms"] for row in rows])
    age = np.concatenate([1000 * (row["time_s"][:, None] - row["captured_s"]) for row in rows])
    # Deadlines that were a whole period behind are skipped and leave no tick
    gaps = [np.round(CONTROL_HZ * np.diff(row["time_s"])) - 1 for row in rows]
    lost = int(np.concatenate(gaps).clip(0).sum())
    firsts = [row["query_latency_ms"][row["row_in_chunk"] == 0] for row in rows]
    decision = np.concatenate(firsts)
    new = [1 - (np.diff(row["captured_s"], axis=0) == 0).mean() for row in rows]
    unwritten = sum(one["ticks_not_recorded"] for one in told)
    store = ReplayStore.open(out / "run" / "stores" / "evaluation")
    labels = [store.label(name) for name in store.ids()]
    endings = [one["ending"] for one in told]
    print(f"{len(told)} episodes of at most {ticks} ticks: {', '.join(endings)}")
    print(f"labels: {sum(bool(one and one.success) for one in labels)} successes of {len(labels)}")
    print(f"{len(late)} ticks; lost {lost}, not recorded {unwritten}")
    print(f"lateness ms         {spread(late)}")
    for view, column in zip(VIEWS, age.T, strict=True):
        print(f"age of {view:<12} {spread(column)}")
    print(f"pictures that were new at their tick: {100 * np.mean(new):.1f} %")
    print(f"decision ms         {spread(decision)}   ({len(decision)} plans)")
    met = np.percentile(late, 99) <= GOAL_MS and lost + unwritten == 0
    print(f"goal (p99 lateness <= {GOAL_MS:g} ms, no tick lost): {'met' if met else 'NOT met'}")
    return bool(met)


def spread(values: np.ndarray) -> str:
    middle, high = np.percentile(values, (50, 99))
    return f"p50 {middle:8.2f}   p99 {high:8.2f}   most {values.max():8.2f}"


def main() -> None:
    given = arguments()
    if given.out.exists():
        sys.exit(f"{given.out} is there already: remove it, or give another --out")
    status = rehearse(given)
    if status:
        sys.exit(f"the run failed: {given.out / 'run.txt'}\n{(given.out / 'run.txt').read_text()}")
    tell(given.out, given.ticks)


if __name__ == "__main__":
    main()
