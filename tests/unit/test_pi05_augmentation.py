"""pi0.5's training augmentation, against images whose transform is known."""

import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from models.pi05.augmentation import (
    Colour,
    Geometry,
    augment,
    crop_and_rotate,
    draw_colour,
    draw_geometry,
    jitter,
)

SIZE = 40  # crop 38: the margin is 2 pixels


def geometry(top, left, angle):
    return Geometry(torch.tensor([top]), torch.tensor([left]), torch.tensor([angle]))


def ramp():
    """Red is the column, green the row, blue one."""
    axis = torch.arange(SIZE, dtype=torch.float32)
    columns, rows = axis.expand(SIZE, SIZE), axis[:, None].expand(SIZE, SIZE)
    return torch.stack((columns, rows, torch.ones(SIZE, SIZE)))[None]


def colour(brightness=1.0, contrast=1.0, saturation=1.0):
    return Colour(*(torch.tensor([x]) for x in (brightness, contrast, saturation)))


@pytest.mark.parametrize(
    ("top", "left", "centre"), [(0.0, 0.99, (20.5, 18.5)), (0.5, 0.5, (19.5, 19.5))]
)
def test_crop_moves_the_centre(top, left, centre):
    image = crop_and_rotate(ramp(), geometry(top, left, 0.0))[0]
    middle = image[:2, 19:21, 19:21].mean((1, 2))
    assert_allclose(middle, centre, atol=1e-4)


def test_crop_and_openpis_grid_magnify():
    image = crop_and_rotate(ramp(), geometry(0.5, 0.5, 0.0))[0]
    # One pixel to the right is 38/40 source pixels, times 40/39 of openpi's rotation grid.
    assert (image[0, 20, 30] - image[0, 20, 20]).item() == pytest.approx(10 * 0.95 * 40 / 39, 1e-4)


def test_rotation_turns_about_the_centre():
    angle = 5.0
    image = crop_and_rotate(ramp(), geometry(0.5, 0.5, angle))[0]
    step = (image[:2, 20, 30] - image[:2, 20, 20]) / (10 * 0.95 * 40 / 39)
    turn = torch.deg2rad(torch.tensor(angle))
    assert_allclose(step, [turn.cos(), turn.sin()], atol=1e-4)
    assert_allclose(image[:2, 19:21, 19:21].mean((1, 2)), [19.5, 19.5], atol=1e-4)


def test_colour_order_and_factors():
    image = torch.tensor([0.2, 0.4, 0.6]).reshape(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert_allclose(jitter(image, colour())[0, :, 0, 0], [0.2, 0.4, 0.6], atol=1e-6)
    assert_allclose(
        jitter(image, colour(brightness=1.2))[0, :, 0, 0], [0.24, 0.48, 0.72], atol=1e-6
    )
    # The mean is 0.4: contrast 0.5 halves the distance to it, saturation 1.5 stretches it.
    assert_allclose(jitter(image, colour(contrast=0.5))[0, :, 0, 0], [0.3, 0.4, 0.5], atol=1e-6)
    assert_allclose(jitter(image, colour(saturation=1.5))[0, :, 0, 0], [0.1, 0.4, 0.7], atol=1e-6)
    assert_allclose(jitter(image, colour(saturation=4.0))[0, :, 0, 0], [0.0, 0.4, 1.0], atol=1e-6)


def test_draws_fill_openpis_ranges():
    generator = torch.Generator().manual_seed(0)
    where, factors = draw_geometry(4000, generator), draw_colour(4000, generator)
    for draw, low, high in (
        (where.top, 0, 1),
        (where.left, 0, 1),
        (where.angle, -5, 5),
        (factors.brightness, 0.7, 1.3),
        (factors.contrast, 0.6, 1.4),
        (factors.saturation, 0.5, 1.5),
    ):
        span = high - low
        assert low <= draw.min() < low + 0.01 * span
        assert high - 0.01 * span < draw.max() <= high
        assert draw.mean().item() == pytest.approx((low + high) / 2, abs=0.02 * span)


def test_each_sample_has_its_own_draw_and_equal_seeds_agree():
    images = (ramp() / SIZE * 2 - 1).expand(2, 2, 3, SIZE, SIZE)
    first, again = (augment(images, torch.Generator().manual_seed(7)) for _ in range(2))
    assert_array_equal(first, again)
    assert (first[0] - first[1]).abs().amax((1, 2, 3)).min() > 0.05
    assert first.min() >= -1
    assert first.max() <= 1


def test_the_wrist_view_is_not_moved():
    """A jittered pixel depends on colour alone, so equal pixels stay equal in the wrist view."""
    images = torch.zeros(1, 2, 3, SIZE, SIZE)
    images[..., : SIZE // 2] = 0.5
    result = augment(images, torch.Generator().manual_seed(1))
    wrist = result[0, 1]
    assert_allclose(wrist, wrist[:, :1].expand_as(wrist), atol=0)
    assert len(wrist[0, 0].unique()) == 2
    assert len(result[0, 0, 0].unique()) > 2
