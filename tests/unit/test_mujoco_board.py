"""The whiteboard and the two tasks on it: areas and circles in closed form, contact, experts."""

import mujoco
import numpy as np
import pytest

from envs.mujoco import canvas
from envs.mujoco.canvas import BLANK, CENTRE, HALF, TEXEL, TOP, Canvas
from envs.mujoco.draw import MARKER, TIP_BELOW, Circle, Draw, fit_circle
from envs.mujoco.erase import TISSUE, TISSUE_HALF, Erase
from envs.mujoco.sim import Simulation

RED = (205, 25, 25)
CORNER = np.array(CENTRE) - np.array(HALF)
SWEEP = np.linspace(0.0, 2 * np.pi, 360, endpoint=False)


def covered() -> Canvas:
    board = Canvas()
    board.ink[:] = True
    board.pixels[:] = RED
    return board


def run_expert(sim: Simulation, task: Draw | Erase, seed: int) -> int:
    """Play the expert as joint velocities; returns its ticks."""
    sim.reset(np.random.default_rng(seed))
    for action in task.expert(sim):
        assert np.abs(action[:6]).max() <= 1.0
        sim.step(sim.cartesian_to_joint_velocity(action))
    return sim.ticks


def circle_of(radius: float, angles: np.ndarray, wobble: float = 0.0) -> np.ndarray:
    reach = radius * (1 + wobble * np.cos(3 * angles))
    return np.array([0.5, 0.02]) + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


# ---- canvas ------------------------------------------------------------------------------


def test_rows_run_along_x_and_columns_along_y() -> None:
    board = Canvas()
    point = CORNER + np.array([0.003, 0.009])  # 1.5 and 4.5 texels of 2 mm from the corner
    board.stroke(np.stack([point, point]), 0.0005, RED)
    assert np.argwhere(board.ink).tolist() == [[1, 4]]
    assert board.pixels[1, 4].tolist() == list(RED)
    assert (board.pixels == BLANK).all(-1).sum() == board.ink.size - 1


def test_stroke_covers_the_area_of_a_capsule() -> None:
    board = Canvas()
    start, end, radius = np.array([0.45, -0.05]), np.array([0.53, 0.01]), 0.012
    board.stroke(np.stack([start, end]), radius, RED)
    area = 2 * radius * 0.1 + np.pi * radius**2  # the segment is 0.1 m long
    assert board.amount() * TEXEL**2 == pytest.approx(area, rel=0.02)


def test_ink_beside_the_board_is_lost() -> None:
    board = Canvas()
    outside = CORNER - 0.05
    board.stroke(np.stack([outside, outside]), 0.02, RED)
    assert board.amount() == 0
    board.stroke(np.stack([CORNER, CORNER]), 0.03, RED)  # a quarter of this disc is on the board
    assert board.amount() * TEXEL**2 == pytest.approx(np.pi * 0.03**2 / 4, rel=0.02)


def test_wipe_clears_exactly_the_texels_of_an_aligned_rectangle() -> None:
    board = covered()
    board.wipe(np.array(CENTRE), np.eye(2), np.array([0.020, 0.010]))
    rows, columns = np.nonzero(~board.ink)
    assert len(rows) == 20 * 10  # 40 mm along x and 20 mm along y in texels of 2 mm
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (20, 10)
    assert (board.pixels[~board.ink] == BLANK).all()
    assert (board.pixels[board.ink] == RED).all()


@pytest.mark.parametrize("degrees", [30.0, 75.0, -40.0])
def test_wipe_follows_the_turn_of_the_rectangle(degrees: float) -> None:
    board, turn = covered(), np.deg2rad(degrees)
    along = np.array([np.cos(turn), np.sin(turn)])
    board.wipe(np.array(CENTRE), np.stack([along, [-along[1], along[0]]]), np.array([0.05, 0.02]))
    assert (~board.ink).sum() * TEXEL**2 == pytest.approx(0.1 * 0.04, rel=0.03)
    x, y = ((np.argwhere(~board.ink) + 0.5) * TEXEL + CORNER - CENTRE).T
    spread = np.cov(x, y)  # the long side points where the rectangle was turned to
    assert 0.5 * np.arctan2(2 * spread[0, 1], spread[0, 0] - spread[1, 1]) == pytest.approx(
        turn, abs=0.02
    )


