"""The simulated arm: MuJoCo physics under DROID's impedance law, one 15 Hz tick at a time."""

from typing import Protocol, runtime_checkable

import mujoco
import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8

from contracts.constants import CONTROL_HZ, NUM_JOINTS, RAD_PER_TICK
from contracts.panda import (
    CARTESIAN_DAMPING,
    CARTESIAN_STIFFNESS,
    JOINT_DAMPING,
    JOINT_HIGH,
    JOINT_LOW,
    JOINT_STIFFNESS,
    RESET_JOINTS,
)
from contracts.types import RobotState
from envs.mujoco.rotations import euler_from_matrix
from envs.mujoco.scene import (
    ACTUATOR_GRIPPER,
    FINGER_JOINTS,
    PAD_GEOMS,
    STROKE,
    build_scene,
)

LINEAR = 0.075  # m that a cartesian velocity of 1.0 asks for in one tick (DROID)
ANGULAR = 0.15  # rad, likewise
HOOK_EVERY = 4  # physics steps between two calls of the task's substep; also of the Jacobian
FINGER_SPEED = 0.063  # m/s of opening: Robotiq goto at DROID's speed register 146
GRIPPER_LEAD = 0.18  # how far the gripper's set point may run ahead of where an object stops it
SETTLE_STEPS = 75  # physics steps (0.3 s) that objects get to come to rest after a reset
START_NOISE = 0.03  # rad, standard deviation of the start joints

DAMPING_SQUARED = 1e-4  # of the damped least squares inverse
POSTURE_GAIN = 0.05  # pull of the null space towards the reset posture, per tick


@runtime_checkable
class Scenario(Protocol):
    """The part of a task that the simulation calls."""

    canvas: UInt8[np.ndarray, "rows columns 3"] | None

    def build(self, spec: mujoco.MjSpec) -> None: ...

    def instruction(self, rng: np.random.Generator) -> str: ...

    def reset(self, sim: "Simulation", rng: np.random.Generator) -> None: ...

    def substep(self, sim: "Simulation") -> None: ...


