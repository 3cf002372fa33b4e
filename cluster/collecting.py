"""Stages that touch the robot: demonstrations, real rollouts, evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.rollout import EpisodeRequest
from cluster.context import Context
from cluster.handles import RemotePolicy, answer, end, spread, start, up
from cluster.robots import DemonstrationProcess, DemonstrationRequest, RobotProcess
from configs.policy import PolicyConfig
from configs.run import RunConfig
from contracts.seeds import fold
from contracts.types import Checkpoint
from envs.recorded.robot import Choice, RecordedRobot
from services.progress import Bar
from services.serving import PolicyServer

SHOWN = 10  # recordings that cannot be used are named on the terminal, the others in stages/


@dataclass(frozen=True, slots=True)
class Acting:
    """A policy on the robot, and how it acts."""

    checkpoint: Checkpoint
    config: PolicyConfig


def _acting(run: Context, policy: int, noise: float) -> Acting:
    checkpoint = run.checkpoints.open("policy", policy)
    return Acting(checkpoint, replace(run.config.policy, noise=noise))


def demonstrations(run: Context) -> dict[str, Any]:
    """Fill ``demos``: scripted in simulation, or recorded episodes (D_DROID of Eq. 2)."""
    config = run.config
    if config.demos.path:
        return import_recordings(run, "demos", recordings(config, "", demos=True))
    if config.robot.kind == "recorded":
        return import_recordings(run, "demos", recordings(config, "train"))
    wanted = [
        DemonstrationRequest(
            f"demo-{task}-{k:04d}", task, fold(config.seed, "demo", task, k), config.demos.noise
        )
        for task in run.tasks
        for k in range(config.demos.per_task)
    ]
    return _script(run, "demonstrations", wanted, "demos")


def _script(
    run: Context, name: str, wanted: Sequence[DemonstrationRequest], store: str
) -> dict[str, Any]:
    done = set(run.reader(store).ids())
    missing = [request for request in wanted if request.trajectory_id not in done]
    with run.reporter.stage(name, len(wanted), "episodes") as bar:
        bar.begin_with(len(wanted) - len(missing))
        if missing:
            robot = (DemonstrationProcess, run.config.robot)
            on_robots(run, robot, episodes(run, missing, store), bar)
    return _outcomes(run, store, [request.trajectory_id for request in wanted])


def collect(run: Context, iteration: int, policy: int) -> dict[str, Any]:
    """K labelled episodes per task with one policy version; D_real only grows."""
    config = run.config
    if config.robot.kind == "recorded":
        return import_recordings(run, "real", recordings(config, "train"))
    requests = [
        _request(
            config,
            f"real-{iteration}-{task}-{k:04d}",
            task,
            iteration,
            fold(config.seed, "real", iteration, task, k),
        )
        for k in range(max(config.for_task(task).rollouts for task in run.tasks))
        for task in run.tasks
        if k < config.for_task(task).rollouts
    ]
    return roll_out(
        run, f"{iteration} collect", _acting(run, policy, config.policy.noise), requests, "real"
    )


def evaluate(run: Context, name: str, policy: int) -> dict[str, Any]:
    """Success from fixed starts that no training sees; the same starts for every policy."""
    config = run.config
    if config.robot.kind == "recorded":
        # Recordings cannot answer a new policy. What was held out judges the world model.
        if len(held_out := recordings(config, "val")):
            import_recordings(run, "evaluation", held_out)
        return {}
    requests = [
        _request(config, f"evaluation-{name}-{task}-{k:04d}", task, 0, config.evaluation.seed + k)
        for k in range(config.evaluation.episodes)
        for task in run.tasks
    ]
    acting = _acting(run, policy, config.evaluation.noise)
    return roll_out(run, f"evaluate {name}", acting, requests, "evaluation")


def _request(
    config: RunConfig, trajectory_id: str, task: str, iteration: int, seed: int
) -> EpisodeRequest:
    return EpisodeRequest(
        trajectory_id=trajectory_id,
        task=task,
        iteration=iteration,
        seed=seed,
        max_ticks=config.max_ticks(task),
        execute=config.policy.execute,
        settle_ticks=config.robot.settle_ticks,
    )


def recordings(config: RunConfig, split: str, demos: bool = False) -> RecordedRobot:
    """The recordings that take the robot's place, or with ``demos`` those of ``demos.path``.

    Raises:
        ValueError: the folder holds none, in no layout that is known.
    """
    robot = config.robot
    folder, limit = (config.demos.path, config.demos.limit) if demos else (robot.path, robot.limit)
    choice = Choice(split, robot.instruction, robot.holdout, limit, robot.untitled)
    return RecordedRobot(folder, robot.height, robot.width, choice)


def import_recordings(run: Context, store: str, robot: RecordedRobot) -> dict[str, Any]:
    """Store recorded episodes that are not stored yet; say which could not be read and why."""
    known = set(run.reader(store).ids())
    writer, ids = run.writer(store), [name for name in robot.ids() if name in known]
    with run.reporter.stage(f"read recordings ({store})", len(robot), "episodes") as bar:
        bar.begin_with(len(ids))
        for trajectory, label in robot.episodes(known):
            writer.add(trajectory, label)
            ids.append(trajectory.id)
            bar.advance()
    _say_skipped(run, robot)
    return _outcomes(run, store, ids) | {"skipped": {s.episode: s.reason for s in robot.skipped}}


def _say_skipped(run: Context, robot: RecordedRobot) -> None:
    """How many recordings are not used, and the first reasons; all of them are in ``stages/``."""
    for note in robot.notes:
        run.reporter.say(f"  {note}")
    if not robot.skipped:
        return
    run.reporter.say(f"  {len(robot.skipped)} of {len(robot)} recordings are not used:")
    for skipped in robot.skipped[:SHOWN]:
        run.reporter.say(f"  skipped {skipped.episode}: {skipped.reason}")
    if len(robot.skipped) > SHOWN:
        run.reporter.say(
            f"  and {len(robot.skipped) - SHOWN} more, listed in {run.folder / 'stages'}"
        )


def roll_out(
    run: Context, name: str, policy: Acting, requests: Sequence[EpisodeRequest], store: str
) -> dict[str, Any]:
    """Play every request that is not stored yet, on all robots; what is stored stays."""
    done = set(run.reader(store).ids())
    missing = [request for request in requests if request.trajectory_id not in done]
    with run.reporter.stage(name, len(requests), "episodes") as bar:
        bar.begin_with(len(requests) - len(missing))
        if missing:
            _play(run, policy, missing, store, bar)
            _say_aborted(run, store, [request.trajectory_id for request in missing])
    return _outcomes(run, store, [request.trajectory_id for request in requests])


def _say_aborted(run: Context, store: str, ids: list[str]) -> None:
    for row in run.reader(store).episodes(ids):
        if row.ending.startswith("aborted"):
            run.reporter.say(f"  {row.id} ended after {row.num_ticks} ticks, {row.ending}")


def _play(
    run: Context, policy: Acting, requests: Sequence[EpisodeRequest], store: str, bar: Bar
) -> None:
    config, cluster = run.config, run.config.cluster
    server = start(
        PolicyServer,
        policy.config,
        policy.checkpoint,
        num_cpus=cluster.worker_cpus,
        num_gpus=cluster.worker_gpus,
        max_restarts=-1,
        max_task_retries=3,
    )
    bar.hold(cluster.worker_gpus)
    try:
        robot = (RobotProcess, config, RemotePolicy(server, policy.checkpoint.version))
        on_robots(run, robot, episodes(run, requests, store), bar, server)
    finally:
        end(server)


@dataclass(frozen=True, slots=True)
class Work:
    """What robots are to do: ``begin(robot, piece)`` returns the reference to wait for,
    ``done(piece, result)`` gets what came out."""

    pieces: Sequence[Any]
    begin: Callable[[Any, Any], Any]
    done: Callable[[Any, Any], None] = lambda _piece, _result: None


def episodes(run: Context, requests: Sequence[Any], store: str) -> Work:
    """Each is over when it is stored."""

    def begin(robot: Any, item: Any) -> Any:
        trajectory, label = robot.collect.options(num_returns=2).remote(item)
        # The episode travels robot -> store through the object store, never through the driver.
        return run.replay.add.remote(store, trajectory, label)

    return Work(requests, begin)


def on_robots(
    run: Context, robot: tuple[Any, ...], work: Work, bar: Bar, server: Any = None
) -> None:
    """Give each robot its next piece of work as soon as its last one is done. ``robot`` is the
    class of its process and what it is made from; the policy's ``server`` may still be starting.

    Only a simulated robot that died is replaced, and its episode played again with its seed. A
    process that drives an arm is never started again by itself: that would be an unasked motion.
    """
    config, cluster = run.config, run.config.cluster
    asked = {"num_cpus": cluster.worker_cpus, "resources": {config.robot.resource: 1}}

    def hire() -> Any:
        return up(start(*robot, **asked, max_restarts=0), "robot", cluster.start_timeout_s)

    def ended(piece: Any, result: Any) -> None:
        work.done(piece, result)
        bar.advance()

    simulated = config.robot.kind == "mujoco"
    advice = "look at the robot's log in the Ray dashboard" if simulated else "look at the robot"
    stall = run.stall(bar, advice, **({"policy_server": server} if server else {}))
    if config.robot.kind == "droid":  # a person lays each scene
        stall = replace(stall, timeout_s=max(stall.timeout_s, config.robot.person_s))
    robots = [start(*robot, **asked, max_restarts=0) for _ in range(config.robot.count)]
    try:
        if server:
            answer(up(server, "policy server", cluster.start_timeout_s).version.remote())
        for one in robots:  # they started beside the server; one that cannot would take work along
            up(one, "robot", cluster.start_timeout_s)
        again = hire if simulated else None
        spread(robots, work.pieces, work.begin, ended, stall, again)
    finally:
        end(*robots)


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
