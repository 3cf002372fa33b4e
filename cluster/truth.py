"""The stage that no real lab has: what imagined actions do in the simulator that is the world."""

from typing import Any

from actors.open_loop import OpenLoop
from cluster.collecting import Work, on_robots
from cluster.context import Context, Versions
from cluster.robots import PhysicsProcess
from contracts.constants import TICKS_PER_FRAME

Truths = dict[str, dict[str, bool]]  # task -> imagined trajectory -> whether its actions succeed


def truth(run: Context, iteration: int, versions: Versions) -> Truths:
    """Execute this iteration's imagined actions open loop in MuJoCo, each from its own real start.

    Of all that were scored, or with ``evaluation.truth=accepted`` of D_syn+ alone. Nothing learns
    from the answers.
    """
    found: Truths = {task: {} for task in run.tasks}
    plans = _plans(run, iteration, versions.reward)
    with run.reporter.stage(f"{iteration} truth", len(plans), "trajectories") as bar:

        def keep(plan: OpenLoop, success: bool) -> None:
            found[plan.task][plan.trajectory_id] = success

        if plans:
            on_robots(run, (PhysicsProcess, run.config.robot), Work(plans, _begin, keep), bar)
    # in the order of the names, whichever robot was quicker
    return {task: dict(sorted(answers.items())) for task, answers in found.items()}


def _begin(robot: Any, plan: OpenLoop) -> Any:
    return robot.succeeds.remote(plan)


def _plans(run: Context, iteration: int, reward_version: int) -> list[OpenLoop]:
    imagined, real = run.reader("imagined"), run.reader("real")
    parents = {row.id: row for row in real.episodes()}
    verdicts = imagined.verdicts(reward_version=reward_version)
    every = run.config.evaluation.truth == "all"
    plans = []
    for row in imagined.episodes(imagined.ids(iteration=iteration)):
        story, verdict = row.provenance, verdicts.get(row.id)
        if verdict is None or verdict.error:
            continue
        if not (every or verdict.accepted(run.config.for_task(story.task).alpha)):
            continue
        parent = parents[story.parent]
        plans.append(
            OpenLoop(
                trajectory_id=row.id,
                task=story.task,
                seed=parent.provenance.seed,
                before=parent.actions[: TICKS_PER_FRAME * story.parent_frame],
                start=row.joint_position[0],
                actions=row.actions,
                settle_ticks=run.config.robot.settle_ticks,
            )
        )
    return plans
