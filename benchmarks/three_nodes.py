"""Head, GPU node and robot host as three network namespaces of this machine, and a cut cable.

Runs the small loop across them as a submitted job with a token, cuts the robot's link during an
episode until the run gives up, mends it, submits again, cuts it for a moment only, and tells what
the runs said, what is stored and which process ran where. At last the GPU node no longer mounts the
run's folder.

Run as root: python benchmarks/three_nodes.py [--keep-defaults]
Needs iproute2; a quarter of an hour on two cores. Addresses and traffic stay inside
the namespaces, which are gone afterwards, whatever happens.
"""

import argparse
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from replay.store import ReplayStore

ROOT = Path(__file__).resolve().parents[1]
ADDRESSES = {"head": "10.77.0.1", "gpu": "10.77.0.2", "robot": "10.77.0.3"}
LIMIT_S = 1800.0
SMALL = [
    "task=book", "method.iterations=1", "each_task.rollouts=8", "each_task.imagine=8",
    "each_task.alpha=0.05", "demos.per_task=2", "evaluation.episodes=2", "evaluation.control=false",
    "robot.count=1", "imagination.max_chunks=4", "cluster.worker_gpus=0.2",
    "cluster.scorer_gpus=0.2", "cluster.worker_cpus=0.5", "policy.train.steps=8",
    "world_model.train.steps=4", "reward.train.steps=4",
]  # fmt: skip
QUICK = {  # a lost node is noticed after about 5 x (1 + 2) s instead of 5 x (3 + 10) s
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
}


