"""The scooping task: the criterion on placed snacks, and that scooping works by contact alone."""

import mujoco
import numpy as np
import pytest

from envs.mujoco.scoop import (
    BOWL,
    BOWL_HEIGHT,
    BOWL_RADIUS,
    SCOOP,
    SNACK_RADIUS,
    SNACKS,
    TRAY,
    TRAY_HALF,
    Scoop,
)
from envs.mujoco.sim import Simulation


@pytest.fixture(scope="module")
def scene() -> tuple[Simulation, Scoop]:
    task = Scoop()
    return Simulation(task), task


def put_snacks(sim: Simulation, count: int, offset: tuple[float, float, float]) -> None:
    """Put the first snacks side by side at an offset from the middle of the bowl's foot."""
    bowl = sim.body_position(BOWL)
    for index in range(count):
        sim.place(f"snack{index}", bowl + np.array(offset) + [0.0, 0.0, 0.0005 * index])
    mujoco.mj_forward(sim.model, sim.data)


def settle(sim: Simulation, seconds: float) -> None:
    sim.hold()
    for _ in range(round(15 * seconds)):
        sim.step(np.zeros(8))


def test_start_has_every_snack_in_the_tray_and_an_empty_scoop(
    scene: tuple[Simulation, Scoop],
) -> None:
    sim, task = scene
    for seed in range(8):
        sim.reset(np.random.default_rng(seed))
        tray, scoop = sim.body_position(TRAY), sim.body_position(SCOOP)
        places = np.array([sim.body_position(f"snack{i}") for i in range(SNACKS)]) - tray
        assert (np.abs(places[:, :2]) < np.array(TRAY_HALF)).all()
        assert (places[:, 2] < 0.03).all()
        assert (places[:, 0] < scoop[0] - tray[0] - 0.03).all()  # in front of the scoop's lip
        assert task.in_bowl(sim) == 0


def test_four_snacks_inside_the_bowl_are_enough_and_three_are_not(
    scene: tuple[Simulation, Scoop],
) -> None:
    sim, task = scene
    sim.reset(np.random.default_rng(0))
    put_snacks(sim, 3, (0.01, 0.0, 0.02))
    assert task.in_bowl(sim) == 3
    assert not task.success(sim)
    put_snacks(sim, 4, (0.01, 0.0, 0.02))
    assert task.in_bowl(sim) == 4
    assert task.success(sim)


@pytest.mark.parametrize(
    ("offset", "counts"),
    [
        ((0.0, BOWL_RADIUS - 0.002, 0.02), True),
        ((0.0, BOWL_RADIUS + 0.002, 0.02), False),
        ((0.0, 0.0, BOWL_HEIGHT - 0.004), True),
        ((0.0, 0.0, BOWL_HEIGHT + 0.001), False),
        ((-0.10, 0.0, 0.02), False),
    ],
)
def test_snack_counts_inside_the_radius_and_below_the_rim(
    scene: tuple[Simulation, Scoop], offset: tuple[float, float, float], counts: bool
) -> None:
    sim, task = scene
    sim.reset(np.random.default_rng(0))
    put_snacks(sim, 5, offset)
    assert task.in_bowl(sim) == (5 if counts else 0)


def test_snacks_in_a_scoop_that_fell_into_the_bowl_do_not_count(
    scene: tuple[Simulation, Scoop],
) -> None:
    sim, task = scene
    sim.reset(np.random.default_rng(0))
    put_snacks(sim, 5, (0.0, 0.0, 0.02))
    assert task.success(sim)
    sim.place(SCOOP, sim.body_position(BOWL) + np.array([0.0, 0.0, 0.005]))
    mujoco.mj_forward(sim.model, sim.data)
    assert task.in_bowl(sim) == 0


def test_bowl_keeps_what_falls_into_it(scene: tuple[Simulation, Scoop]) -> None:
    sim, task = scene
    sim.reset(np.random.default_rng(0))
    bowl = sim.body_position(BOWL)
    for index in range(6):
        angle = index * np.pi / 3
        fall = [0.03 * np.cos(angle), 0.03 * np.sin(angle), 0.09]
        sim.place(f"snack{index}", bowl + fall)
    settle(sim, 1.0)
    assert task.in_bowl(sim) == 6
    assert max(sim.body_speed(f"snack{index}") for index in range(6)) < 0.01


def test_rolling_snack_slows_as_its_drag_predicts(scene: tuple[Simulation, Scoop]) -> None:
    # rolling without slip: 7/5 m dv/dt = -c v / r^2, so v decays with 7/5 m r^2 / c = 0.0806 s
    sim, _ = scene
    sim.reset(np.random.default_rng(0))
    sim.place("snack0", np.array([0.30, -0.25, SNACK_RADIUS]))
    address = int(sim.model.body("snack0").dofadr[0])
    sim.data.qvel[address : address + 6] = [0.1, 0, 0, 0, 0.1 / SNACK_RADIUS, 0]
    mujoco.mj_forward(sim.model, sim.data)
    for _ in range(20):
        mujoco.mj_step(sim.model, sim.data)
    assert sim.data.qvel[address] == pytest.approx(0.1 * np.exp(-0.08 / 0.08064), rel=0.1)


def test_nothing_holds_the_scoop_but_friction(scene: tuple[Simulation, Scoop]) -> None:
    sim, _ = scene
    kinds = {mujoco.mjtEq(int(kind)) for kind in sim.model.eq_type}
    assert kinds == {mujoco.mjtEq.mjEQ_JOINT}  # the gripper's own linkage; no weld, no connect


def test_expert_succeeds_and_repeats_itself(scene: tuple[Simulation, Scoop]) -> None:
    sim, task = scene
    endings = []
    for seed in (2, 3, 2):
        sim.reset(np.random.default_rng(seed))
        for action in task.expert(sim):
            assert np.abs(action[:6]).max() <= 1.0
            sim.step(sim.cartesian_to_joint_velocity(action))
        assert task.success(sim)
        assert sim.ticks < task.max_ticks
        endings.append((sim.ticks, sim.data.qpos.tobytes()))
    assert endings[0] == endings[2] != endings[1]
