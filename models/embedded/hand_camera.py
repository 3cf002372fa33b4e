"""What the wrist camera will see of what it sees now, when the flange moves as planned."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from contracts.panda import WRIST_CAMERA, WRIST_VIEW_DEGREES

_HALF_VIEW = math.radians(WRIST_VIEW_DEGREES / 2)
_GROUND = 0.02  # height [m] of the plane that stands for the scene: table and what lies on it
_EXPLAINED = 0.8  # of what the poses of other windows leave may be left by a window's own
_FIT_WINDOWS, _FIT_STEPS, _FIT_RATE = 16, 40, 3e-3
_LEAST_DEPTH = 0.02  # m; what is nearer, or behind, is not looked at


class HandCamera(nn.Module):
    """Moves pixels of the wrist view as a plane moves past a pinhole camera on the flange.

    The scene stands still and the camera moves, so most of the next wrist frame is the current
    one, drawn from elsewhere. What has height and what moves by itself is for the network to put
    right. Eight numbers, the camera's pose in the flange, the plane's height and the focal length,
    are DROID's calibration until they are fitted (``fit``), as is the picture of the fingers.
    """

    mount: Tensor
    ground: Tensor
    focal: Tensor
    riding: Tensor  # share of each pixel that stays: fingers ride along with the camera
    trusted: Tensor  # 1; 0 where it explains no motion: then nothing is moved

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mount", torch.tensor(WRIST_CAMERA))
        self.register_buffer("ground", torch.tensor(_GROUND))
        self.register_buffer("focal", torch.tensor(0.5 / math.tan(_HALF_VIEW)))  # in heights
        self.register_buffer("riding", torch.zeros(size))
        self.register_buffer("trusted", torch.tensor(1.0))

    def fit(
        self,
        views: Float[Tensor, "batch frames colours height width"],
        poses: Float[Tensor, "batch frames 10"],
    ) -> None:
        """Set all numbers to those that explain later views best; deterministic.

        The camera by gradient descent on squared differences of a few windows, the pixels that
        ride along by least squares over all. Where the poses of other windows explain the views
        nearly as well, the camera is not on the flange, and nothing is moved any more.
        """
        few = slice(0, _FIT_WINDOWS)
        self._find_riders(views, poses)
        known = (self.mount, self.ground, self.focal)
        free = [number.detach().clone().requires_grad_() for number in known]
        optimiser = torch.optim.Adam(free, lr=_FIT_RATE)
        with torch.enable_grad():
            for _ in range(_FIT_STEPS):
                self.mount, self.ground, self.focal = free
                error = (self._moved(views[few, 0], poses[few]) - views[few, 1:]).square().mean()
                optimiser.zero_grad()
                error.backward()
                optimiser.step()
        self.mount, self.ground, self.focal = (number.detach() for number in free)
        self._find_riders(views, poses)
        left, otherwise = (
            (self._moved(views[:, 0], path) - views[:, 1:]).square().mean()
            for path in (poses, poses.roll(1, dims=0))
        )
        self.trusted.fill_(float(left < _EXPLAINED * otherwise))

    def _find_riders(self, views: Tensor, poses: Tensor) -> None:
        """The share of standing still that explains each pixel best."""
        drawn, later = self._drawn(views[:, 0], poses), views[:, 1:]
        apart = views[:, :1] - drawn
        over = (0, 1, 2)
        share = (apart * (later - drawn)).sum(over) / apart.square().sum(over).clamp_min(1e-6)
        self.riding = share.clamp(0, 1)

    def forward(
        self,
        now: Float[Tensor, "batch colours height width"],
        poses: Float[Tensor, "batch moments 10"],
    ) -> Float[Tensor, "batch frames colours height width"]:
        """The view ``now``, taken at the first of ``poses``, as seen from each of the others."""
        if not self.trusted:
            return now[:, None].expand(-1, poses.shape[1] - 1, -1, -1, -1)
        return self._moved(now, poses)

    def _moved(self, now: Tensor, poses: Tensor) -> Tensor:
        drawn = self._drawn(now, poses)
        return drawn + self.riding * (now[:, None] - drawn)

    def _drawn(self, now: Tensor, poses: Tensor) -> Tensor:
        grid = self._place(poses)
        frames = grid.shape[1]
        many = now.repeat_interleave(frames, dim=0)
        drawn = functional.grid_sample(
            many, grid.flatten(0, 1), padding_mode="border", align_corners=False
        )
        return drawn.unflatten(0, (len(now), frames))

    def _place(
        self, poses: Float[Tensor, "batch moments 10"]
    ) -> Float[Tensor, "batch frames height width 2"]:
        """Where in the current view each pixel of the later ones comes from, -1 to 1."""
        turn, point = self._cameras(poses)
        height, width = self.size
        aspect = width / height
        v = ((torch.arange(height, device=poses.device) + 0.5) / height - 0.5) / self.focal
        u = ((torch.arange(width, device=poses.device) + 0.5) / width - 0.5) * aspect / self.focal
        y, x = torch.meshgrid(v, u, indexing="ij")
        rays = torch.stack([x, y, torch.ones_like(x)], dim=-1)
        rays = torch.einsum("bfij,hwj->bfhwi", turn[:, 1:], rays)
        start = point[:, 1:, None, None]
        down = rays[..., 2].clamp_max(-1e-3)  # above the horizon: far away on the plane
        away = ((self.ground - start[..., 2]) / down).clamp(0, 5)
        seen = start + away[..., None] * rays
        local = torch.einsum("bji,bfhwj->bfhwi", turn[:, 0], seen - point[:, :1, None, None])
        depth = local[..., 2].clamp_min(_LEAST_DEPTH)
        across = 2 * self.focal * local[..., 0] / depth / aspect
        along = 2 * self.focal * local[..., 1] / depth
        return torch.stack([across, along], dim=-1)

    def _cameras(
        self, poses: Float[Tensor, "batch frames 10"]
    ) -> tuple[Float[Tensor, "batch frames 3 3"], Float[Tensor, "batch frames 3"]]:
        """Rotation of and position of the camera in the base, for poses of the flange."""
        first, second = poses[..., 3:6], poses[..., 6:9]
        flange = torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)
        point = poses[..., :3] + flange @ self.mount[:3]
        return flange @ _rotation(self.mount[3:]), point


def _rotation(angles: Float[Tensor, " 3"]) -> Float[Tensor, "3 3"]:
    """Extrinsic xyz Euler angles: Rz Ry Rx."""
    (cx, cy, cz), (sx, sy, sz) = angles.cos(), angles.sin()
    rows: Sequence[Tensor] = (
        cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx,
        sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx,
        -sy, cy * sx, cy * cx,
    )  # fmt: skip
    return torch.stack(list(rows)).view(3, 3)