def sh(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        sys.exit(f"error: {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Network:
    """Three namespaces on one bridge, which is in a fourth."""

    def __init__(self) -> None:
        self.prefix = f"vlaw{os.getpid()}"

    def name(self, node: str) -> str:
        return f"{self.prefix}-{node}"

    def build(self) -> None:
        for node in ("net", *ADDRESSES):
            sh("ip", "netns", "add", self.name(node))
            sh("ip", "-n", self.name(node), "link", "set", "lo", "up")
        net = self.name("net")
        sh("ip", "-n", net, "link", "add", "bridge", "type", "bridge")
        sh("ip", "-n", net, "link", "set", "bridge", "up")
        for node, address in ADDRESSES.items():
            peer = ("type", "veth", "peer", "name", "eth0", "netns", self.name(node))
            sh("ip", "-n", net, "link", "add", node, *peer)
            sh("ip", "-n", net, "link", "set", node, "master", "bridge", "up")
            sh("ip", "-n", self.name(node), "address", "add", f"{address}/24", "dev", "eth0")
            sh("ip", "-n", self.name(node), "link", "set", "eth0", "up")

    def cable(self, node: str, state: str) -> None:
        """Pull or plug the cable at the switch's end, as a person would."""
        sh("ip", "-n", self.name("net"), "link", "set", node, state)

    def processes(self, node: str) -> list[int]:
        return [int(pid) for pid in sh("ip", "netns", "pids", self.name(node), check=False).split()]

    def remove(self) -> None:
        for node in ADDRESSES:
            for pid in self.processes(node):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        for node in ("net", *ADDRESSES):
            sh("ip", "netns", "delete", self.name(node), check=False)


class Lab:
    """The machines, each started again when it ends, as a supervisor of services does."""

    def __init__(self, network: Network, folder: Path, tuning: dict[str, str]) -> None:
        self.network, self.folder, self.closing = network, folder, threading.Event()
        token = folder / "token"
        token.write_text(secrets.token_hex(16))
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "PYTHONUNBUFFERED": "1",
            "RAY_raylet_start_wait_time_s": "120",  # a busy machine
        } | tuning
        self.where: dict[str, set[str]] = {}
        self.first: dict[str, str] = {}  # what a shell does on a machine before Ray starts there

    def inside(self, node: str, *command: str, **options: object) -> subprocess.Popen[str]:
        """A process on a machine, with the machine's name as its host name."""
        named = ["unshare", "--uts", "sh", "-c", f'hostname {node}; exec "$@"', "sh", *command]
        entered = ["ip", "netns", "exec", self.network.name(node), *named]
        return subprocess.Popen(
            entered, env=self.environment, cwd=ROOT, text=True, stdin=subprocess.DEVNULL, **options
        )

    def reboot_without(self, node: str, folder: Path) -> None:
        """Start a machine again, which then has an empty folder where the others share one."""
        self.first[node] = f"mount -t tmpfs tmpfs {folder}"  # in its own mount namespace
        for pid in self.network.processes(node):
            if "raylet" in _line(pid).split("\0")[0]:
                os.kill(pid, signal.SIGKILL)
        wait(lambda: node not in self.alive(), f"{node} to be missed")

    def power(self, node: str, *flags: str) -> None:
        """Switch a machine on."""
        role = "worker" if node == "gpu" else node
        address = [] if node == "head" else [ADDRESSES["head"]]
        own = [f"--node-ip-address={ADDRESSES[node]}", "--object-store-memory=100000000"]
        if node == "head":
            own.append(f"--temp-dir={self.folder / 'ray'}")
        command = [role, *address, *own, *flags]
        threading.Thread(target=self._keep_up, args=(node, command), daemon=True).start()

    def _keep_up(self, node: str, command: list[str]) -> None:
        while not self.closing.is_set():
            before = self.first.get(node, ":")
            script = f'{before} && exec sh {ROOT / "cluster/deploy/node.sh"} "$@"'
            with (self.folder / f"{node}.log").open("a") as log:
                self.inside(node, "sh", "-c", script, "sh", *command, stdout=log, stderr=log).wait()
            self.closing.wait(3)

    def alive(self) -> set[str]:
        """Machines that the cluster counts."""
        program = (
            "import json, ray\n"
            f"ray.init('{ADDRESSES['head']}:6379', logging_level='ERROR', log_to_driver=False)\n"
            "print(json.dumps([n['NodeManagerHostname'] for n in ray.nodes() if n['Alive']]))"
        )
        ask = ["timeout", "30", sys.executable, "-c", program]
        asked = self.inside("head", *ask, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        lines = [line for line in asked.communicate()[0].splitlines() if line.startswith('["')]
        return set(json.loads(lines[0])) if lines else set()

    def watch(self) -> None:
        """Note which of Ray's processes are on which machine, until the end."""
        while not self.closing.wait(0.5):
            for node in ADDRESSES:
                for pid in self.network.processes(node):
                    try:
                        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                    except OSError:
                        continue
                    if found := re.match(r"ray::(\w+)\.", line):
                        self.where.setdefault(found[1], set()).add(node)
                    elif "ray_job.py" in line and line.startswith("python"):
                        self.where.setdefault("driver", set()).add(node)

    def submit(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        address = f"http://{ADDRESSES['head']}:8265"
        wanted = ["--address", address, "--working-dir", ".", "--submission-id", name]
        with (self.folder / f"{name}.txt").open("w") as log:
            return self.inside(
                "head", "ray", "job", "submit", *wanted, "--", "python", "ray_job.py", *arguments,
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def output(self, name: str) -> str:
        """What the job printed, without what the command that submits says around it."""
        text = (self.folder / f"{name}.txt").read_text()
        lines = [line for line in text.splitlines() if not re.match(r"\x1b|20\d\d-\d\d-", line)]
        return "\n".join(line for line in lines if line.strip())


def wait(reached: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> float:
    """Seconds until it was reached."""
    start = time.monotonic()
    while not reached():
        if time.monotonic() - start > limit_s:
            sys.exit(f"error: after {limit_s:g} s still waiting: {what}")
        time.sleep(0.2)
    return time.monotonic() - start


def stored(run: Path, store: str = "real") -> list[str]:
    folder = run / "stores" / store
    return sorted(ReplayStore.open(folder).ids()) if folder.exists() else []


def scenario(lab: Lab, network: Network) -> None:
    run = lab.folder / "out"
    lab.power("head", "--num-cpus=0")
    wait(lambda: "head" in lab.alive(), "the head")
    lab.power("gpu", "--num-cpus=4", "--num-gpus=1")
    lab.power("robot", "--num-cpus=1")
    wait(lambda: lab.alive() == set(ADDRESSES), "three nodes")
    print("three nodes:", ", ".join(f"{n} {a}" for n, a in ADDRESSES.items()), flush=True)
    threading.Thread(target=lab.watch, daemon=True).start()

    short = "cluster.start_timeout_s=40"  # how long the run waits for a robot's return
    job = lab.submit("first", *SMALL, short, f"out={run}")
    before = _cut(lab, network, job, run, 2)
    seconds = wait(lambda: job.poll() is not None, "the end of the run")
    print(f"the run ended {seconds:.0f} s later, status {job.returncode}; it said:")
    print(lab.output("first"), flush=True)
    print(f"stored now: {len(stored(run))}; earlier ones there: {before <= set(stored(run))}")
    left = [n for n in network.processes("gpu") if "ray::PolicyServer" in _line(n)]
    print(f"policy servers left on gpu: {len(left)}", flush=True)

    network.cable("robot", "up")
    back = wait(lambda: lab.alive() == set(ADDRESSES), "the robot's return")
    print(f"cable in; the robot was back after {back:.0f} s; the same command again", flush=True)
    again = lab.submit("second", *SMALL, f"out={run}")
    before = _cut(lab, network, again, run, len(before) + 2)
    wait(lambda: "robot" not in lab.alive(), "the cluster to notice")
    network.cable("robot", "up")
    print("cable in as soon as the cluster missed the robot; the run goes on meanwhile", flush=True)
    seconds = wait(lambda: again.poll() is not None, "the end of the second run")
    print(f"it ended after {seconds:.0f} s, status {again.returncode}; it said:")
    print(lab.output("second"), flush=True)
    print(f"real episodes: {len(stored(run))}; earlier ones there: {before <= set(stored(run))}")
    print("which process ran where:")
    for process, nodes in sorted(lab.where.items()):
        print(f"  {process:<24} {', '.join(sorted(nodes))}")
    sys.stdout.flush()

    lab.reboot_without("gpu", run)
    wait(lambda: lab.alive() == set(ADDRESSES), "the GPU node's return")
    third = lab.submit("third", *SMALL, f"out={run}")
    wait(lambda: third.poll() is not None, "the end of the third run")
    print(f"with a GPU node that does not mount {run}: status {third.returncode}; it said:")
    print(lab.output("third"), flush=True)


def _cut(
    lab: Lab, network: Network, job: subprocess.Popen[str], run: Path, episodes: int
) -> set[str]:
    """Pull the robot's cable in the middle of an episode; returns what is stored by then."""
    wait(lambda: len(stored(run)) >= episodes or job.poll() is not None, "real episodes")
    if job.poll() is not None:
        sys.exit(f"error: the run ended before the cable was pulled:\n{lab.output('first')}")
    time.sleep(0.3)  # in the next one
    network.cable("robot", "down")
    print(f"cable out with {len(stored(run))} real episodes stored", flush=True)
    return set(stored(run))


def _line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--keep-defaults", action="store_true", help="Ray's own time limits for lost nodes"
    )
    options = parser.parse_args()
    if os.geteuid():
        sys.exit("error: namespaces need root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    network, folder = Network(), Path(tempfile.mkdtemp(prefix="vlaw-", dir="/tmp"))
    lab = Lab(network, folder, {} if options.keep_defaults else QUICK)
    try:
        network.build()
        scenario(lab, network)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # and SIGINT: the namespaces must go
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        lab.closing.set()
        network.remove()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
