"""Camera images of a simulation: OpenGL where EGL works, rays on the CPU anywhere else."""

import importlib
from typing import Any, Protocol, runtime_checkable

import mujoco
import numpy as np
from jaxtyping import Float64, UInt8

from configs.checks import one_of
from contracts.constants import VIEWS
from envs.mujoco.scene import AMBIENT, LIGHTS, SKY
from envs.mujoco.sim import Simulation

Views = UInt8[np.ndarray, "3 height width 3"]
Image = UInt8[np.ndarray, "rows columns 3"]
VISIBLE_GROUPS = np.array([1, 1, 1, 0, 0, 0], np.uint8)
CANVAS_GEOM = "board_top"
CANVAS_TEXTURE = "board"
CANVAS_LEVELS = 6  # halvings of the canvas that a distant ray may look up


@runtime_checkable
class Renderer(Protocol):
    def render(self, sim: Simulation) -> Views:
        """All three views of the present moment, RGB."""
        ...

    def close(self) -> None: ...


def open_renderer(kind: str, model: mujoco.MjModel, height: int, width: int) -> Renderer:
    """A renderer for one compiled model: ``egl``, ``ray``, or ``auto`` for the first that works.

    Raises:
        ValueError: unknown kind, or EGL was asked for and is not there.
    """
    one_of("robot.renderer", kind, ("auto", "egl", "ray"))
    if kind != "ray":
        try:
            return GlRenderer(model, height, width)
        except (ImportError, AttributeError, RuntimeError) as error:
            # PyOpenGL answers a missing libEGL with an AttributeError on None
            if kind == "egl":
                raise ValueError(
                    f"robot.renderer=egl: no EGL here ({error}). Run 'apt-get install -y "
                    "--no-install-recommends libegl1 libgl1', or choose robot.renderer=ray"
                ) from error
    return RayRenderer(model, height, width)


