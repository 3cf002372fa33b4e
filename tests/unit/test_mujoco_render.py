"""Both renderers against pinhole geometry, the canvas and each other."""

from collections.abc import Iterator
from typing import ClassVar

import mujoco
import numpy as np
import pytest

from envs.mujoco.canvas import Canvas, add_board
from envs.mujoco.render import GlRenderer, Renderer, open_renderer
from envs.mujoco.sim import Simulation
from envs.mujoco.stack import Stack
from envs.mujoco.task import Task

HEIGHT, WIDTH = 144, 240
# DROID calibration (x, y, z, extrinsic Euler xyz; OpenCV axes) and vertical field of view
EXTERIOR = {
    0: ([0.415488, 0.477547, 0.411432, -2.216041, -0.022577, -2.963724], 68.9),
    1: ([0.259555, -0.500102, 0.436882, -2.277346, 0.336172, -0.536901], 68.9),
}


class Board(Task):
    """A bare board with a red square at x 0.52..0.58, y 0.02..0.10, and nothing else."""

    name: ClassVar[str] = "draw"
    instructions: ClassVar[tuple[str, ...]] = ("look",)
    square = (0.55, 0.06)

    def __init__(self) -> None:
        self.paint = Canvas()
        self.canvas = self.paint.pixels

    def build(self, spec: mujoco.MjSpec) -> None:
        add_board(spec)

    def reset(self, sim: Simulation, rng: np.random.Generator) -> None:
        self.paint.clean()
        for y in np.linspace(0.03, 0.09, 5):
            line = np.array([[0.53, y], [0.57, y]])
            self.paint.stroke(line, 0.01, (200, 20, 20))

    def success(self, sim: Simulation) -> bool:
        return False

    def expert(self, sim: Simulation) -> Iterator[np.ndarray]:
        yield np.zeros(7)


def start(task: Task, seed: int = 0) -> Simulation:
    sim = Simulation(task)
    sim.reset(np.random.default_rng(seed))
    return sim


def turn(angles: list[float]) -> np.ndarray:
    matrices = []
    for axis, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        matrix = np.eye(3)
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        matrix[i, i] = matrix[j, j] = c
        matrix[i, j], matrix[j, i] = -s, s
        matrices.append(matrix)
    x, y, z = matrices
    return z @ y @ x


def pixel(view: int, point: np.ndarray) -> tuple[int, int]:
    """Row and column where an ideal OpenCV pinhole camera sees a point of the base frame."""
    pose, field_of_view = EXTERIOR[view]
    x, y, z = turn(pose[3:]).T @ (point - pose[:3])
    focal = 0.5 * HEIGHT / np.tan(np.deg2rad(field_of_view) / 2)
    return int(HEIGHT / 2 + focal * y / z), int(WIDTH / 2 + focal * x / z)


@pytest.fixture(params=["auto", "ray"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def shown(sim: Simulation, kind: str, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    renderer = open_renderer(kind, sim.model, height, width)
    try:
        return renderer.render(sim)
    finally:
        renderer.close()


@pytest.mark.parametrize("view", [0, 1])
def test_calibrated_cameras_see_each_block_where_a_pinhole_does(kind: str, view: int) -> None:
    sim = start(Stack())
    image = shown(sim, kind)[view].astype(int)
    strongest = {"red": {0}, "green": {1}, "blue": {2}, "yellow": {0, 1}}
    for colour, channels in strongest.items():
        row, column = pixel(view, sim.body_position(colour) + np.array([0, 0, 0.02]))
        red_green_blue = image[row, column]
        strong = set(np.flatnonzero(red_green_blue > 0.75 * red_green_blue.max()))
        assert strong == channels, (colour, red_green_blue)


def test_wrist_camera_sees_the_block_under_the_gripper_between_two_dark_fingers(kind: str) -> None:
    sim = start(Stack())
    tool = sim.pose()[:3] - np.array([0, 0, 0.15])
    for colour, far in (("red", 0.2), ("green", 0.25), ("blue", 0.3)):
        sim.place(colour, np.array([-0.4, far, 0.3]))
    sim.place("yellow", tool)
    mujoco.mj_forward(sim.model, sim.data)
    wrist = shown(sim, kind)[2].astype(int)
    yellow = (wrist[..., 0] > 90) & (wrist[..., 0] > 3 * wrist[..., 2])
    rows, columns = np.nonzero(yellow)
    assert rows.size > 800
    row = int(np.median(rows))
    dark = np.flatnonzero(wrist[row].max(-1) < 70)
    assert (dark < columns.min()).sum() > 5
    assert (dark > columns.max()).sum() > 5


def test_canvas_appears_where_it_was_painted(kind: str) -> None:
    board = Board()
    sim = start(board)
    images = shown(sim, kind).astype(int)
    for view in (0, 1):
        red = images[view, ..., 0] - images[view, ..., 1] > 90
        centre = np.argwhere(red).mean(0)
        # perspective pulls the mean of a 6 x 8 cm patch off its centre by less than 3 pixels
        assert np.abs(centre - pixel(view, np.array([*board.square, 0.0126]))).max() < 3
        mirrored = np.array([0.55, -0.06, 0.0126])
        assert not red[pixel(view, mirrored)]


def test_canvas_that_changes_is_shown_anew(kind: str) -> None:
    board = Board()
    sim = start(board)
    renderer = open_renderer(kind, sim.model, HEIGHT, WIDTH)
    first = renderer.render(sim).astype(int)
    board.paint.clean()
    second = renderer.render(sim).astype(int)
    renderer.close()
    red = (first[0, ..., 0] - first[0, ..., 1]) > 90
    assert red.sum() > 30
    assert (np.ptp(second[0][red], axis=-1) <= 3).all()


@pytest.mark.parametrize(("height", "width"), [(48, 80), (HEIGHT, WIDTH)])
def test_renderers_agree(height: int, width: int) -> None:
    """Where EGL is missing, auto is the ray renderer too and this holds by itself."""
    for task in (Stack(), Board()):
        sim = start(task)
        by_auto = shown(sim, "auto", height, width).astype(int)
        by_ray = shown(sim, "ray", height, width).astype(int)
        assert by_auto.shape == (3, height, width, 3)
        assert np.abs(by_auto - by_ray).mean() < 2.0


def test_two_renderers_at_once_do_not_disturb_each_other(kind: str) -> None:
    sim, other = start(Stack()), start(Board())
    wanted, other_wanted = shown(sim, kind), shown(other, kind)
    first: Renderer = open_renderer(kind, sim.model, HEIGHT, WIDTH)
    second: Renderer = open_renderer(kind, other.model, HEIGHT, WIDTH)
    np.testing.assert_array_equal(first.render(sim), wanted)
    np.testing.assert_array_equal(second.render(other), other_wanted)
    del first
    np.testing.assert_array_equal(second.render(other), other_wanted)
    second.close()
    second.close()


def test_closed_renderer_and_unknown_kind_say_so() -> None:
    sim = start(Stack())
    with pytest.raises(ValueError, match=r"robot\.renderer='opengl' is not one of"):
        open_renderer("opengl", sim.model, 48, 80)
    renderer = open_renderer("auto", sim.model, 48, 80)
    renderer.close()
    if isinstance(renderer, GlRenderer):
        with pytest.raises(RuntimeError, match="closed"):
            renderer.render(sim)
