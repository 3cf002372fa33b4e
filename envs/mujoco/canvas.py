"""A whiteboard whose ink is an image: strokes, erasing, and the texture that shows it."""

from itertools import pairwise

import mujoco
import numpy as np
from jaxtyping import Bool, Float, UInt8

CENTRE = (0.50, 0.0)  # m, of the board in the base frame
HALF = (0.12, 0.16)  # m, half its length along x and y
TOP = 0.012  # m, height of its surface
TEXEL = 0.002  # m
ROWS, COLUMNS = (round(2 * half / TEXEL) for half in HALF)
BLANK = 244  # grey value of the clean board
BOARD_GEOM, SHOWN_GEOM = "board", "board_top"
PAINT_GAP = 0.0006  # m between the board and the plane that carries its texture
INK = {
    "red": (205, 25, 25),
    "blue": (20, 50, 205),
    "green": (10, 140, 45),
    "black": (20, 20, 22),
}

Pixels = UInt8[np.ndarray, "rows columns 3"]
Points = Float[np.ndarray, "points 2"]


class Canvas:
    """The board's surface: ``pixels[row, column]``, rows along the base's +x, columns along +y.

    Texel (0, 0) is the corner with the smallest x and y. ``ink`` says which texels are marked.
    """

    def __init__(self) -> None:
        self.pixels: Pixels = np.full((ROWS, COLUMNS, 3), BLANK, np.uint8)
        self.ink: Bool[np.ndarray, "rows columns"] = np.zeros((ROWS, COLUMNS), bool)

    def clean(self) -> None:
        """Remove all ink; the arrays stay the same objects."""
        self.pixels[:] = BLANK
        self.ink[:] = False

    def amount(self) -> int:
        """Number of marked texels."""
        return int(self.ink.sum())

    def stroke(self, points: Points, radius: float, colour: tuple[int, int, int]) -> None:
        """Mark every texel whose centre lies within ``radius`` m of a straight line between
        successive ``points`` (m, base frame). What falls beside the board is lost."""
        for start, end in pairwise(points):
            low, high = np.minimum(start, end) - radius, np.maximum(start, end) + radius
            window, centres = _window(low, high)
            along = end - start
            share = ((centres - start) @ along) / max(float(along @ along), 1e-12)
            nearest = start + np.clip(share, 0.0, 1.0)[..., None] * along
            hit = ((centres - nearest) ** 2).sum(-1) <= radius**2
            self.ink[window] |= hit
            self.pixels[window][hit] = colour

    def wipe(
        self,
        centre: Float[np.ndarray, " 2"],
        axes: Float[np.ndarray, "2 2"],
        half: Float[np.ndarray, " 2"],
    ) -> None:
        """Clear the texels whose centres lie inside a rectangle.

        ``centre`` and ``half`` in m; row k of ``axes`` is the horizontal unit vector along which
        the rectangle reaches ``half[k]`` to both sides.
        """
        reach = np.abs(axes).T @ half
        window, centres = _window(centre - reach, centre + reach)
        inside = (np.abs((centres - centre) @ axes.T) <= half).all(-1)
        self.ink[window] &= ~inside
        self.pixels[window][inside] = BLANK


def on_board(point: Float[np.ndarray, " 2"]) -> bool:
    """Whether a point (m, base frame) lies above the board."""
    return bool((np.abs(point - np.array(CENTRE)) < np.array(HALF)).all())


def texel_centres(
    rows: Float[np.ndarray, " rows"], columns: Float[np.ndarray, " columns"]
) -> Float[np.ndarray, "rows columns 2"]:
    """Base-frame x and y in m of texels given by row and column numbers."""
    x = CENTRE[0] - HALF[0] + (rows + 0.5) * TEXEL
    y = CENTRE[1] - HALF[1] + (columns + 0.5) * TEXEL
    return np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)


def _window(
    low: Float[np.ndarray, " 2"], high: Float[np.ndarray, " 2"]
) -> tuple[tuple[slice, slice], Float[np.ndarray, "rows columns 2"]]:
    """Slices of the texels that may lie between two corners, and their centres in m."""
    corner = np.array(CENTRE) - np.array(HALF)
    size = (ROWS, COLUMNS)
    first = np.clip(np.floor((low - corner) / TEXEL).astype(int), 0, size)
    last = np.clip(np.ceil((high - corner) / TEXEL).astype(int), first, size)
    rows, columns = (np.arange(a, b) for a, b in zip(first, last, strict=True))
    window = (slice(int(first[0]), int(last[0])), slice(int(first[1]), int(last[1])))
    return window, texel_centres(rows.astype(float), columns.astype(float))


def add_board(spec: mujoco.MjSpec) -> None:
    """Add the board and, just above it, the plane "board_top" that shows the canvas."""
    spec.add_texture(
        name=BOARD_GEOM,
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_FLAT,
        rgb1=[BLANK / 255] * 3,
        rgb2=[BLANK / 255] * 3,
        width=ROWS,
        height=COLUMNS,
    )
    paint = spec.add_material(name=BOARD_GEOM, specular=0.0, shininess=0.0)
    paint.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = BOARD_GEOM
    body = spec.worldbody.add_body(name=BOARD_GEOM, pos=[*CENTRE, 0.0])
    body.add_geom(
        name=BOARD_GEOM,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=[0, 0, TOP / 2],
        size=[*HALF, TOP / 2],
        rgba=[0.75, 0.76, 0.78, 1.0],
        friction=[0.4, 0.005, 0.0001],
    )
    body.add_geom(
        name=SHOWN_GEOM,
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        pos=[0, 0, TOP + PAINT_GAP],
        size=[*HALF, 0.01],
        material=BOARD_GEOM,
        contype=0,
        conaffinity=0,
    )
