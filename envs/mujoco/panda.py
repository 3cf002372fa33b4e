"""A Franka Panda with a Robotiq 2F-85, built from primitive shapes on the real joint frames.

Frames are Franka's modified Denavit-Hartenberg rows. Masses, centres and inertias of the links are
those identified by Gaz et al. (RA-L 2019); the gripper weighs what Robotiq says, 0.925 kg. The
shapes are ours.
"""

from dataclasses import dataclass

import mujoco
import numpy as np

from contracts.panda import DH_ROWS, FLANGE_OFFSET, INERTIALS, Inertial, Vector

PI = float(np.pi)
JOINT_RANGES = (
    (-2.8973, 2.8973),
    (-1.7628, 1.7628),
    (-2.8973, 2.8973),
    (-3.0718, -0.0698),
    (-2.8973, 2.8973),
    (-0.0175, 3.7525),
    (-2.8973, 2.8973),
)
TORQUE_LIMITS = (87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0)  # Nm
ARMATURE = 0.1  # kg m^2, reflected inertia of a motor
# Nm s/rad, friction that the control law does not know of. With it a constant velocity reaches
# 34-46 % of what it asks for, as the same law did on other Panda models; real episodes lag more.
VISCOUS = (2.0, 1.0, 2.0, 1.0, 2.0, 2.0, 1.0)

STROKE = 0.085  # m between open pads
TOOL_POINT = 0.150  # m from the flange to the middle of the pads
FINGERTIP = 0.165  # m from the flange to the fingertips
FINGER_JOINTS = ("finger_left", "finger_right")
PAD_GEOMS = ("pad_left", "pad_right")
ACTUATOR_GRIPPER = "gripper"
GRIP_FORCE = 40.0  # N, both fingers together: twice the least that a 2F-85 can be told

WHITE = (0.92, 0.92, 0.93, 1.0)
GREY = (0.55, 0.57, 0.60, 1.0)
BLACK = (0.11, 0.11, 0.12, 1.0)
RUBBER = (0.30, 0.30, 0.32, 1.0)
CAPSULE = mujoco.mjtGeom.mjGEOM_CAPSULE
CYLINDER = mujoco.mjtGeom.mjGEOM_CYLINDER
BOX = mujoco.mjtGeom.mjGEOM_BOX


@dataclass(frozen=True, slots=True)
class Rod:
    """A capsule, or a cylinder where ``flat``, between two points of a link's frame."""

    start: Vector
    end: Vector
    radius: float
    colour: tuple[float, float, float, float] = WHITE
    flat: bool = False


HAND = Inertial(0.825, (0.0, 0.0, 0.05), (0.0012, 0.0010, 0.0008, 0.0, 0.0, 0.0))
FINGER_MASS = 0.05

BASE_RODS = (
    Rod((-0.10, 0.0, 0.05), (0.0, 0.0, 0.05), 0.06),
    Rod((0.0, 0.0, 0.0), (0.0, 0.0, 0.21), 0.062, flat=True),
)
LINK_RODS = (
    (
        Rod((0.0, 0.0, -0.12), (0.0, 0.0, -0.02), 0.062),
        Rod((0.0, -0.07, 0.0), (0.0, 0.07, 0.0), 0.060, flat=True),
        Rod((0.0, -0.074, 0.0), (0.0, 0.074, 0.0), 0.045, GREY, flat=True),
    ),
    (Rod((0.0, -0.02, 0.0), (0.0, -0.18, 0.0), 0.058),),
    (
        Rod((0.0, 0.0, -0.13), (0.0, 0.0, -0.05), 0.056),
        Rod((0.02, 0.0, -0.04), (0.0825, 0.0, 0.0), 0.048),
        Rod((0.0825, -0.062, 0.0), (0.0825, 0.062, 0.0), 0.054, flat=True),
        Rod((0.0825, -0.066, 0.0), (0.0825, 0.066, 0.0), 0.040, GREY, flat=True),
    ),
    (
        Rod((0.0, 0.0, 0.0), (-0.0825, 0.07, 0.0), 0.050),
        Rod((-0.0825, 0.07, 0.0), (-0.0825, 0.13, 0.0), 0.055),
    ),
    (
        Rod((0.0, 0.0, -0.26), (0.0, 0.0, -0.19), 0.055),
        Rod((0.0, 0.055, -0.21), (0.0, 0.070, -0.03), 0.036),
        Rod((0.0, -0.02, 0.0), (0.0, 0.09, 0.0), 0.048, flat=True),
        Rod((0.0, -0.02, 0.0), (0.0, 0.094, 0.0), 0.035, GREY, flat=True),
    ),
    (
        Rod((0.0, 0.0, 0.0), (0.088, 0.0, 0.0), 0.046),
        Rod((0.088, 0.045, 0.0), (0.088, -0.03, 0.0), 0.050, flat=True),
    ),
    (
        Rod((0.0, 0.0, 0.03), (0.0, 0.0, 0.085), 0.046, flat=True),
        Rod((0.0, 0.0, 0.085), (0.0, 0.0, FLANGE_OFFSET), 0.034, GREY, flat=True),
    ),
)
FIRST_COLLIDING_LINK = 4  # the upper arm never reaches the table top


