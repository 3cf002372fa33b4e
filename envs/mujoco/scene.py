"""The rig that every task shares: arm, table, DROID's three calibrated cameras and the lights."""

from typing import Protocol, runtime_checkable

import mujoco
import numpy as np

from contracts.panda import WRIST_CAMERA, WRIST_VIEW_DEGREES
from envs.mujoco.panda import (
    ACTUATOR_GRIPPER,
    FINGER_JOINTS,
    PAD_GEOMS,
    STROKE,
    TOOL_POINT,
    add_arm,
)
from envs.mujoco.rotations import matrix_from_euler, quaternion_from_matrix

__all__ = [
    "ACTUATOR_GRIPPER",
    "FINGER_JOINTS",
    "PAD_GEOMS",
    "STROKE",
    "TOOL_POINT",
    "build_scene",
]

# x, y, z and extrinsic xyz Euler angles of OpenCV cameras (z forward), from DROID's
# calibration_info.json; the wrist camera is given in the flange, the others in the base.
# The vertical field of view is that of a ZED 2 and a ZED Mini.
CAMERAS = {
    "exterior_1": ((0.415488, 0.477547, 0.411432, -2.216041, -0.022577, -2.963724), 68.9),
    "exterior_2": ((0.259555, -0.500102, 0.436882, -2.277346, 0.336172, -0.536901), 68.9),
    "wrist": (WRIST_CAMERA, WRIST_VIEW_DEGREES),
}
OPENCV_TO_MUJOCO = np.diag([1.0, -1.0, -1.0])

# One ambient term and two directional lights without highlights or shadows, so that OpenGL and
# the ray caster can compute the same colours.
AMBIENT = 0.48
LIGHTS = (((-0.35, 0.35, -1.0), 0.42), ((0.6, -0.8, -0.35), 0.22))
SKY = (0.70, 0.74, 0.78)
TABLE_COLOUR = (0.58, 0.45, 0.33, 1.0)


@runtime_checkable
class Builder(Protocol):
    def build(self, spec: mujoco.MjSpec) -> None: ...


def build_scene(task: Builder, timestep: float) -> mujoco.MjSpec:
    """The uncompiled model of the rig and the task's objects. The base frame is the world frame;
    the table top is z = 0."""
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    spec.option.timestep = timestep
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.stat.extent = 1.0
    _set_quality(spec)
    _add_room(spec)
    flange = add_arm(spec)
    for name, (pose, field_of_view) in CAMERAS.items():
        _add_camera(flange if name == "wrist" else spec.worldbody, name, pose, field_of_view)
    task.build(spec)
    return spec


def _add_camera(
    body: mujoco.MjsBody, name: str, pose: tuple[float, ...], field_of_view: float
) -> None:
    turn = matrix_from_euler(np.array(pose[3:])) @ OPENCV_TO_MUJOCO
    body.add_camera(name=name, pos=pose[:3], quat=quaternion_from_matrix(turn), fovy=field_of_view)


def _set_quality(spec: mujoco.MjSpec) -> None:
    """Coarse round shapes: at 48 x 80 pixels they look the same and cost half."""
    quality = spec.visual.quality
    quality.offsamples = quality.shadowsize = 0
    quality.numslices, quality.numstacks, quality.numquads = 16, 8, 1


def _add_room(spec: mujoco.MjSpec) -> None:
    head = spec.visual.headlight
    head.ambient, head.diffuse, head.specular = [AMBIENT] * 3, [0.0] * 3, [0.0] * 3
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_FLAT,
        rgb1=SKY,
        rgb2=SKY,
        width=8,
        height=8,
    )
    for direction, strength in LIGHTS:
        spec.worldbody.add_light(
            type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
            pos=[0.4, 0.0, 2.0],
            dir=direction,
            ambient=[0.0] * 3,
            diffuse=[strength] * 3,
            specular=[0.0] * 3,
            castshadow=False,
        )
    box = mujoco.mjtGeom.mjGEOM_BOX
    spec.worldbody.add_geom(
        name="table", type=box, pos=[0.45, 0, -0.02], size=[0.55, 0.6, 0.02], rgba=TABLE_COLOUR
    )
    spec.worldbody.add_geom(
        name="floor", type=box, pos=[0, 0, -0.76], size=[3, 3, 0.01], rgba=[0.33, 0.34, 0.37, 1]
    )