# ---- erase -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def erasing() -> tuple[Simulation, Erase]:
    task = Erase()
    return Simulation(task), task


def put_tissue(sim: Simulation, gap: float, yaw: float = 0.0) -> None:
    place = np.array([*CENTRE, TOP + TISSUE_HALF[2] + gap])
    sim.place(TISSUE, place, np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]))
    mujoco.mj_forward(sim.model, sim.data)


def test_marks_have_the_colour_that_the_instruction_names(
    erasing: tuple[Simulation, Erase],
) -> None:
    sim, task = erasing
    seen = set()
    for seed in range(12):
        instruction = sim.reset(np.random.default_rng(seed))
        (colour,) = [name for name in canvas.INK if name in instruction]
        assert (task.board.pixels[task.board.ink] == canvas.INK[colour]).all()
        assert task.board.amount() == task.initial > 150
        seen.add(colour)
    assert seen == {"red", "blue", "black"}


def test_tissue_erases_its_footprint_and_only_in_contact(
    erasing: tuple[Simulation, Erase],
) -> None:
    sim, task = erasing
    sim.reset(np.random.default_rng(0))
    task.board.ink[:] = True
    put_tissue(sim, gap=0.002)
    task.substep(sim)
    assert task.board.ink.all()
    put_tissue(sim, gap=-0.0002)
    task.substep(sim)
    # 68 by 42 mm are 34 rows by 21 columns; the middle lies on a texel edge, so 20 or 22 columns
    rows, columns = np.nonzero(~task.board.ink)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) in {(34, 20), (34, 22)}
    assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_footprint_turns_with_the_tissue(erasing: tuple[Simulation, Erase]) -> None:
    sim, task = erasing
    sim.reset(np.random.default_rng(0))
    task.board.ink[:] = True
    put_tissue(sim, gap=-0.0002, yaw=0.6)
    task.substep(sim)
    x, y = ((np.argwhere(~task.board.ink) + 0.5) * TEXEL + CORNER - CENTRE).T
    assert len(x) * TEXEL**2 == pytest.approx(0.068 * 0.042, rel=0.03)
    # a rectangle's covariance of x and y is (a^2 - b^2) / 6 sin(2 yaw), a and b its half sides
    expected = (TISSUE_HALF[0] ** 2 - TISSUE_HALF[1] ** 2) / 6 * np.sin(1.2)
    assert np.cov(x, y)[0, 1] == pytest.approx(expected, rel=0.05)


def test_success_needs_less_than_five_percent_of_the_ink(
    erasing: tuple[Simulation, Erase],
) -> None:
    sim, task = erasing
    sim.reset(np.random.default_rng(0))
    assert not task.success(sim)
    task.initial = 400
    task.board.clean()
    task.board.ink[0, :20] = True  # exactly 5 %
    assert not task.success(sim)
    task.board.ink[0, 0] = False
    assert task.success(sim)


def test_erase_expert_succeeds_and_repeats_itself(erasing: tuple[Simulation, Erase]) -> None:
    sim, task = erasing
    endings = []
    for seed in (6, 1, 6):
        ticks = run_expert(sim, task, seed)
        assert task.success(sim)
        assert ticks < task.max_ticks
        endings.append((ticks, sim.data.qpos.tobytes(), task.board.ink.tobytes()))
    assert endings[0] == endings[2] != endings[1]


# ---- draw --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawing() -> tuple[Simulation, Draw]:
    task = Draw()
    return Simulation(task), task


def put_tip(sim: Simulation, task: Draw, x: float, y: float, height: float) -> None:
    sim.place(MARKER, np.array([x, y, TOP + height + TIP_BELOW]))
    mujoco.mj_forward(sim.model, sim.data)
    task.substep(sim)


def test_fit_finds_a_perfect_circle() -> None:
    circle = fit_circle(circle_of(0.07, SWEEP))
    assert circle is not None
    assert circle.centre == pytest.approx((0.5, 0.02), abs=1e-9)
    assert circle.radius == pytest.approx(0.07, abs=1e-9)
    assert circle.roughness < 1e-9
    assert circle.coverage == 1.0