class GlRenderer:
    """MuJoCo's OpenGL renderer in its own EGL context; the three views share one frame buffer.

    The context is made here and not by ``mujoco.Renderer``, which reads MUJOCO_GL at import and
    would then fail at import on a machine without EGL.
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int) -> None:
        self._gl: Any = None
        self._shape = (height, width)
        self._gl = importlib.import_module("mujoco.egl").GLContext(width, 3 * height)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = False
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = VISIBLE_GROUPS
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._cameras = [model.camera(name).id for name in VIEWS]
        mujoco.mjr_resizeOffscreen(width, 3 * height, self._context)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._drawn: Image | None = None

    def render(self, sim: Simulation) -> Views:
        """See ``Renderer.render``. Raises RuntimeError after ``close``."""
        if self._gl is None:
            raise RuntimeError("this renderer is closed: open another")
        self._gl.make_current()
        self._upload(sim)
        height, width = self._shape
        for index, camera in enumerate(self._cameras):
            self._camera.fixedcamid = camera
            mujoco.mjv_updateScene(
                sim.model,
                sim.data,
                self._option,
                None,
                self._camera,
                mujoco.mjtCatBit.mjCAT_ALL,
                self._scene,
            )
            view = mujoco.MjrRect(0, (2 - index) * height, width, height)
            mujoco.mjr_render(view, self._scene, self._context)
        pixels = np.empty((3 * height, width, 3), np.uint8)
        whole = mujoco.MjrRect(0, 0, width, 3 * height)
        mujoco.mjr_readPixels(pixels, None, whole, self._context)
        return np.ascontiguousarray(pixels[::-1]).reshape(3, height, width, 3)

    def close(self) -> None:
        """Free the graphics memory; later calls do nothing."""
        if self._gl is None:
            return
        with self._gl.as_current():
            self._context.free()
        self._gl.free()
        self._gl = None

    def __del__(self) -> None:
        # without this Python would free the buffers in whatever context is current by then,
        # which may be another renderer's
        self.close()

    def _upload(self, sim: Simulation) -> None:
        canvas = sim.canvas
        if canvas is None or (self._drawn is not None and np.array_equal(canvas, self._drawn)):
            return
        self._drawn = canvas.copy()
        texture = sim.model.texture(CANVAS_TEXTURE)
        start = int(sim.model.tex_adr[texture.id])
        # MuJoCo lays a texture on a plane with its columns along x and its rows against y
        flat = np.ascontiguousarray(canvas.transpose(1, 0, 2)[::-1]).reshape(-1)
        sim.model.tex_data[start : start + flat.size] = flat
        mujoco.mjr_uploadTexture(sim.model, self._context, texture.id)


class RayRenderer:
    """One ray per pixel with MuJoCo's own collision code: needs no graphics library at all."""

    def __init__(self, model: mujoco.MjModel, height: int, width: int) -> None:
        self._shape = (height, width)
        self._cameras = [model.camera(name).id for name in VIEWS]
        self._rays = [_pixel_rays(model.cam_fovy[c], height, width) for c in self._cameras]
        self._pixel_angle = [
            2 * np.tan(np.deg2rad(model.cam_fovy[c]) / 2) / height for c in self._cameras
        ]
        self._colours = model.geom_rgba[:, :3].astype(np.float64)
        for geom in np.flatnonzero(model.geom_matid >= 0):
            self._colours[geom] = model.mat_rgba[model.geom_matid[geom], :3]
        self._canvas_geom = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, CANVAS_GEOM)
        directions = np.array([direction for direction, _ in LIGHTS])
        self._to_light = -directions / np.linalg.norm(directions, axis=1, keepdims=True)
        self._strength = np.array([strength for _, strength in LIGHTS])
        count = height * width
        self._geom, self._distance = np.zeros(count, np.int32), np.zeros(count)
        self._normal = np.zeros((count, 3))
        self._drawn: Image | None = None
        self._levels: list[Float64[np.ndarray, "rows columns 3"]] = []

    def render(self, sim: Simulation) -> Views:
        """See ``Renderer.render``."""
        self._refresh(sim)
        return np.stack([self._view(sim, index) for index in range(3)])

    def close(self) -> None:
        """Nothing is held."""

    def _view(self, sim: Simulation, index: int) -> Image:
        model, data, camera = sim.model, sim.data, self._cameras[index]
        origin = data.cam_xpos[camera].copy()
        rays = self._rays[index] @ data.cam_xmat[camera].reshape(3, 3).T
        mujoco.mj_multiRay(
            model,
            data,
            origin,
            rays.reshape(-1),
            VISIBLE_GROUPS,
            True,
            -1,
            self._geom,
            self._distance,
            self._normal.reshape(-1),
            len(rays),
            mujoco.mjMAXVAL,
        )
        colours = self._colours[self._geom]
        if self._levels:
            self._paint(colours, sim, index, origin + rays * self._distance[:, None])
        colours *= (AMBIENT + np.maximum(self._normal @ self._to_light.T, 0) @ self._strength)[
            :, None
        ]
        colours[self._geom < 0] = SKY
        image = (np.minimum(colours, 1.0) * 255 + 0.5).astype(np.uint8)
        return image.reshape(*self._shape, 3)

    def _refresh(self, sim: Simulation) -> None:
        canvas = sim.canvas
        if canvas is None or (self._drawn is not None and np.array_equal(canvas, self._drawn)):
            return
        self._drawn = canvas.copy()
        level = canvas / 255.0
        self._levels = [level]
        while len(self._levels) < CANVAS_LEVELS and not (level.shape[0] % 2 or level.shape[1] % 2):
            level = 0.25 * (
                level[::2, ::2] + level[1::2, ::2] + level[::2, 1::2] + level[1::2, 1::2]
            )
            self._levels.append(level)

    def _paint(
        self,
        colours: Float64[np.ndarray, "pixels 3"],
        sim: Simulation,
        index: int,
        points: Float64[np.ndarray, "pixels 3"],
    ) -> None:
        """Colour the pixels that see the canvas, from the halving that fits their footprint."""
        geom = self._canvas_geom
        seen = np.flatnonzero(self._geom == geom)
        if not len(seen):
            return
        half = sim.model.geom_size[geom][:2]
        matrix = sim.data.geom_xmat[geom].reshape(3, 3)
        local = (points[seen] - sim.data.geom_xpos[geom]) @ matrix[:, :2]
        place = np.clip((local + half) / (2 * half), 0, 1 - 1e-9)
        footprint = self._distance[seen] * self._pixel_angle[index]
        texel = 2 * float(half.min()) / self._levels[0].shape[0]
        wanted = np.log2(np.maximum(footprint / texel, 1.0)).round().astype(int)
        for number, level in enumerate(self._levels):
            here = np.minimum(wanted, len(self._levels) - 1) == number
            cell = (place[here] * level.shape[:2]).astype(int)
            colours[seen[here]] = level[cell[:, 0], cell[:, 1]]


def _pixel_rays(field_of_view: float, height: int, width: int) -> Float64[np.ndarray, "pixels 3"]:
    """Unit rays through pixel centres, row by row, in MuJoCo's camera axes (looking along -z)."""
    focal = 0.5 * height / np.tan(np.deg2rad(field_of_view) / 2)
    across, down = np.meshgrid(
        np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2
    )
    rays = np.stack([across / focal, -down / focal, -np.ones_like(across)], axis=-1)
    return (rays / np.linalg.norm(rays, axis=-1, keepdims=True)).reshape(-1, 3)
