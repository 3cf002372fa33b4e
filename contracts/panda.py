"""Facts of the Franka Panda that the simulator and the models share: links, control law, wrist
camera."""

from dataclasses import dataclass

import numpy as np

Vector = tuple[float, float, float]

# Modified (Craig) Denavit-Hartenberg rows in front of joints 1-7: a [m], d [m], alpha [rad].
DH_ROWS = (
    (0.0, 0.333, 0.0),
    (0.0, 0.0, -np.pi / 2),
    (0.0, 0.316, np.pi / 2),
    (0.0825, 0.0, np.pi / 2),
    (-0.0825, 0.384, -np.pi / 2),
    (0.0, 0.0, np.pi / 2),
    (0.088, 0.0, np.pi / 2),
)
FLANGE_OFFSET = 0.107  # m along z of the last joint
RESET_JOINTS = np.pi * np.array([0.0, -1 / 5, 0.0, -4 / 5, 0.0, 3 / 5, 0.0])  # rad, DROID's home
JOINT_LOW = np.array([-2.80, -1.66, -2.80, -2.97, -2.80, 0.08, -2.80])  # rad, Franka's less 0.1
JOINT_HIGH = np.array([2.80, 1.66, 2.80, -0.17, 2.80, 3.65, 2.80])
JOINT_SPEED = np.array([2.075, 2.075, 2.075, 2.075, 2.51, 2.51, 2.51])  # rad/s, polymetis' limits

# polymetis HybridJointImpedanceControl with DROID's config/panda gains:
# torque = (J' Kx J + Kq) (target - q) - (J' Dx J + Dq) dq + Coriolis and gravity. SI units.
JOINT_STIFFNESS = np.array([40.0, 30.0, 50.0, 25.0, 35.0, 25.0, 10.0])
JOINT_DAMPING = np.array([4.0, 6.0, 5.0, 5.0, 3.0, 2.0, 1.0])
CARTESIAN_STIFFNESS = np.array([400.0, 400.0, 400.0, 15.0, 15.0, 15.0])
CARTESIAN_DAMPING = np.array([37.0, 37.0, 37.0, 2.0, 2.0, 2.0])


@dataclass(frozen=True, slots=True)
class Inertial:
    """Mass in kg, centre of mass in m, inertia about it: xx, yy, zz, xy, xz, yz in kg m^2."""

    mass: float
    centre: Vector
    inertia: tuple[float, float, float, float, float, float]


# Links 1-7, identified by Gaz et al. (RA-L 2019).
INERTIALS = (
    Inertial(
        4.970684,
        (0.003875, 0.002081, -0.04762),
        (0.70337, 0.70661, 0.009117, -0.000139, 0.006772, 0.019169),
    ),
    Inertial(
        0.646926,
        (-0.003141, -0.02872, 0.003495),
        (0.007962, 0.02811, 0.025995, -0.003925, 0.010254, 0.000704),
    ),
    Inertial(
        3.228604,
        (0.027518, 0.039252, -0.066502),
        (0.037242, 0.036155, 0.01083, -0.004761, -0.011396, -0.012805),
    ),
    Inertial(
        3.587895,
        (-0.05317, 0.104419, 0.027454),
        (0.025853, 0.019552, 0.028323, 0.007796, -0.001332, 0.008641),
    ),
    Inertial(
        1.225946,
        (-0.011953, 0.041065, -0.038437),
        (0.035549, 0.029474, 0.008627, -0.002117, -0.004037, 0.000229),
    ),
    Inertial(
        1.666555,
        (0.060149, -0.014117, -0.010517),
        (0.001964, 0.004354, 0.005433, 0.000109, -0.001158, 0.000341),
    ),
    Inertial(
        0.735522,
        (0.010517, -0.004252, 0.061597),
        (0.012516, 0.010027, 0.004815, -0.000428, -0.001196, -0.000741),
    ),
)

# The wrist camera of a DROID rig in the flange, from DROID's calibration_info.json: x, y, z [m] and
# extrinsic xyz Euler angles [rad] of the OpenCV camera (z forward); a ZED Mini's vertical view.
WRIST_CAMERA = (-0.075283, 0.028721, 0.023317, -0.325577, 0.006247, -1.562875)
WRIST_VIEW_DEGREES = 52.5
