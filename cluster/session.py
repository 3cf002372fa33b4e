"""Starts or joins a Ray cluster, and asks it what it has."""

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray

from cluster import interrupts
from cluster.placement import Node, Placed, inventory, place, processes
from configs.run import RunConfig

ROOT = Path(__file__).parents[1]
NOT_SHIPPED = [
    "/.venv/",
    "/outputs/",
    "/.git/",
    "/checkpoints/",
    "/.pytest_cache/",
    "/.ruff_cache/",
]


@contextmanager
def session(run: RunConfig, tasks: list[str]) -> Iterator[None]:
    """A Ray that this run may use: its own, stopped at the end, or one that is already up.

    Raises:
        ValueError: no cluster answers at ``cluster.address``.
    """
    # A metrics agent that reports to nobody, and a warning that CUDA variables stay as they are.
    # Lance warns at every fork; Ray's own forks exec at once, and its workers are fresh processes.
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_worker_niceness", "0")  # the run is what the machine is for
    with interrupts.kept():
        if run.cluster.address:
            _join(run)
        else:
            _start(run, tasks)
    try:
        yield
    finally:
        with interrupts.undisturbed():
            ray.shutdown()


def _join(run: RunConfig) -> None:
    try:
        ray.init(
            address=run.cluster.address,
            runtime_env={"working_dir": str(ROOT), "excludes": NOT_SHIPPED},
            log_to_driver=False,
        )
    except ConnectionError as error:
        raise ValueError(
            f"cluster.address={run.cluster.address}: no Ray cluster answers there ({error}). "
            "Start one with `ray start --head`, or use cluster=local"
        ) from error


def _start(run: RunConfig, tasks: list[str]) -> None:
    ray.init(
        num_cpus=_local_cpus(run, tasks),
        resources={run.robot.resource: run.robot.count},
        object_store_memory=run.cluster.object_store_mb * 2**20,
        include_dashboard=run.cluster.dashboard,
        log_to_driver=False,
        logging_level=logging.ERROR,
        # Local workers import the code from here; nothing is copied.
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )


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
                )
            )
    return found


def _local_cpus(run: RunConfig, tasks: list[str]) -> int:
    """As many as the widest stage asks for: these are Ray's shares, not the machine's cores."""
    return run.cluster.num_cpus or max(2, math.ceil(run.peak_cpus(tasks)))


def placed(run: RunConfig, tasks: list[str]) -> list[Placed]:
    """Where the connected cluster can hold the run, or a ShortageError."""
    return place(processes(run, tasks), nodes(run.robot.resource))


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
