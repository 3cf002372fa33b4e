"""Actions executed without looking: what becomes of imagined ones in the world itself."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from actors.rollout import Finished
from configs.robot import SETTLE_TICKS
from contracts.protocols import RobotEnv

START_TOLERANCE = 1e-4  # rad; float32 of a stored state


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """``actions`` of an imagined trajectory, from where a real episode stood after ``before``.

    ``seed`` is that of the real episode's scene, ``start`` the joint angles [rad] there.
    """

    trajectory_id: str
    task: str
    seed: int
    before: Float32[np.ndarray, "real_ticks 8"]
    start: Float32[np.ndarray, " 7"]
    actions: Float32[np.ndarray, "ticks 8"]
    settle_ticks: int = SETTLE_TICKS


def succeeds(robot: RobotEnv, finished: Finished, plan: OpenLoop) -> bool:
    """Whether the actions reach the goal: by the rule that ends and labels a real episode.

    ``finished`` is asked after every tick; ``plan.settle_ticks`` yeses in a row, or a yes after the
    last tick, are a success.

    Raises:
        ValueError: the scene does not come to where the trajectory starts: not its simulator.
    """
    robot.reset(plan.task, plan.seed)
    for action in plan.before:
        robot.step(action)
    off = float(np.abs(robot.observe().state.joint_position - plan.start).max())
    if off > START_TOLERANCE:
        raise ValueError(
            f"{plan.trajectory_id} does not start where seed {plan.seed} leads (joints differ by "
            f"{off:.4f} rad): its real episodes come from another simulator. Set "
            "evaluation.truth=none"
        )
    agreed = 0
    for action in plan.actions:
        robot.step(action)
        agreed = agreed + 1 if finished() else 0
        if agreed >= plan.settle_ticks:
            return True
    return agreed > 0
