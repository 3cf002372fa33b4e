"""The nodes of a cluster: which there are, whether a run fits, and whether they are fit for it."""

import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError

from cluster.handles import on_every_node
from cluster.placement import (
    Node,
    Placed,
    Process,
    ShortageError,
    hosts,
    inventory,
    place,
    processes,
)
from configs.run import RunConfig

POLL_S = 2.0
PACKAGES = ("diffusers", "jaxtyping", "mujoco", "numpy", "pylance", "torch", "transformers")
NOTES = ".nodes"  # in the run's folder, while its nodes are asked whether they see it


def nodes(resource: str) -> list[Node]:
    """The living nodes of the cluster."""
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            robots = int(has.get(resource, 0))
            found.append(
                Node(
                    name=node["NodeManagerHostname"],
                    cpus=has.get("CPU", 0.0),
                    gpus=has.get("GPU", 0.0),
                    resources=(resource,) if robots else (),
                    robots=robots,
                    id=node["NodeID"],
                )
            )
    return found


def placed(run: RunConfig, tasks: list[str]) -> list[Placed]:
    """Where the connected cluster can hold the run, or a ShortageError."""
    return place(processes(run, tasks), nodes(run.robot.resource))


def placed_in_time(run: RunConfig, tasks: list[str], say: Callable[[str], None]) -> list[Placed]:
    """The same on a cluster that may still grow, by its autoscaler or by hand.

    Raises:
        ShortageError: after ``cluster.start_timeout_s`` it still does not fit.
    """
    limit_s, plan = run.cluster.start_timeout_s, processes(run, tasks)
    until, asked = time.monotonic() + limit_s, ""
    try:
        while True:
            try:
                return place(plan, nodes(run.robot.resource))
            except ShortageError as short:
                if time.monotonic() > until:
                    raise
                if short.stage != asked:
                    limit = f"cluster.start_timeout_s={limit_s:g}"
                    say(f"  waiting for nodes ({limit}): {short}")
                    request_resources(bundles=_bundles(plan, short.stage))
                asked = short.stage
            time.sleep(POLL_S)
    finally:
        if asked:
            request_resources(bundles=[])  # from here on the processes themselves ask


def room_for_workers(run: RunConfig, working: int) -> int:
    """How many more imagination workers the cluster has room for, besides ``working`` ones.

    As many as its nodes could hold, and no more than what other jobs leave free.
    """
    share = (run.cluster.worker_cpus, run.cluster.worker_gpus)
    fit = sum(_fits((node.cpus, node.gpus), share) for node in nodes(run.robot.resource))
    now: Mapping[str, float] = ray.available_resources()
    free = _fits((now.get("CPU", 0.0), now.get("GPU", 0.0)), share)
    return max(0, min(fit - working, free))


def _fits(have: tuple[float, float], share: tuple[float, float]) -> int:
    counts = [int(h / s + 1e-9) for h, s in zip(have, share, strict=True) if s]
    return min(counts, default=10**6)


def what_there_is(run: RunConfig) -> str:
    """The cluster and what is free of it, for messages about processes that wait for a place."""
    share = f"{run.cluster.worker_cpus:g} CPU and {run.cluster.worker_gpus:g} GPU"
    now: Mapping[str, float] = ray.available_resources()
    return (
        f"A worker takes {share}; the cluster has {inventory(nodes(run.robot.resource))}, of which "
        f"{now.get('CPU', 0.0):g} CPU and {now.get('GPU', 0.0):g} GPU are free. Add nodes, lower "
        "task.<name>.workers (python -m cluster.scale), or raise cluster.start_timeout_s"
    )


def _bundles(plan: list[Process], stage: str) -> list[dict[str, float]]:
    """What an autoscaler should make room for. It cannot start robots."""
    return [
        {"CPU": p.cpus, "GPU": p.gpus} if p.gpus else {"CPU": p.cpus}
        for p in plan
        if p.stage == stage and not p.resource
        for _ in range(p.count)
    ]


@dataclass(frozen=True, slots=True)
class Sight:
    """What a node sees: versions of Python and of packages, and why it cannot use the folder."""

    versions: dict[str, str]
    trouble: str = ""


def check(run: RunConfig, tasks: list[str], folder: Path) -> None:
    """Every node has the driver's packages, and sees the run's folder where it needs it.

    Raises:
        ValueError: it names the first node that does not.
    """
    found = nodes(run.robot.resource)
    need = {node.id for node in hosts(processes(run, tasks), found)}
    with _note(folder) as note:
        ids, limit_s = [node.id for node in found], run.cluster.start_timeout_s
        for node, sight in zip(found, on_every_node(look, ids, limit_s, note), strict=True):
            if isinstance(sight, RayError):
                raise ValueError(f"node {node.name} cannot run this code: {_last_line(sight)}")
            if differ := differing(versions(), sight.versions):
                raise ValueError(
                    f"node {node.name} has other packages than the driver: {differ}. Install the "
                    "same Python and requirements.txt there"
                )
            if node.id in need and (trouble := sight.trouble or _unanswered(note, node.id)):
                raise ValueError(
                    f"node {node.name} does not see the run's folder {folder} ({trouble}). Mount "
                    "the same storage under the same path on every node, or give out=<folder on it>"
                )


def look(note: Path) -> Sight:
    """Runs on a node: find the driver's note, and answer it beside."""
    node_id = ray.get_runtime_context().get_node_id()
    try:
        _answer(note, node_id).write_text(note.read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        return Sight(versions(), error.strerror or str(error))
    return Sight(versions())


def versions() -> dict[str, str]:
    """Of Python and of the packages that must agree between processes, in this one."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}  # Ray itself asks for more
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def differing(wanted: dict[str, str], found: dict[str, str]) -> str:
    """``"torch 2.12.0 instead of 2.13.0"`` for whatever differs, or nothing."""
    pairs = [(name, found.get(name, "missing"), want) for name, want in wanted.items()]
    return ", ".join(f"{name} {has} instead of {want}" for name, has, want in pairs if has != want)


@contextmanager
def _note(folder: Path) -> Iterator[Path]:
    """A file that only whoever mounts the same storage can find; gone afterwards, answers too."""
    note = folder / NOTES / uuid.uuid4().hex
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text("do you see this?", encoding="utf-8")
    try:
        yield note
    finally:
        shutil.rmtree(note.parent, ignore_errors=True)


def _answer(note: Path, node_id: str) -> Path:
    return note.with_name(f"{note.name}-{node_id}")


def _unanswered(note: Path, node_id: str) -> str:
    return "" if _answer(note, node_id).exists() else "what it writes there does not arrive here"


def _last_line(error: RayError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no more is known'}"
