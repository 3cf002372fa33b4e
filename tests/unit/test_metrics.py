"""PSNR and SSIM against closed forms and an independent computation."""

import math

import numpy as np
import pytest

from models.metrics.image import psnr, ssim


def test_psnr_of_a_constant_offset():
    image = np.full((2, 16, 16, 3), 100, np.uint8)
    offsets = np.array([10, 51])
    other = (image + offsets[:, None, None, None]).astype(np.uint8)
    np.testing.assert_allclose(psnr(image, other), 20 * np.log10(255 / offsets), rtol=1e-12)


def test_psnr_counts_every_pixel_of_an_image_once():
    image = np.zeros((1, 4, 5, 3), np.uint8)
    other = image.copy()
    other[0, 0, 0, 0] = 255
    assert psnr(image, other)[0] == pytest.approx(10 * math.log10(60))


def test_identical_images_are_capped():
    image = np.random.default_rng(0).integers(0, 256, (3, 2, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(psnr(image, image), np.full((3, 2), 100.0))
    np.testing.assert_allclose(ssim(image, image), np.ones((3, 2)), atol=1e-12)


def test_ssim_of_flat_images_is_the_luminance_term():
    a, b = np.full((12, 20, 3), 51, np.uint8), np.full((12, 20, 3), 102, np.uint8)
    c = 0.01**2
    expected = (2 * 0.2 * 0.4 + c) / (0.2**2 + 0.4**2 + c)
    assert float(ssim(a, b)) == pytest.approx(expected, abs=1e-9)


def test_ssim_equals_the_mean_over_windows_one_by_one():
    """The definition, window by window; scipy's gaussian_filter gives 0.49474999952904675."""
    rng = np.random.default_rng(1)
    ramp = np.linspace(0, 255, 20)[:, None, None] * np.ones((1, 15, 3))
    first = np.clip(ramp + rng.normal(0, 9, ramp.shape), 0, 255).astype(np.uint8)
    second = np.clip(0.8 * ramp + rng.normal(0, 25, ramp.shape), 0, 255).astype(np.uint8)
    taps = [math.exp(-(k**2) / 4.5) for k in range(-5, 6)]
    weight = np.outer(taps, taps) / sum(taps) ** 2
    values = []
    for row, column, channel in np.ndindex(10, 5, 3):
        x = first[row : row + 11, column : column + 11, channel] / 255
        y = second[row : row + 11, column : column + 11, channel] / 255
        mx, my = (weight * x).sum(), (weight * y).sum()
        vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
        cov = (weight * (x - mx) * (y - my)).sum()
        top = (2 * mx * my + 1e-4) * (2 * cov + 9e-4)
        values.append(top / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    assert float(ssim(first, second)) == pytest.approx(np.mean(values), abs=1e-12)


def test_ssim_needs_room_for_its_window():
    small = np.zeros((10, 20, 3), np.uint8)
    with pytest.raises(ValueError, match="got 10 x 20"):
        ssim(small, small)
