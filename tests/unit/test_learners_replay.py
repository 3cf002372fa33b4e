"""Replay evaluation: recorded poses drive the model, and quality is counted by second."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from contracts.types import Provenance, StartState
from envs.fake import counting_trajectory
from learners.replay_quality import evaluate_replay


@dataclass
class OffByTen:
    """Knows the truth from the pose (frame = x * 100 / 3) and shows it ``error`` too bright."""

    version: int = 1
    error: int = 10
    calls: list[int] = field(default_factory=list)

    def begin(self, start: StartState, seed: int) -> tuple[int, int]:
        assert start.frame[0, 0, 0, 0] == 0  # the first frame
        return int(start.frame[0, 0, 0, 1]), seed

    def imagine(self, slots: Sequence[tuple[int, int]], poses: np.ndarray) -> np.ndarray:
        self.calls.append(len(slots))
        frames = np.zeros((len(slots), 4, 3, 16, 16, 3), np.uint8)
        frames[..., 0] = np.round(poses[:, 1:, 0] * 100 / 3)[:, :, None, None, None]
        frames[..., 1] = np.array([owner for owner, _ in slots])[:, None, None, None, None]
        frames[..., 2] = np.arange(3)[:, None, None]
        return frames + np.uint8(self.error)


def episode(seed: int, ticks: int):
    return counting_trajectory(Provenance(f"e{seed}", "real", "wipe", 1, seed), ticks)


def flat_ssim(second: int) -> float:
    """SSIM of two flat images a and b is (2ab + 1e-4) / (a^2 + b^2 + 1e-4): no structure."""
    a = [
        np.array([frame, seed, view]) / 255
        for frame in range(5 * second + 1, 5 * second + 6)
        for seed in (1, 2)
        for view in range(3)
    ]
    x, y = np.array(a), np.array(a) + 10 / 255
    return float(np.mean((2 * x * y + 1e-4) / (x**2 + y**2 + 1e-4)))


def test_constant_error_has_its_psnr_in_every_second():
    """An error of 10 in every pixel is 20 log10(255 / 10) = 28.13 dB.

    The copy errs by j in one of three channels at frame j: 20 log10(255 sqrt(3) / j) dB.
    """
    scores = evaluate_replay(OffByTen(), [episode(1, 60), episode(2, 60)], chunks=5)
    assert scores.psnr == pytest.approx([28.1308] * 4, abs=1e-3)
    for second in range(4):
        errors = np.arange(5 * second + 1, 5 * second + 6)
        expected = np.mean(20 * np.log10(255 * np.sqrt(3) / errors))
        assert scores.copy_psnr[second] == pytest.approx(expected, abs=1e-3)
    assert scores.frames == (10, 10, 10, 10)
    assert scores.episodes == 2
    assert scores.ssim == pytest.approx([flat_ssim(second) for second in range(4)], abs=1e-5)


def test_short_episodes_take_part_as_long_as_they_have_frames():
    """30 ticks: 11 frames, two chunks of four. 60 ticks: 21 frames, five chunks. 9 ticks: none."""
    model = OffByTen(error=0)
    scores = evaluate_replay(model, [episode(1, 30), episode(2, 60), episode(3, 9)], chunks=7)
    assert model.calls == [2, 2, 1, 1, 1]
    assert scores.frames == (10, 8, 5, 5)
    assert scores.psnr == pytest.approx([100.0] * 4)
    assert scores.ssim == pytest.approx([1.0] * 4)
    assert scores.episodes == 2


def test_nothing_long_enough_is_refused():
    with pytest.raises(ValueError, match="none of 1 trajectories has 5 frames"):
        evaluate_replay(OffByTen(), [episode(1, 9)], chunks=2)
