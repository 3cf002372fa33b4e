"""Parts that the embedded models share: codes, noise, words, images, folders."""

import json

import numpy as np
import pytest
import torch

from models.embedded.augment import random_blur, random_light, random_shift
from models.embedded.latents import PatchLatents
from models.embedded.rows import in_groups, noise_of
from models.embedded.store import read_checkpoint, write_checkpoint
from models.embedded.words import hashed_words


def test_codes_are_projections_of_patches_cut_by_hand():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (12, 3, 16, 24, 3), dtype=np.uint8)
    code = PatchLatents(patch=8, count=20)
    code.fit(torch.from_numpy(frames))
    latents = code.encode(torch.from_numpy(frames)).numpy()
    assert latents.shape == (12, 20, 6, 3)
    patch = frames[5, 1, 8:16, 16:24].transpose(2, 0, 1).reshape(-1) / 127.5 - 1
    expected = code.components.numpy() @ (patch - code.mean.numpy())
    np.testing.assert_allclose(latents[5, :, 3, 2], expected, atol=1e-4)


def test_two_hundred_components_more_than_needed_rebuild_flat_patches_exactly():
    rng = np.random.default_rng(1)
    tiles = rng.integers(0, 256, (30, 3, 2, 3, 3), dtype=np.uint8)
    frames = torch.from_numpy(tiles.repeat(8, axis=2).repeat(8, axis=3))
    code = PatchLatents(patch=8, count=3)
    code.fit(frames)
    np.testing.assert_array_equal(code.decode(code.encode(frames)).numpy(), frames.numpy())


def test_components_are_orthonormal_and_do_not_depend_on_signs_of_the_solver():
    frames = torch.from_numpy(
        np.random.default_rng(2).integers(0, 256, (40, 3, 8, 8, 3), dtype=np.uint8)
    )
    code = PatchLatents(patch=8, count=10)
    code.fit(frames)
    gram = code.components @ code.components.T
    np.testing.assert_allclose(gram.numpy(), np.eye(10), atol=1e-5)
    largest = code.components.gather(1, code.components.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


def test_noise_follows_the_whole_key():
    assert torch.equal(noise_of([7, 1], (3, 2)), noise_of([7, 1], (3, 2)))
    others = [noise_of(key, (3, 2)) for key in ([7, 2], [8, 1], [7 + 2**32, 1], [7 + 2**40, 1])]
    assert all(not torch.equal(noise_of([7, 1], (3, 2)), other) for other in others)
    sample = noise_of([0], (40_000,))
    assert abs(float(sample.mean())) < 0.02
    assert abs(float(sample.std()) - 1) < 0.02


def test_groups_always_have_the_same_size_and_keep_the_order():
    seen = []

    def double(rows):
        seen.append(len(rows))
        return 2 * rows

    for count in (1, 4, 6, 9):
        rows = torch.arange(count)
        assert torch.equal(in_groups(double, rows, size=4), 2 * rows)
    assert seen == [4] * (1 + 1 + 2 + 3)


def test_hashed_words_ignore_case_and_punctuation_and_tell_colours_apart():
    said = ["Stack the RED block!", "stack the red block", "stack the blue block"]
    bags = hashed_words(said, 64)
    assert torch.equal(bags[0], bags[1])
    assert float(bags[0].sum()) == pytest.approx(8 / 8**0.5)
    assert float((bags[0] - bags[2]).abs().sum()) == pytest.approx(4 / 8**0.5)
    assert float(hashed_words(["red"], 64)[0, 4200685455 % 64]) == pytest.approx(0.5**0.5)
    assert float(hashed_words([""], 64).abs().sum()) == 0.0


def test_hashed_words_keep_their_order():
    bags = hashed_words(["stack red on green", "stack green on red", "stack red on green"], 128)
    assert torch.equal(bags[0], bags[2])
    assert float((bags[0] - bags[1]).abs().sum()) == pytest.approx(4 / 8**0.5)


def test_a_shift_moves_whole_images_within_its_reach():
    ramp = np.arange(20, dtype=np.uint8)[None, None, :, None].repeat(10, 1).repeat(3, 3)
    images = torch.from_numpy(ramp.repeat(64, 0).copy())
    moved = random_shift(images, 2, torch.Generator().manual_seed(0))
    offsets = moved[:, 5, 10, 0].int() - 10
    assert set(offsets.tolist()) == {-2, -1, 0, 1, 2}
    expected = (torch.arange(20) + offsets[:, None]).clamp(0, 19)
    np.testing.assert_array_equal(moved[:, 3, :, 1].numpy(), expected.numpy())


def test_light_is_one_gain_and_one_offset_per_sample():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2000, 2, 3, generator=generator)
    lit = random_light(images, 0.1, generator)
    slope = (lit[:, 0, 1] - lit[:, 0, 0]) / (images[:, 0, 1] - images[:, 0, 0])
    offset = lit[:, 1, 2] - slope * images[:, 1, 2]
    assert abs(float(slope.median()) - 1) < 0.01
    assert abs(float(offset.std()) - 0.1) < 0.02


def test_half_of_the_samples_are_blurred_and_none_changes_its_mean():
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(400, 1, 1, 11, 11)
    images[..., 5, 5] = 1.0
    blurred = random_blur(images, generator)
    assert 160 < int((blurred[:, 0, 0, 5, 5] < 1).sum()) < 240
    np.testing.assert_allclose(blurred.sum(dim=(1, 2, 3, 4)).numpy(), 1.0, atol=1e-5)
    assert float(blurred[:, 0, 0, 5, 5].min()) >= 1 / 25 - 1e-6


def test_folders_are_refused_with_a_reason(tmp_path):
    layer = torch.nn.Linear(3, 2)
    write_checkpoint(tmp_path, "policy", {"width": 3}, layer)
    other = torch.nn.Linear(3, 2)
    read_checkpoint(tmp_path, "policy", {"width": 3}, other)
    assert torch.equal(layer.weight, other.weight)
    with pytest.raises(ValueError, match="width is 3 in the folder, 4 in the config"):
        read_checkpoint(tmp_path, "policy", {"width": 4}, other)
    with pytest.raises(ValueError, match="holds kind 'policy'"):
        read_checkpoint(tmp_path, "reward", {"width": 3}, other)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": 2}))
    with pytest.raises(ValueError, match="format 2"):
        read_checkpoint(tmp_path, "policy", {"width": 3}, other)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors not found"):
        read_checkpoint(tmp_path, "policy", {"width": 3}, other)


def test_half_rounds_parameters_but_no_statistics(tmp_path):
    layer = torch.nn.Linear(3, 2)
    layer.register_buffer("mean", torch.tensor([1 / 3, 70_000.0]))
    write_checkpoint(tmp_path, "policy", {}, layer, half=True)
    other = torch.nn.Linear(3, 2)
    other.register_buffer("mean", torch.zeros(2))
    read_checkpoint(tmp_path, "policy", {}, other)
    assert torch.equal(other.get_buffer("mean"), layer.get_buffer("mean"))
    assert torch.equal(other.weight, layer.weight.half().float())
    assert other.weight.dtype == torch.float32
