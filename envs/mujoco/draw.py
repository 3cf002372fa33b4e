"""Task: draw a circle on the whiteboard with a marker."""

from collections.abc import Iterator
from dataclasses import dataclass

import mujoco
import numpy as np
from jaxtyping import Float, Float64

from envs.mujoco import canvas
from envs.mujoco.canvas import Canvas, Pixels
from envs.mujoco.experts import Motion, go, tool_position
from envs.mujoco.sim import Simulation
from envs.mujoco.task import Cartesian, Task

MARKER, TIP, HOLDER = "marker", "marker_tip", "holder"
MARKER_HALF = (0.010, 0.010, 0.050)  # m, of the body; square, because a round one turns in the grip
TIP_BELOW = 0.064  # m from the marker's centre to the end of its tip
TIP_RADIUS = 0.005  # m
HOLDER_WALL, HOLDER_HEIGHT = 0.004, 0.030  # m
START = (0.46, 0.225)  # m, middle of the area in which the holder stands
START_SPREAD = (0.03, 0.012)
INK_REACH = 0.0025  # m above the board at which the tip still leaves ink
LINE_RADIUS = 0.006  # m
SPACING = 0.001  # m between recorded points of the line
RADII = (0.025, 0.13)  # m, of a circle that counts
ROUGHNESS = 0.10  # largest radial rms, in radii
ANGLE_BINS, COVERAGE = 72, 0.93
FEWEST_POINTS = 20
UP = np.array([0.0, 0.0, 1.0])
PRESS = 0.002  # m below the board that the expert aims at while it draws; more tilts the marker
SHOWN_GROUP, HIDDEN_GROUP = 1, 4  # geom groups that cameras see and do not see
COLOURS = ("red", "blue", "green")  # of the ink, one for each instruction


@dataclass(frozen=True, slots=True)
class Circle:
    """An algebraic least-squares circle. ``roughness`` is the rms of the radial error in radii,
    ``coverage`` the share of 5 degree sectors that hold a point; lengths in m."""

    centre: tuple[float, float]
    radius: float
    roughness: float
    coverage: float

    def accepted(self) -> bool:
        """Whether a person would call it a circle of sensible size."""
        sized = RADII[0] < self.radius < RADII[1]
        return sized and self.roughness < ROUGHNESS and self.coverage >= COVERAGE


def fit_circle(points: Float[np.ndarray, "points 2"]) -> Circle | None:
    """Kasa's fit: x^2 + y^2 = 2 a x + 2 b y + c. None for fewer than 20 points."""
    if len(points) < FEWEST_POINTS:
        return None
    system = np.column_stack([2 * points, np.ones(len(points))])
    (a, b, c), *_ = np.linalg.lstsq(system, (points**2).sum(1), rcond=None)
    radius = float(np.sqrt(max(c + a * a + b * b, 1e-12)))
    x, y = (points - np.array([a, b])).T
    roughness = float(np.sqrt(((np.hypot(x, y) - radius) ** 2).mean())) / radius
    sectors = np.floor((np.arctan2(y, x) / (2 * np.pi) + 0.5) * ANGLE_BINS).astype(int)
    coverage = len(np.unique(sectors % ANGLE_BINS)) / ANGLE_BINS
    return Circle((float(a), float(b)), radius, roughness, coverage)