def add_arm(spec: mujoco.MjSpec) -> mujoco.MjsBody:
    """Add arm, gripper, their actuators and the site "flange"; returns the flange's body.

    Robot shapes touch objects and the table, never each other. Within one body all shapes collide
    or none does: mj_multiRay bounds a body by its colliding shapes and would cut off the others.
    """
    base = spec.worldbody.add_body(name="base")
    for rod in BASE_RODS:
        _add_rod(base, rod, collides=False)
    body = base
    for index in range(len(DH_ROWS)):
        body = _add_link(body, index)
        motor = spec.add_actuator(name=f"motor{index + 1}", target=f"joint{index + 1}")
        motor.trntype = mujoco.mjtTrn.mjTRN_JOINT
        limit = TORQUE_LIMITS[index]
        motor.ctrllimited, motor.ctrlrange = mujoco.mjtLimited.mjLIMITED_TRUE, [-limit, limit]
    flange = body.add_body(name="flange", pos=[0, 0, FLANGE_OFFSET])
    flange.add_site(name="flange", group=4)
    _add_hand(flange)
    for side, name in ((1.0, "left"), (-1.0, "right")):
        _add_finger(flange, side, name)
    _add_grip(spec)
    return flange


def _add_link(parent: mujoco.MjsBody, index: int) -> mujoco.MjsBody:
    a, d, alpha = DH_ROWS[index]
    body = parent.add_body(
        name=f"link{index + 1}",
        pos=[a, -d * np.sin(alpha), d * np.cos(alpha)],
        quat=[np.cos(alpha / 2), np.sin(alpha / 2), 0, 0],
    )
    body.add_joint(
        name=f"joint{index + 1}",
        type=mujoco.mjtJoint.mjJNT_HINGE,
        axis=[0, 0, 1],
        limited=mujoco.mjtLimited.mjLIMITED_TRUE,
        range=JOINT_RANGES[index],
        armature=ARMATURE,
        damping=[VISCOUS[index], 0, 0],
    )
    _set_inertia(body, INERTIALS[index])
    for rod in LINK_RODS[index]:
        _add_rod(body, rod, collides=index >= FIRST_COLLIDING_LINK)
    return body


def _add_hand(flange: mujoco.MjsBody) -> None:
    _set_inertia(flange, HAND)
    coupler = Rod((0.0, 0.0, 0.0), (0.0, 0.0, 0.022), 0.0375, GREY, flat=True)
    _add_rod(flange, coupler, collides=True)
    for centre, half in (
        ((0.0, 0.0, 0.050), (0.032, 0.036, 0.030)),
        ((0.0, 0.0, 0.078), (0.014, 0.056, 0.012)),
    ):
        _add_box(flange, centre, half, BLACK)
    # the wrist camera's housing, just behind its lens
    _add_box(flange, (-0.078, 0.0, 0.005), (0.014, 0.062, 0.012), BLACK)


def _add_finger(flange: mujoco.MjsBody, side: float, name: str) -> None:
    body = flange.add_body(name=f"finger_{name}")
    body.add_joint(
        name=f"finger_{name}",
        type=mujoco.mjtJoint.mjJNT_SLIDE,
        axis=[0, side, 0],
        limited=mujoco.mjtLimited.mjLIMITED_TRUE,
        range=[0, STROKE / 2],
        armature=0.05,
        damping=[5.0, 0, 0],
    )
    inertia = (2e-5, 2e-5, 1e-5, 0.0, 0.0, 0.0)
    _set_inertia(body, Inertial(FINGER_MASS, (0.0, side * 0.012, 0.13), inertia))
    knuckle = Rod((0.0, side * 0.008, 0.080), (0.0, side * 0.020, 0.112), 0.009, BLACK)
    _add_rod(body, knuckle, collides=True)
    _add_box(body, (0.0, side * 0.014, 0.133), (0.011, 0.006, 0.031), BLACK)
    pad = _add_box(body, (0.0, side * 0.004, 0.146), (0.011, 0.004, FINGERTIP - 0.146), RUBBER)
    pad.name = f"pad_{name}"
    pad.friction, pad.condim = [1.5, 0.02, 0.001], 4
    # stiff, and first in rank: with MuJoCo's defaults the pads sink 8 mm into a light object
    pad.priority, pad.solref, pad.solimp = 1, [0.008, 1.0], [0.95, 0.99, 0.001, 0.5, 2.0]


def _add_grip(spec: mujoco.MjSpec) -> None:
    """One actuator on the mean finger position, and the linkage that keeps the fingers alike."""
    tendon = spec.add_tendon(name="grip")
    for joint in FINGER_JOINTS:
        tendon.wrap_joint(joint, 0.5)
    spec.add_equality(
        type=mujoco.mjtEq.mjEQ_JOINT,
        objtype=mujoco.mjtObj.mjOBJ_JOINT,
        name1=FINGER_JOINTS[0],
        name2=FINGER_JOINTS[1],
        data=[0, 1, *[0] * 10],
        solref=[0.01, 1],
    )
    motor = spec.add_actuator(name=ACTUATOR_GRIPPER, target="grip")
    motor.trntype = mujoco.mjtTrn.mjTRN_TENDON
    motor.set_to_position(kp=6000.0, kv=150.0)
    motor.forcelimited = mujoco.mjtLimited.mjLIMITED_TRUE
    motor.forcerange = [-GRIP_FORCE, GRIP_FORCE]


def _set_inertia(body: mujoco.MjsBody, inertial: Inertial) -> None:
    body.mass, body.ipos, body.fullinertia = inertial.mass, inertial.centre, inertial.inertia
    body.explicitinertial = True


def _add_rod(body: mujoco.MjsBody, rod: Rod, collides: bool) -> None:
    body.add_geom(
        type=CYLINDER if rod.flat else CAPSULE,
        fromto=[*rod.start, *rod.end],
        size=[rod.radius, 0, 0],
        rgba=rod.colour,
        contype=0,
        conaffinity=int(collides),
    )


def _add_box(
    body: mujoco.MjsBody, centre: Vector, half: Vector, colour: tuple[float, float, float, float]
) -> mujoco.MjsGeom:
    return body.add_geom(type=BOX, pos=centre, size=half, rgba=colour, contype=0, conaffinity=1)
