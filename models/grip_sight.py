"""Whether the closing gripper will meet something, by what the wrist camera sees."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from contracts.constants import TICKS_PER_FRAME, VIEWS
from contracts.kinematics import flange_transform
from contracts.protocols import PoseAdapter
from models.embedded.layers import fresh
from models.embedded.rows import in_groups
from models.gripper_model import follow, gripper_rates
from models.motion import TICKS, MotionWindows

WRIST = VIEWS.index("wrist")  # the view that is looked at
FREE = 2.0  # as a stop: nothing is in the way
ASKS = 0.1  # a command this much beyond where the gripper is asks it to close
_STILL = 0.01  # moved less in three ticks: it stands
SIZE = (48, 80)  # of the view that the eye sees
_PATH = np.arange(TICKS_PER_FRAME, TICKS + 1, TICKS_PER_FRAME) - 1
_KNOWN = 3 * len(_PATH) + 4 + 1 + TICKS
_FILE = "grip_sight.safetensors"
_STEPS, _BATCH, _RATE = 500, 64, 1e-3


@dataclass(frozen=True, slots=True)
class GripWindows:
    """Moments at which the gripper was asked to close, with the wrist view then. ``stop`` is where
    it stood at the end of the chunk although more was asked, ``FREE`` where it was not held up.
    ``rates`` are those of a gripper that nothing holds up."""

    views: UInt8[np.ndarray, "window 48 80 3"]
    known: Float32[np.ndarray, "window features"]
    stop: Float32[np.ndarray, " window"]
    rates: Float64[np.ndarray, "2 bins"]

    @classmethod
    def of(
        cls, windows: MotionWindows, views: UInt8[np.ndarray, "window 48 80 3"]
    ) -> "GripWindows":
        """Of windows that all ask for closing (``asks_to_close``)."""
        held = held_up(windows)
        known = grip_features(
            windows.joint_position,
            windows.gripper_position,
            windows.future_joints,
            windows.actions[..., 7],
        )
        stop = np.where(held, windows.future_gripper[:, -1], FREE).astype(np.float32)
        return cls(views, known, stop, gripper_rates(windows.take(~held), moving=True))

    def __len__(self) -> int:
        return len(self.stop)

    @property
    def held(self) -> Bool[np.ndarray, " window"]:
        return self.stop < FREE


def held_up(windows: MotionWindows) -> Bool[np.ndarray, " window"]:
    """Whether the gripper stands at the end although it is asked to close further."""
    command, way = windows.actions[..., 7], windows.future_gripper
    recent = slice(-TICKS_PER_FRAME, None)
    stands = np.abs(way[:, -1] - way[:, -1 - TICKS_PER_FRAME]) < _STILL
    return stands & (command[:, recent].min(axis=1) - way[:, -1] > ASKS)


def asks_to_close(
    gripper: Float[np.ndarray, " window"], command: Float[np.ndarray, "window ticks"]
) -> Bool[np.ndarray, " window"]:
    """Which chunks ask for a gripper more closed than it is."""
    return command.max(axis=1) - gripper > ASKS


def grip_features(
    start: Float[np.ndarray, "window 7"],
    gripper: Float[np.ndarray, " window"],
    joints: Float[np.ndarray, "window ticks 7"],
    command: Float[np.ndarray, "window ticks"],
) -> Float32[np.ndarray, "window features"]:
    """Where the flange goes in its own frame [10 cm], its height and direction, the gripper and
    what is asked of it. A chunk of fewer than 15 ticks ends with its last one repeated."""
    ticks = np.minimum(np.arange(TICKS), joints.shape[1] - 1)
    flange, later = flange_transform(start), flange_transform(joints[:, ticks[_PATH]])
    way = np.einsum("wji,wkj->wki", flange[:, :3, :3], later[..., :3, 3] - flange[:, None, :3, 3])
    parts = [
        10 * way.reshape(len(way), 3 * len(_PATH)),
        10 * flange[:, 2:3, 3],
        flange[:, :3, 2],
        gripper[:, None],
        command[:, ticks],
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


class _Net(nn.Module):
    mean: Tensor
    std: Tensor
    rates: Tensor  # 2 x bins: way per tick while closing and opening on nothing

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 32)
        self.look = nn.Sequential()
        for before, after in pairwise(widths):
            self.look.extend((nn.Conv2d(before, after, 5, 2, 2), nn.SiLU()))
        cells = widths[-1] * (SIZE[0] // 8) * (SIZE[1] // 8)
        self.tell = nn.Sequential(
            nn.Linear(cells + _KNOWN, 128), nn.SiLU(), nn.Dropout(0.3), nn.Linear(128, 2)
        )
        self.register_buffer("mean", torch.zeros(_KNOWN))
        self.register_buffer("std", torch.ones(_KNOWN))
        self.register_buffer("rates", torch.from_numpy(gripper_rates(MotionWindows.of([]))))

    def forward(self, views: Tensor, known: Tensor) -> Float[Tensor, "window 2"]:
        """Logit of being held up, and where."""
        seen = self.look(views).flatten(1)
        return self.tell(torch.cat([seen, (known - self.mean) / self.std], dim=1))


class GripSight:
    """Tells from the wrist view and the planned way whether the gripper closes on something.

    A gripper that closes on nothing passes the place where it would stop on the object, and a world
    model that is told one or the other shows what follows. A table of rates cannot know which.
    """

    def __init__(self, seed: int = 0) -> None:
        self._net: _Net = fresh(_Net, seed).eval()

    def fit(self, windows: GripWindows, steps: int = _STEPS, *, scales: bool = True) -> None:
        """Learn from ``windows``; both outcomes weigh what they are worth. ``scales``: fit the
        normalisation, too. Deterministic."""
        net = self._net
        net.rates.copy_(torch.from_numpy(windows.rates))
        rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
        if scales:
            net.mean.copy_(torch.from_numpy(windows.known.mean(axis=0)))
            net.std.copy_(torch.from_numpy(windows.known.std(axis=0)).clamp_min(0.02))
        views, known = _pixels(windows.views), torch.from_numpy(windows.known)
        held, stop = torch.from_numpy(windows.held), torch.from_numpy(windows.stop)
        optimiser = torch.optim.AdamW(net.parameters(), _RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=steps)
        with torch.random.fork_rng(devices=[]):  # of dropout
            torch.manual_seed(0)
            net.train()
            for _ in range(steps):
                rows = torch.from_numpy(rng.integers(len(windows), size=_BATCH))
                seen = _blurred(views[rows], generator)
                logit, place = net(seen, known[rows]).unbind(1)
                loss = functional.binary_cross_entropy_with_logits(logit, held[rows].float())
                off = (place - stop[rows]).square() * held[rows]
                optimiser.zero_grad()
                (loss + 10 * off.mean()).backward()
                optimiser.step()
                schedule.step()
            net.eval()

    @torch.no_grad()
    def told(
        self, views: UInt8[np.ndarray, "window 48 80 3"], known: Float32[np.ndarray, "w f"]
    ) -> tuple[Float64[np.ndarray, " window"], Float64[np.ndarray, " window"]]:
        """The probability that the gripper is held up, and where it then stands. A row does not
        depend on its neighbours."""
        if not len(views):
            return np.zeros(0), np.zeros(0)
        out = in_groups(self._net, _pixels(views), torch.from_numpy(known)).double()
        return out[:, 0].sigmoid().numpy(), out[:, 1].numpy()

    def close(
        self,
        views: UInt8[np.ndarray, "slot 48 80 3"],
        known: Float32[np.ndarray, "slot features"],
        start: Float32[np.ndarray, " slot"],
        command: Float32[np.ndarray, "slot ticks"],
    ) -> Float64[np.ndarray, "slot ticks"]:
        """The gripper after each tick, of slots that ask for closing: it stops where it is held up,
        if that is more likely than not, and else follows the command."""
        held, place = self.told(views, known)
        stop = np.maximum(np.where(held > 0.5, place, FREE), start)
        wanted = np.minimum(command, stop[:, None]).astype(np.float32)
        return follow(start, wanted, self._net.rates.numpy())

    def save(self, folder: Path) -> None:
        """Write grip_sight.safetensors into an existing folder."""
        save_file(self._net.state_dict(), folder / _FILE)

    @classmethod
    def load(cls, folder: Path) -> "GripSight | None":
        """What ``save`` wrote; None where there is none. Raises ValueError for another file."""
        path = folder / _FILE
        if not path.is_file():
            return None
        self = cls()
        try:
            self._net.load_state_dict(load_file(path))
        except RuntimeError as error:
            raise ValueError(
                f"{path} is of another version: train the world model again"
            ) from error
        return self


def shrunk(
    views: UInt8[np.ndarray, "window height width 3"],
) -> UInt8[np.ndarray, "window 48 80 3"]:
    """Views in the size that the eye sees, averaged over areas."""
    if views.shape[1:3] == SIZE:
        return views
    pixels = torch.from_numpy(views).permute(0, 3, 1, 2).float()
    small = functional.interpolate(pixels, SIZE, mode="area").round().to(torch.uint8)
    return small.permute(0, 2, 3, 1).contiguous().numpy()


def _pixels(views: UInt8[np.ndarray, "window 48 80 3"]) -> Float[Tensor, "window 3 48 80"]:
    return torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255 - 0.5


def _blurred(views: Tensor, generator: torch.Generator) -> Tensor:
    """Brighter or darker, noisy, and half of the time blurred: imagined views are."""
    count = len(views)
    light = 0.1 * torch.rand(count, 3, 1, 1, generator=generator) - 0.05
    noise = 0.03 * torch.randn(views.shape, generator=generator)
    soft = functional.avg_pool2d(views, 3, 1, 1, count_include_pad=False)
    share = torch.rand(count, 1, 1, 1, generator=generator)
    share = share * (torch.rand(count, 1, 1, 1, generator=generator) < 0.5)
    return views + share * (soft - views) + light + noise


class SeeingAdapter:
    """``PoseAdapter`` whose gripper closes as far as what the wrist camera sees lets it."""

    def __init__(self, arm: PoseAdapter, sight: GripSight) -> None:
        self._arm, self._sight = arm, sight

    def predict(
        self,
        joint_position: Float32[np.ndarray, "slot 7"],
        joint_motion: Float32[np.ndarray, "slot 7"],
        gripper_position: Float32[np.ndarray, " slot"],
        actions: Float32[np.ndarray, "slot ticks 8"],
        frames: UInt8[np.ndarray, "slot 3 height width 3"],
    ) -> tuple[Float32[np.ndarray, "slot ticks 7"], Float32[np.ndarray, "slot ticks"]]:
        """Joint angles [rad] and gripper after each tick."""
        joints, grip = self._arm.predict(
            joint_position, joint_motion, gripper_position, actions, frames
        )
        command = actions[..., 7]
        asks = np.flatnonzero(asks_to_close(gripper_position, command))
        if len(asks):
            grip = grip.copy()  # it may be the caller's own commands
            start, wanted = gripper_position[asks], command[asks]
            known = grip_features(joint_position[asks], start, joints[asks], wanted)
            grip[asks] = self._sight.close(shrunk(frames[asks, WRIST]), known, start, wanted)
        return joints, grip
