"""The network of the embedded world model: what the next frames change, given poses."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from contracts.constants import NEW_FRAMES, VIEWS
from models.embedded.hand_camera import HandCamera
from models.embedded.latents import PatchLatents
from models.embedded.layers import waves
from models.embedded.unet import UNet, UNetSizes

NOW = 6  # row of the current frame in a window of 11: after six of history
HAND = VIEWS.index("wrist")  # the view of the camera that rides on the flange
_WINDOW = NOW + 1 + NEW_FRAMES
_POSE = 10  # position, two rotation columns, gripper
_CONDITION = 96
_MAPS, _KEY = 8, 16  # pose maps per frame, and the length of their keys


@dataclass(frozen=True, slots=True)
class WorldModelSizes:
    """Everything that fixes the shapes of the weights."""

    channels: list[int]
    blocks: int
    patch: int
    latent: int
    frame_size: list[int]


class PoseMaps(nn.Module):
    """Where in the views an arm at a pose would be: one learned key per cell, queries of the pose.

    A vector of poses tells every cell the same; here the network is told the place. All frames
    share the weights.
    """

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.Linear(3 * _POSE, 96), nn.SiLU(), nn.Linear(96, _MAPS * _KEY))
        self.key = nn.Parameter(torch.randn(_KEY, *grid))

    def forward(
        self, poses: Float[Tensor, "batch frames 10"]
    ) -> Float[Tensor, "batch frames maps rows columns"]:
        turned = torch.cat([poses, (2 * poses).sin(), (2 * poses).cos()], dim=-1)
        query = self.query(turned).unflatten(-1, (_MAPS, _KEY))
        return torch.tanh(torch.einsum("bfmk,krc->bfmrc", query, self.key) / _KEY**0.5)


class WorldModelNet(nn.Module):
    """Denoiser of the four next frames' residuals; normalisation constants are its buffers."""

    residual_std: Tensor
    latent_std: Tensor
    pose_mean: Tensor
    pose_std: Tensor
    motion_std: Tensor

    def __init__(self, sizes: WorldModelSizes) -> None:
        super().__init__()
        self.latents = PatchLatents(sizes.patch, sizes.latent)
        height, width = sizes.frame_size
        grid = (3 * height // sizes.patch, width // sizes.patch)
        self.unet = UNet(
            UNetSizes(
                past=NOW * (sizes.latent + _MAPS),
                present=(1 + NEW_FRAMES) * (sizes.latent + _MAPS) + NEW_FRAMES * sizes.latent,
                out=NEW_FRAMES * (sizes.latent + 1),
                channels=tuple(sizes.channels),
                blocks=sizes.blocks,
                condition=_CONDITION,
                grid=grid,
            )
        )
        self.pose = nn.Sequential(
            nn.Linear((1 + _WINDOW) * _POSE, 2 * _CONDITION),
            nn.SiLU(),
            nn.Linear(2 * _CONDITION, _CONDITION),
        )
        self.noise = nn.Linear(32, _CONDITION)
        self.where = PoseMaps(grid)
        self.hand_camera = HandCamera((height, width))
        self.register_buffer("residual_std", torch.ones(NEW_FRAMES))
        self.register_buffer("latent_std", torch.ones(sizes.latent))
        self.register_buffer("pose_mean", torch.zeros(_POSE))
        self.register_buffer("pose_std", torch.ones(_POSE))
        self.register_buffer("motion_std", torch.ones(_POSE))

    def condition(self, poses: Float[Tensor, "batch 11 10"]) -> Float[Tensor, "batch condition"]:
        """Embed the current pose and all poses relative to it."""
        now = poses[:, NOW]
        absolute = (now - self.pose_mean) / self.pose_std
        relative = (poses - now[:, None]) / self.motion_std
        return self.pose(torch.cat([absolute, relative.flatten(1)], dim=1))

    def carried(
        self,
        now: Float[Tensor, "batch components rows columns"],
        poses: Float[Tensor, "batch 11 10"],
    ) -> Float[Tensor, "batch 4 components rows columns"]:
        """The current frame as it would be at the four poses to come if nothing but the wrist
        camera moved: what the new frames are predicted as changes of."""
        rows = now.shape[2] // 3
        still, hand = now[:, :, : HAND * rows], now[:, :, HAND * rows :]
        moved = self.hand_camera(self.latents.paint(hand), poses[:, NOW:])
        code = self.latents.code(moved.flatten(0, 1)).unflatten(0, moved.shape[:2])
        return torch.cat([still[:, None].expand(-1, NEW_FRAMES, -1, -1, -1), code], dim=3)

    def denoise(
        self,
        noisy: Float[Tensor, "batch 4 components rows columns"],
        sigma: Float[Tensor, " batch"],
        known: Float[Tensor, "batch 7 components rows columns"],
        carried: Float[Tensor, "batch 4 components rows columns"],
        poses: Float[Tensor, "batch 11 10"],
    ) -> Float[Tensor, "batch 4 components rows columns"]:
        """EDM preconditioning with data of unit variance (Karras et al. 2022, Table 1).

        ``noisy`` is relative to ``carried``. A gate per cell takes a share of the carrying back:
        fingers, and what they hold, stay where they are in the view.
        """
        wide = sigma[:, None, None, None, None]
        scale = (1 + wide**2).rsqrt()
        frames = known / self.latent_std[:, None, None]
        back = known[:, NOW:] - carried
        level = self.noise(waves(sigma.log() / 4, 16, 50.0))
        condition = functional.silu(self.condition(poses) + level)
        maps = self.where((poses - self.pose_mean) / self.pose_std)
        now = torch.cat([frames[:, NOW:], noisy * scale], dim=1)
        past = torch.cat([frames[:, :NOW], maps[:, :NOW]], dim=2)
        present = torch.cat([now, maps[:, NOW:]], dim=2)
        moved = (back / self.latent_std[:, None, None]).flatten(1, 2)
        present = torch.cat([present.flatten(1, 2), moved], dim=1)
        out = self.unet(past.flatten(1, 2), present, condition)
        out, gate = out.split([noisy[0, :, :, 0, 0].numel(), NEW_FRAMES], dim=1)
        taken = gate[:, :, None] * back / self.residual_std[:, None, None, None]
        return noisy * scale**2 + (out.view_as(noisy) + taken) * wide * scale
