"""Stages that touch the robot: demonstrations, real rollouts, evaluation."""

from collections.abc import Sequence
from typing import Any

import ray

from actors.rollout import EpisodeRequest
from cluster.context import Context
from cluster.handles import RemotePolicy, answer
from cluster.processes import DemonstrationProcess, RobotProcess
from configs.run import RunConfig
from contracts.seeds import fold
from contracts.types import Checkpoint
from services.progress import Bar
from services.serving import PolicyServer


def demonstrations(run: Context) -> dict[str, Any]:
    """Scripted demonstrations for every task, stored in ``demos``; failures are kept and labelled."""
    config = run.config
    wanted = [
        (task, fold(config.seed, "demo", task, k), f"demo-{task}-{k:04d}")
        for task in run.tasks
        for k in range(config.demos.per_task)
    ]
    done = set(run.reader("demos").ids())
    missing = [item for item in wanted if item[2] not in done]
    with run.reporter.stage("demonstrations", len(wanted), "episodes") as bar:
        bar.at(len(wanted) - len(missing))
        robots = [_demonstrator(config) for _ in range(config.robot.count)]
        _spread(robots, missing, run, "demos", bar)
    return _outcomes(run, "demos", [item[2] for item in wanted])


def roll_out(
    run: Context, name: str, policy: Checkpoint, requests: Sequence[EpisodeRequest], store: str
) -> dict[str, Any]:
    """Play every request that is not stored yet, on all robots; a stored episode never plays again."""
    done = set(run.reader(store).ids())
    missing = [request for request in requests if request.trajectory_id not in done]
    with run.reporter.stage(name, len(requests), "episodes") as bar:
        bar.at(len(requests) - len(missing))
        if missing:
            _play(run, policy, missing, store, bar)
    return _outcomes(run, store, [request.trajectory_id for request in requests])


def _play(
    run: Context, policy: Checkpoint, requests: Sequence[EpisodeRequest], store: str, bar: Bar
) -> None:
    config, cluster = run.config, run.config.cluster
    server = (
        ray.remote(PolicyServer)
        .options(
            num_cpus=cluster.worker_cpus,
            num_gpus=cluster.worker_gpus,
            max_restarts=-1,
            max_task_retries=3,
        )
        .remote(config.policy, policy)
    )
    handle = RemotePolicy(server, answer(server.version.remote(), cluster.start_timeout_s))
    robots = [_robot(config, handle) for _ in range(config.robot.count)]
    try:
        _spread(robots, list(requests), run, store, bar)
    finally:
        for actor in (*robots, server):
            ray.kill(actor)


def _robot(config: RunConfig, policy: RemotePolicy) -> Any:
    # A dead robot process is never started again by itself: a retried step is a repeated motion.
    options = {"num_cpus": config.cluster.worker_cpus, "resources": {config.robot.resource: 1}}
    return ray.remote(RobotProcess).options(**options, max_restarts=0).remote(config, policy)


def _demonstrator(config: RunConfig) -> Any:
    options = {"num_cpus": config.cluster.worker_cpus, "resources": {config.robot.resource: 1}}
    return ray.remote(DemonstrationProcess).options(**options, max_restarts=0).remote(config)


def _spread(robots: list[Any], work: list[Any], run: Context, store: str, bar: Bar) -> None:
    """Give each robot its next episode as soon as its last one is stored."""
    waiting = list(reversed(work))
    busy: dict[Any, Any] = {}
    idle = list(robots)
    while waiting or busy:
        while idle and waiting:
            robot = idle.pop()
            item = waiting.pop()
            trajectory, label = robot.collect.options(num_returns=2).remote(item)
            # The episode travels robot -> store through the object store, never through the driver.
            busy[run.replay.add.remote(store, trajectory, label)] = robot
        ready, _ = ray.wait(list(busy), timeout=run.config.cluster.stall_timeout_s)
        if not ready:
            raise RuntimeError(
                f"{bar.name}: no episode ended for {run.config.cluster.stall_timeout_s:g} s; "
                "look at the robot, or raise cluster.stall_timeout_s"
            )
        for reference in ready:
            idle.append(busy.pop(reference))
            answer(reference)
            bar.advance()


def _outcomes(run: Context, store: str, ids: list[str]) -> dict[str, Any]:
    """Successes and attempts per task among ``ids``; aborted episodes count as attempts."""
    wanted = set(ids)
    counts: dict[str, dict[str, int]] = {}
    for row in run.reader(store).episodes():
        if row.id in wanted and row.label is not None:
            task = counts.setdefault(row.provenance.task, {"successes": 0, "n": 0, "ticks": 0})
            task["n"] += 1
            task["successes"] += int(row.label.success)
            task["ticks"] += row.num_ticks
    return counts
