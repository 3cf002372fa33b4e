"""pi0.5's prompt, normalisation and resize against openpi's own (PARITY_DIR/openpi_droid_*)."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from models.pi05 import augmentation, tokenizer, transforms

pytestmark = pytest.mark.parity

PARITY = Path(os.environ.get("PARITY_DIR", Path(__file__).parents[2] / "../shared/parity"))
TRANSFORMS = PARITY / "openpi_droid_transforms"
SLOTS = ("base_0_rgb", "left_wrist_0_rgb")


@pytest.fixture(scope="module")
def droid():
    return json.loads((TRANSFORMS / "README.json").read_text())


@pytest.fixture(scope="module")
def arrays():
    return load_file(TRANSFORMS / "cases.safetensors")


def test_prompt_tokens(droid):
    real = tokenizer.SentencePieceTokenizer(TRANSFORMS / "tiny_tokenizer.model")
    assert len(droid["tokenize_with_state"]) == 40
    for case in droid["tokenize_with_state"]:
        state = np.array(case["state"], case["state_dtype"])
        assert tokenizer.discretise(state) == case["discretised"]
        tokens, mask = tokenizer.tokenise(real, case["prompt"], state, case["max_len"])
        assert tokens.tolist() == case["tokens"]
        assert mask.tolist() == case["mask"]


def test_norm_stats_file_is_rewritten_byte_for_byte(tmp_path):
    stats = transforms.read_norm_stats(TRANSFORMS / "norm_stats.json")
    transforms.write_norm_stats(tmp_path / "n.json", stats)
    assert (tmp_path / "n.json").read_bytes() == (TRANSFORMS / "norm_stats.json").read_bytes()


def test_quantile_normalisation(arrays):
    stats = transforms.read_norm_stats(TRANSFORMS / "norm_stats.json")
    for kind in ("state", "actions"):
        part = stats.state if kind == "state" else stats.actions
        normal = part.normalise(arrays[f"norm.in.{kind}"])
        assert_allclose(normal, arrays[f"norm.out.quantile.{kind}"], atol=1e-12)
        raw = part.unnormalise(arrays[f"unnorm.in.quantile.{kind}"])
        assert_allclose(raw, arrays[f"unnorm.out.quantile.{kind}"], atol=1e-12)


def test_fitted_statistics_agree_with_openpis_histogram(arrays):
    stats = transforms.read_norm_stats(TRANSFORMS / "norm_stats.json")
    for kind, expected in (("state", stats.state), ("actions", stats.actions)):
        rows = np.concatenate([arrays[f"stats.batch{n}.{kind}"].reshape(-1, 8) for n in range(6)])
        fitted = transforms.fit_statistics(rows)
        assert_allclose(fitted.mean, expected.mean, rtol=1e-9)
        assert_allclose(fitted.std, expected.std, rtol=1e-9)
        # Quantiles of a histogram: off by bins, and at 384 states by the gap between samples.
        tolerance = 0.05 * np.ptp(rows, axis=0)
        assert (np.abs(fitted.q01 - expected.q01) < tolerance).all()
        assert (np.abs(fitted.q99 - expected.q99) < tolerance).all()


@pytest.mark.parametrize("size", ["180x320", "90x60"])
def test_resize_with_pad(arrays, size):
    resized = transforms.resize_with_pad(arrays[f"resize.in.{size}"], 224)
    assert_array_equal(resized, arrays[f"resize.pil.{size}"])


def test_augmentation_with_openpis_draws():
    cases = load_torch(PARITY / "openpi_pi05_tiny/cases.safetensors")
    torch.manual_seed(99)
    unit = {
        slot: torch.from_numpy(transforms.images_to_float(cases[f"in.image.{slot}"].numpy())) / 2
        + 0.5
        for slot in SLOTS
    }
    margin = 224 - int(224 * 0.95)
    top, left = (torch.randint(0, margin + 1, (1,)) for _ in range(2))
    angle = torch.rand(1) * 10 - 5
    # A third of a pixel inside the drawn bin, so that the fraction rounds back to the draw.
    geometry = augmentation.Geometry(
        (top + 1 / 3) / (margin + 1), (left + 1 / 3) / (margin + 1), angle
    )
    images = augmentation.crop_and_rotate(unit[SLOTS[0]][:1], geometry)
    for slot, image in ((SLOTS[0], images), (SLOTS[1], unit[SLOTS[1]][:1])):
        draws = [torch.rand(1) for _ in range(3)]
        factors = [
            low + draw * span
            for low, draw, span in zip((0.7, 0.6, 0.5), draws, (0.6, 0.8, 1.0), strict=True)
        ]
        result = augmentation.jitter(image, augmentation.Colour(*factors))
        expected = cases[f"aug.image.{slot}"].float() / 255
        assert_allclose(result.numpy(), expected.numpy(), atol=0.6 / 255)
