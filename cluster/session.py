"""Starts or joins a Ray cluster."""

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from cluster import interrupts, submitted
from configs.run import RunConfig

ROOT = Path(__file__).parents[1]


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
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # 2 s idle at each end
    os.environ.setdefault("RAY_worker_niceness", "0")  # the run is what the machine is for
    with interrupts.kept():
        if is_joined(run):
            _join(run.cluster.address or "auto")
        else:
            _start(run, tasks)
    try:
        yield
    finally:
        with interrupts.undisturbed():
            ray.shutdown()


def is_joined(run: RunConfig) -> bool:
    """Whether the run uses a cluster that is already up: so told, or in a submitted job."""
    return bool(run.cluster.address) or submitted.runtime_env() is not None


def _join(address: str) -> None:
    try:
        ray.init(
            address=address,
            runtime_env=_shipped(),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ConnectionError as error:
        raise ValueError(
            f"cluster.address={address}: no Ray cluster answers there ({error}). Start one with "
            "`ray start --head`, or use cluster=local. If there is one, it may want its token: set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=<file>"
        ) from error
    except ValueError as error:
        if "RAY_ADDRESS" not in str(error):
            raise
        raise ValueError(
            f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS')} is where jobs are submitted: use "
            "`ray job submit`, or give cluster.address=<head>:6379"
        ) from error
    except RuntimeError as error:
        if "ersion mismatch" not in str(error):
            raise
        raise ValueError(
            f"cluster.address={address} runs other versions: {' '.join(str(error).split())} "
            "Install the same Python and requirements.txt on every machine"
        ) from error


def _shipped() -> dict[str, Any] | None:
    """The code that workers import: what `.rayignore` leaves over, unless the job brought it."""
    given = submitted.runtime_env() or {}
    return None if "working_dir" in given else {"working_dir": str(ROOT)}


def _start(run: RunConfig, tasks: list[str]) -> None:
    # Nobody takes this machine away with a notice, and each training would start a process for it.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    ray.init(
        address="local",  # whatever RAY_ADDRESS says
        num_cpus=_local_cpus(run, tasks),
        resources={run.robot.resource: run.robot.count},
        object_store_memory=run.cluster.object_store_mb * 2**20,
        include_dashboard=run.cluster.dashboard,
        log_to_driver=False,
        logging_level=logging.ERROR,
        # Local workers import the code from here; nothing is copied.
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )


def _local_cpus(run: RunConfig, tasks: list[str]) -> int:
    """As many as the widest stage asks for: these are Ray's shares, not the machine's cores."""
    return run.cluster.num_cpus or max(2, math.ceil(run.peak_cpus(tasks)))
