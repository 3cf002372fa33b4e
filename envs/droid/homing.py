"""The way home before an episode, as a closed loop at 15 Hz.

DROID's own reset is one blocking call of up to 4 s that nobody can stop and whose failure nobody
sees. Here every tick passes the same guard as a policy's, and the end is verified.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from contracts.constants import CONTROL_HZ, NUM_JOINTS, RAD_PER_TICK
from contracts.panda import RESET_JOINTS
from contracts.types import RobotState
from envs.safety import FaultError, Guard, Limits, gentler

HOME_SPEED = 0.5  # of a joint velocity of 1.0
OPEN_TICKS = 8  # the gripper opens in place before the arm moves
OPENED = 0.1  # a gripper position that counts as open
OPEN_PATIENCE = 45  # ticks after which something in the fingers no longer delays an episode


@dataclass
class Homing:
    """One way home; ask ``action`` once a tick and let ``guard`` see what it says."""

    limits: Limits
    guard: Guard = field(init=False)
    _ticks: int = 0

    def __post_init__(self) -> None:
        self.guard = Guard(gentler(self.limits, HOME_SPEED))

    def action(self, state: RobotState) -> Float[np.ndarray, " 8"] | None:
        """What to ask for next; None: the arm is at home.

        Raises:
            FaultError: it should have been there by now.
        """
        away = RESET_JOINTS - state.joint_position
        error = float(np.abs(away).max())
        opened = state.gripper_position < OPENED or self._ticks > OPEN_PATIENCE
        if opened and error < self.limits.home_error:
            return None
        self._ticks += 1
        if self._ticks > self.limits.home_timeout_s * CONTROL_HZ:
            waited = f"after {self.limits.home_timeout_s:g} s"
            raise FaultError("reset_failed", f"the arm is {error:.2f} rad from home {waited}")
        action = np.zeros(NUM_JOINTS + 1)
        if opened or self._ticks > OPEN_TICKS:
            action[:NUM_JOINTS] = away / RAD_PER_TICK
        return action