class Simulation:
    """One rig with one task's objects, compiled once and reset for every episode.

    ``model`` and ``data`` are MuJoCo's own; tasks read and place bodies through the accessors.
    """

    def __init__(self, task: Scenario, timestep: float = 0.004) -> None:
        self.task = task
        self.model = build_scene(task, timestep).compile()
        self.data = mujoco.MjData(self.model)
        self.ticks = 0
        self.instruction = ""
        self._steps_per_second = round(1.0 / timestep)
        self._flange = self.model.site("flange").id
        self._gripper = self.model.actuator(ACTUATOR_GRIPPER).id
        first = int(self.model.joint(FINGER_JOINTS[0]).qposadr[0])
        self._fingers = slice(first, first + len(FINGER_JOINTS))
        self._pads = np.array([self.model.geom(name).id for name in PAD_GEOMS])
        self._jacobian = np.zeros((6, self.model.nv))
        self._target = RESET_JOINTS.copy()
        self._gripper_goal = self._gripper_command = 0.0

    # ---- episode -------------------------------------------------------------------------

    def reset(self, rng: np.random.Generator) -> str:
        """Start an episode that is a function of ``rng`` alone; returns its instruction."""
        mujoco.mj_resetData(self.model, self.data)
        start = RESET_JOINTS + rng.normal(0.0, START_NOISE, NUM_JOINTS)
        self.data.qpos[:NUM_JOINTS] = start
        self.data.qpos[self._fingers] = STROKE / 2
        self._target = start
        self._gripper_goal = self._gripper_command = 0.0
        self.instruction = self.task.instruction(rng)
        self.task.reset(self, rng)
        mujoco.mj_forward(self.model, self.data)
        self._advance(SETTLE_STEPS)
        self.data.time = 0.0
        self.ticks = 0
        return self.instruction

    def step(self, action: Float[np.ndarray, " 8"]) -> RobotState:
        """Execute one tick of DROID ``joint_velocity`` with absolute gripper position.

        The target is the *measured* posture plus 0.2 rad times the velocity, as on DROID's control
        machine; a velocity beyond 1 is scaled down as a whole.

        Raises:
            ValueError: the action is not finite.
        """
        if not np.isfinite(action).all():
            raise ValueError(f"action {action.tolist()} is not finite: check the policy's output")
        velocity = np.asarray(action[:NUM_JOINTS], dtype=np.float64)
        velocity = velocity / max(1.0, float(np.abs(velocity).max()))
        self.aim(self.data.qpos[:NUM_JOINTS] + RAD_PER_TICK * velocity, float(action[NUM_JOINTS]))
        self.idle()
        return self.state()

    def aim(self, joints: Float64[np.ndarray, " 7"], gripper: float | int) -> None:
        """Set the targets [rad; 0 open to 1 closed], within their ranges; no time passes."""
        self._target = np.clip(joints, JOINT_LOW, JOINT_HIGH)
        self._gripper_goal = float(np.clip(gripper, 0.0, 1.0))

    def idle(self) -> None:
        """Let one tick pass with the targets that there are."""
        self.ticks += 1
        self._advance(self._steps_before(self.ticks) - self._steps_before(self.ticks - 1))

    def run(self, steps: int) -> None:
        """Let physics run on, for whoever keeps time by himself; ``ticks`` follows."""
        self._advance(steps)
        self.ticks = int(self.data.time * CONTROL_HZ)

    def hold(self) -> None:
        """Make the present posture and grip the target; the clock does not advance."""
        self._target = self.data.qpos[:NUM_JOINTS].copy()
        self._gripper_goal = self._gripper_command

    def state(self) -> RobotState:
        return RobotState(
            joint_position=self.data.qpos[:NUM_JOINTS].astype(np.float32),
            joint_velocity=self.data.qvel[:NUM_JOINTS].astype(np.float32),
            cartesian_position=self.pose().astype(np.float32),
            gripper_position=self.gripper_position(),
            time_s=float(self.data.time),
        )

    # ---- control -------------------------------------------------------------------------

    def cartesian_to_joint_velocity(
        self, cartesian: Float64[np.ndarray, " 7"]
    ) -> Float64[np.ndarray, " 8"]:
        """Joint-velocity action that moves the flange by a DROID cartesian velocity.

        Damped least squares with a null-space pull towards the reset posture, in place of DROID's
        QP. Scaled so that no joint exceeds 1.0.
        """
        motion = np.concatenate([LINEAR * cartesian[:3], ANGULAR * cartesian[3:6]])
        jacobian = self._arm_jacobian()
        inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + DAMPING_SQUARED * np.eye(6))
        posture = POSTURE_GAIN * (RESET_JOINTS - self.data.qpos[:NUM_JOINTS])
        change = inverse @ (motion - jacobian @ posture) + posture
        velocity = change / RAD_PER_TICK
        return np.append(velocity / max(1.0, float(np.abs(velocity).max())), cartesian[6])

    def _steps_before(self, ticks: int) -> int:
        """Physics steps in the first ``ticks`` ticks: 1/15 s is no multiple of the time step."""
        return ticks * self._steps_per_second // CONTROL_HZ

    def _arm_jacobian(self) -> Float64[np.ndarray, "6 7"]:
        full = self._jacobian
        mujoco.mj_jacSite(self.model, self.data, full[:3], full[3:], self._flange)
        return full[:, :NUM_JOINTS]

    def _advance(self, steps: int) -> None:
        """Run physics under the impedance law; the Jacobian is refreshed every few steps."""
        data, target = self.data, self._target
        position, velocity = data.qpos[:NUM_JOINTS], data.qvel[:NUM_JOINTS]
        bias, torque = data.qfrc_bias[:NUM_JOINTS], data.ctrl[:NUM_JOINTS]
        stride = self.model.opt.timestep * FINGER_SPEED / STROKE
        stiffness = damping = np.zeros((NUM_JOINTS, NUM_JOINTS))
        for index in range(steps):
            if index % HOOK_EVERY == 0:
                jacobian = self._arm_jacobian()
                stiffness = (jacobian.T * CARTESIAN_STIFFNESS) @ jacobian + np.diag(JOINT_STIFFNESS)
                damping = (jacobian.T * CARTESIAN_DAMPING) @ jacobian + np.diag(JOINT_DAMPING)
            torque[:] = stiffness @ (target - position) - damping @ velocity + bias
            data.ctrl[self._gripper] = self._next_finger_target(stride)
            mujoco.mj_step(self.model, data)
            if index % HOOK_EVERY == HOOK_EVERY - 1:
                self.task.substep(self)

    def _next_finger_target(self, stride: float) -> float:
        """Half the width in m to servo to: a step towards the goal, never far from the fingers."""
        here = self._closed()
        wanted = self._gripper_command + min(
            max(self._gripper_goal - self._gripper_command, -stride), stride
        )
        self._gripper_command = min(max(wanted, here - GRIPPER_LEAD), here + GRIPPER_LEAD)
        return 0.5 * STROKE * (1.0 - self._gripper_command)

    def _closed(self) -> float:
        return 1.0 - float(self.data.qpos[self._fingers].sum()) / STROKE

    # ---- what tasks and experts read and place --------------------------------------------

    @property
    def canvas(self) -> UInt8[np.ndarray, "rows columns 3"] | None:
        """What is drawn on the task's board, for the renderers; None without a board."""
        return self.task.canvas

    def pose(self) -> Float64[np.ndarray, " 6"]:
        """Flange position in m and extrinsic xyz Euler angles in rad, in the base frame."""
        return np.concatenate(
            [self.data.site_xpos[self._flange], euler_from_matrix(self.flange_matrix())]
        )

    def flange_matrix(self) -> Float64[np.ndarray, "3 3"]:
        return self.data.site_xmat[self._flange].reshape(3, 3)

    def gripper_position(self) -> float:
        """0 open, 1 closed, from the measured finger positions."""
        return min(max(self._closed(), 0.0), 1.0)

    @property
    def target(self) -> Float64[np.ndarray, " 7"]:
        """Where the arm's springs pull to [rad]."""
        return self._target.copy()

    @property
    def grip(self) -> float:
        """The gripper's set point; ahead of the fingers where an object stops them."""
        return self._gripper_command

    def body_position(self, name: str) -> Float64[np.ndarray, " 3"]:
        return self.data.body(name).xpos.copy()

    def body_matrix(self, name: str) -> Float64[np.ndarray, "3 3"]:
        return self.data.body(name).xmat.reshape(3, 3).copy()

    def body_speed(self, name: str) -> float:
        """Larger of linear speed in m/s and angular speed in rad/s times 0.05 m, of a free body."""
        address = int(self.model.body(name).dofadr[0])
        linear, angular = self.data.qvel[address : address + 3], self.data.qvel[address + 3 :][:3]
        return max(float(np.linalg.norm(linear)), 0.05 * float(np.linalg.norm(angular)))

    def place(
        self,
        name: str,
        position: Float64[np.ndarray, " 3"],
        quaternion: Float64[np.ndarray, " 4"] | None = None,
    ) -> None:
        """Put a body with a free joint somewhere (m; w, x, y, z), or a mocap body."""
        turn = np.array([1.0, 0.0, 0.0, 0.0]) if quaternion is None else quaternion
        body = self.model.body(name)
        mocap = int(body.mocapid[0])
        if mocap >= 0:
            self.data.mocap_pos[mocap], self.data.mocap_quat[mocap] = position, turn
            return
        address = int(self.model.jnt_qposadr[body.jntadr[0]])
        self.data.qpos[address : address + 7] = np.concatenate([position, turn])

    def touching(self, first: str, second: str) -> bool:
        """Whether two named geoms are in contact."""
        pair = {self.model.geom(first).id, self.model.geom(second).id}
        return any({int(a), int(b)} == pair for a, b in self.data.contact.geom)

    def gripper_touches(self, geom: str) -> bool:
        """Whether a finger pad is in contact with the named geom."""
        contacts = self.data.contact.geom
        mine: Bool[np.ndarray, "contacts 2"] = contacts == self.model.geom(geom).id
        return bool((mine & np.isin(contacts[:, ::-1], self._pads)).any())