class Draw(Task):
    """The line on the board is a circle. Ink flows where the marker's tip meets the board."""

    name = "draw"
    instructions = (
        "draw a circle on the whiteboard with the red marker",
        "pick up the blue marker and draw a circle",
        "use the green marker to draw a circle on the whiteboard",
    )

    def __init__(self) -> None:
        self.board = Canvas()
        self.canvas: Pixels | None = self.board.pixels
        self.line: list[Float64[np.ndarray, " 2"]] = []  # points of the line, in m
        self._last: Float64[np.ndarray, " 2"] | None = None  # the tip, while it writes
        self._centre = np.zeros(2)  # of the circle that the expert draws
        self._radius = 0.0
        self._colour = COLOURS[0]

    def build(self, spec: mujoco.MjSpec) -> None:
        canvas.add_board(spec)
        _add_marker(spec)
        _add_holder(spec)

    def reset(self, sim: Simulation, rng: np.random.Generator) -> None:
        spread = np.array(START_SPREAD)
        start = np.array(START) + rng.uniform(-spread, spread)
        sim.place(HOLDER, np.append(start, 0.0))
        sim.place(MARKER, np.append(start, TIP_BELOW + 0.001))
        self._colour = COLOURS[self.instructions.index(sim.instruction)]
        for colour in COLOURS:
            for part in (MARKER, TIP):
                shown = SHOWN_GROUP if colour == self._colour else HIDDEN_GROUP
                sim.model.geom_group[sim.model.geom(f"{part}_{colour}").id] = shown
        self.board.clean()
        self.line, self._last = [], None
        self._centre = np.array(canvas.CENTRE) + rng.uniform([-0.03, -0.04], [0.03, 0.04])
        self._radius = rng.uniform(0.045, 0.06)

    def substep(self, sim: Simulation) -> None:
        tip = sim.data.site(TIP).xpos
        if tip[2] > canvas.TOP + INK_REACH or not canvas.on_board(tip[:2]):
            self._last = None
            return
        now = tip[:2].copy()
        before = now if self._last is None else self._last
        length = float(np.linalg.norm(now - before))
        if self._last is not None and length < SPACING:
            return
        steps = np.arange(1, max(1, round(length / SPACING)) + 1)[:, None]
        self.line.extend(before + (now - before) * steps / len(steps))
        self.board.stroke(np.stack([before, now]), LINE_RADIUS, canvas.INK[self._colour])
        self._last = now

    def circle(self) -> Circle | None:
        """The circle that fits what has been drawn so far, if there is enough of it."""
        return fit_circle(np.array(self.line).reshape(-1, 2))

    def success(self, sim: Simulation) -> bool:
        circle = self.circle()
        return circle is not None and circle.accepted()

    def expert(self, sim: Simulation) -> Iterator[Cartesian]:
        """Take the marker out of its holder, set it down on the board and go round once."""
        grip = sim.body_position(MARKER) + 0.022 * UP
        yield from go(sim, grip + 0.08 * UP, 0.4, Motion(tolerance=0.006, gain=1.3))
        yield from go(sim, grip, 0.4, Motion(0.006))
        yield from go(sim, grip, 1.0, Motion(0.0, 8))
        yield from go(sim, grip + 0.055 * UP, 1.0, Motion(tolerance=0.02, gain=1.6))
        if not sim.gripper_touches(MARKER):
            return  # without the marker there is nothing to steer by
        yield from go(sim, lambda: self._tool_for(sim, 0.0, 0.03), 1.0, Motion(0.012, gain=1.6))
        yield from go(sim, lambda: self._tool_for(sim, 0.0, 0.0), 1.0, Motion(0.004, 12, gain=1.6))
        for angle in np.linspace(0.0, 2 * np.pi + 0.5, 36):
            target = self._tool_for(sim, float(angle), -PRESS)
            yield from go(sim, target, 1.0, Motion(0.0, 1, gain=2.0))
        yield from go(sim, lambda: self._tool_for(sim, 0.5, 0.06), 1.0, Motion(0.02, 10, gain=1.6))

    def _tool_for(self, sim: Simulation, angle: float, height: float) -> Float64[np.ndarray, " 3"]:
        """Tool point that brings the tip to an angle of the circle, at a height above the board."""
        tip = np.append(
            self._centre + self._radius * np.array([np.cos(angle), np.sin(angle)]),
            canvas.TOP + height,
        )
        return tip + tool_position(sim) - sim.data.site(TIP).xpos


def _add_marker(spec: mujoco.MjSpec) -> None:
    """The marker that collides is invisible; over it lies a coating of each colour, one shown at
    a time. (Renderers may keep colours, so an episode cannot repaint it.)"""
    body = spec.worldbody.add_body(name=MARKER, pos=[*START, TIP_BELOW])
    body.add_freejoint(name=MARKER)
    barrel, tip = _add_shapes(body, "", HIDDEN_GROUP)
    barrel.mass, barrel.condim, barrel.friction = 0.02, 6, [1.5, 0.05, 0.002]
    tip.mass, tip.priority, tip.friction = 0.002, 2, [0.08, 0.005, 0.0001]
    body.add_site(name=TIP, pos=[0, 0, -TIP_BELOW], group=4)
    for colour in COLOURS:
        for shape in _add_shapes(body, f"_{colour}", HIDDEN_GROUP):
            shape.contype = shape.conaffinity = shape.mass = 0
            shape.rgba = [*(np.array(canvas.INK[colour]) / 255), 1.0]


def _add_shapes(
    body: mujoco.MjsBody, suffix: str, group: int
) -> tuple[mujoco.MjsGeom, mujoco.MjsGeom]:
    """The marker's barrel and tip."""
    barrel = body.add_geom(
        name=MARKER + suffix,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=MARKER_HALF,
        group=group,
    )
    tip = body.add_geom(
        name=TIP + suffix,
        type=mujoco.mjtGeom.mjGEOM_CAPSULE,
        fromto=[0, 0, -MARKER_HALF[2], 0, 0, TIP_RADIUS - TIP_BELOW],
        size=[TIP_RADIUS, 0, 0],
        group=group,
    )
    return barrel, tip


def _add_holder(spec: mujoco.MjSpec) -> None:
    body = spec.worldbody.add_body(name=HOLDER, pos=[*START, 0.0], mocap=True)
    inner = MARKER_HALF[0] + 0.0015
    middle, outer = inner + HOLDER_WALL, inner + 2 * HOLDER_WALL
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=[x * middle, y * middle, HOLDER_HEIGHT / 2],
            size=[HOLDER_WALL if x else outer, HOLDER_WALL if y else outer, HOLDER_HEIGHT / 2],
            rgba=[0.25, 0.25, 0.28, 1.0],
        )
