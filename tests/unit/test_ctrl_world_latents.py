"""Ctrl-World's frames, decode schedule, poses and history against hand-worked values."""

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import (
    AutoencoderKLTemporalDecoder,
)
from torch import Tensor

from configs.world_model import CtrlWorldConfig
from models.ctrl_world.autoencoder import decode, encode
from models.ctrl_world.history import (
    FIRST_FRAME,
    PoseRange,
    history_offsets,
    history_positions,
    pose_table,
)
from models.ctrl_world.latents import (
    check_frame_size,
    latent_shape,
    split_views,
    stack_views,
    to_uint8,
)
from models.ctrl_world.network import build_vae


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return build_vae(CtrlWorldConfig(vae_channels=[32, 32, 32, 32]))


def test_sizes_that_the_unet_cannot_halve_are_refused_with_one_that_it_can() -> None:
    with pytest.raises(ValueError, match=r"robot\.height=64 robot\.width=128"):
        check_frame_size(48, 80)
    for height, width in ((64, 128), (192, 320)):
        check_frame_size(height, width)
    assert latent_shape(192, 320) == (4, 72, 40)


def test_views_are_stacked_from_the_top() -> None:
    views = torch.arange(3.0)[None, :, None, None, None].expand(2, 3, 4, 8, 16)
    stacked = stack_views(views)
    assert stacked[0, 0, :, 0].tolist() == [0.0] * 8 + [1.0] * 8 + [2.0] * 8
    assert torch.equal(split_views(stacked), views)


def test_images_are_truncated_not_rounded() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0])  # 0 -> 127.5, 0.999 -> 254.87
    images = values[None, None].expand(3, 1, 6)
    assert to_uint8(images)[0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


def test_encoding_scales_a_sample_of_the_posterior(vae) -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 3, 64, 128, 3), dtype=torch.uint8, generator=generator)
    noise = torch.randn(2, 4, 24, 16, generator=generator)
    latents = encode(vae, frames, noise)
    image = frames[1, 2].movedim(-1, 0)[None] / 127.5 - 1  # last frame, wrist view
    with torch.no_grad():
        posterior = vae.encode(image).latent_dist
    expected = 0.18215 * (posterior.mean[0] + posterior.std[0] * noise[1, :, 16:24])
    torch.testing.assert_close(latents[1, :, 16:24], expected, atol=1e-5, rtol=1e-5)


class ClipTagger(AutoencoderKLTemporalDecoder):
    """A decoder that writes which call and which image of the call it decoded."""

    def __init__(self) -> None:
        super().__init__(block_out_channels=(32,))
        self.calls: list[int] = []
        self.inputs: list[float] = []

    def decode(self, z: Tensor, num_frames: int, return_dict: bool = True) -> tuple[Tensor]:
        self.calls.append(num_frames)
        self.inputs += z[:, 0, 0, 0].tolist()
        tags = len(self.calls) * 100 + torch.arange(float(num_frames))
        return (tags[:, None, None, None].expand(num_frames, 3, 8, 8),)


def decode_order(official: bool) -> tuple[list[int], list[float], list[list[float]]]:
    """Latents hold 10 * view + frame, unscaled."""
    value = 10.0 * torch.arange(3)[None] + torch.arange(5.0)[:, None]
    views = (value * 0.18215)[..., None, None, None].expand(5, 3, 4, 1, 1)
    tagger = ClipTagger()
    images = decode(tagger, stack_views(views), official)
    return tagger.calls, tagger.inputs, images[:, :, 0, 0, 0].T.tolist()


def test_views_are_decoded_as_clips_of_their_own() -> None:
    calls, inputs, tags = decode_order(official=False)
    assert calls == [5, 5, 5]
    assert inputs == pytest.approx([0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 20, 21, 22, 23, 24])
    assert tags[2] == [300, 301, 302, 303, 304]


def test_official_schedule_cuts_across_views() -> None:
    """Upstream's chunks of 7: [v0 f0-4, v1 f0-1], [v1 f2-4, v2 f0-3], [v2 f4]."""
    calls, _, tags = decode_order(official=True)
    assert calls == [7, 7, 1]
    assert tags[1] == [105, 106, 200, 201, 202]
    assert tags[2] == [203, 204, 205, 206, 300]


def test_published_pose_range() -> None:
    middle = np.array([[0.52435815, 0, 0, 0, 0, 0, 0.49559471]], np.float32)
    far = np.array([[9, 9, 9, 9, 9, 9, -9]], np.float32)
    assert PoseRange().normalise(middle)[0, [0, 6]] == pytest.approx([0, 0], abs=1e-6)
    assert PoseRange().normalise(far).tolist() == [[1, 1, 1, 1, 1, 1, -1]]


def test_fitted_pose_range_is_percentiles_and_never_a_point() -> None:
    poses = np.tile(np.arange(101, dtype=np.float32)[:, None], (1, 7))
    poses[:, 3] = 3.0
    fitted = PoseRange.fit(poses)
    assert fitted.low[0] == pytest.approx(1)
    assert fitted.high[0] == pytest.approx(99)
    assert (fitted.low[3], fitted.high[3]) == pytest.approx((2.995, 3.005))
    jitter = poses[:1] + np.float32(1e-4)
    assert abs(fitted.normalise(jitter)[0, 3]) < 0.03


def test_history_before_the_first_chunks_is_the_first_frame() -> None:
    replay, policy = [0, 0, -8, -6, -4, -2], [0, 0, -12, -9, -6, -3]
    assert history_positions(1, replay) == [0] * 6
    assert history_positions(4, replay) == [0, 0, 0, 0, 0, 2]
    assert history_positions(13, policy) == [0, 0, 1, 4, 7, 10]


def test_training_windows_match_what_imagining_looks_back_at() -> None:
    """Index -k is the frame before the chunk k - 1 chunks ago: 4 (k - 1) frames back."""
    assert history_offsets([0, 0, -8, -6, -4, -2]) == (FIRST_FRAME, FIRST_FRAME, -28, -20, -12, -4)
    assert history_offsets([-7, -6, -5, -4, -3, -2]) == (-24, -20, -16, -12, -8, -4)


def test_pose_table_is_history_then_chunk() -> None:
    past = [np.full(7, chunk, np.float32) for chunk in range(4)]
    chunk = np.repeat(np.arange(3, 8, dtype=np.float32)[:, None], 7, axis=1)
    table = pose_table(past, [0, 0, -8, -4, -3, -2], chunk)
    assert table[:, 0].tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7]