def test_roughness_is_the_rms_of_the_radial_error() -> None:
    # a wobble of cos(3 angle) moves neither centre nor, to first order, radius; its rms is a/sqrt 2
    for wobble, good in ((0.12, True), (0.16, False)):
        circle = fit_circle(circle_of(0.06, SWEEP, wobble))
        assert circle is not None
        assert circle.roughness == pytest.approx(wobble / np.sqrt(2), rel=0.02)
        assert circle.accepted() is good


def test_coverage_counts_sectors_of_five_degrees() -> None:
    arc = circle_of(0.06, np.deg2rad(np.arange(-177.5, 90.0, 5.0)))
    circle = fit_circle(arc)
    assert circle is not None
    assert circle.coverage == 54 / 72
    assert not circle.accepted()
    assert fit_circle(arc[:19]) is None


@pytest.mark.parametrize(
    ("radius", "roughness", "coverage", "good"),
    [
        (0.06, 0.05, 67 / 72, True),
        (0.06, 0.05, 66 / 72, False),
        (0.0251, 0.05, 1.0, True),
        (0.0249, 0.05, 1.0, False),
        (0.1299, 0.05, 1.0, True),
        (0.1301, 0.05, 1.0, False),
        (0.06, 0.101, 1.0, False),
    ],
)
def test_circle_is_accepted_within_the_criteria(
    radius: float, roughness: float, coverage: float, good: bool
) -> None:
    assert Circle((0.5, 0.0), radius, roughness, coverage).accepted() is good


def test_ink_flows_only_near_the_board_and_inside_it(drawing: tuple[Simulation, Draw]) -> None:
    sim, task = drawing
    sim.reset(np.random.default_rng(0))
    assert task.board.amount() == 0
    put_tip(sim, task, 0.5, 0.0, 0.0027)
    put_tip(sim, task, 0.5, HALF[1] + 0.001, 0.001)
    assert task.board.amount() == len(task.line) == 0
    put_tip(sim, task, 0.5, 0.0, 0.0023)
    disc = np.pi * 0.006**2  # of the line's half width
    assert task.board.amount() * TEXEL**2 == pytest.approx(disc, rel=0.15)
    assert len(task.line) == 1


def test_line_is_continuous_until_the_marker_is_lifted(drawing: tuple[Simulation, Draw]) -> None:
    sim, task = drawing
    sim.reset(np.random.default_rng(0))
    put_tip(sim, task, 0.46, 0.0, 0.001)
    put_tip(sim, task, 0.49, 0.0, 0.001)
    assert np.diff(np.array(task.line)[:, 0]) == pytest.approx(np.full(30, 0.001))
    put_tip(sim, task, 0.50, 0.0, 0.02)
    put_tip(sim, task, 0.54, 0.0, 0.001)
    gap = (np.array([0.515, 0.0]) - CORNER) / TEXEL
    assert not task.board.ink[int(gap[0]), int(gap[1])]
    assert len(task.line) == 32


def test_only_the_marker_that_the_instruction_names_is_seen(
    drawing: tuple[Simulation, Draw],
) -> None:
    sim, _ = drawing
    names = set()
    for seed in range(12):
        instruction = sim.reset(np.random.default_rng(seed))
        groups = {c: int(sim.model.geom(f"marker_{c}").group[0]) for c in ("red", "blue", "green")}
        (shown,) = [colour for colour, group in groups.items() if group < 3]
        assert shown in instruction
        names.add(shown)
    assert names == {"red", "blue", "green"}


def test_draw_expert_succeeds_and_repeats_itself(drawing: tuple[Simulation, Draw]) -> None:
    sim, task = drawing
    endings = []
    for seed in (4, 5, 4):
        ticks = run_expert(sim, task, seed)
        circle = task.circle()
        assert task.success(sim)
        assert circle is not None
        assert 0.04 < circle.radius < 0.07
        assert ticks < task.max_ticks
        endings.append((ticks, sim.data.qpos.tobytes(), task.board.ink.tobytes()))
    assert endings[0] == endings[2] != endings[1]
