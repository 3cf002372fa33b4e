"""Prompt, normalisation and image transforms of pi0.5, against hand-worked values."""

import json
import logging

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from configs.policy import Pi05Config
from models.pi05 import tokenizer, transforms
from models.pi05.transforms import NormStats, Statistics


def statistics(low, high):
    low, high = np.array(low, np.float64), np.array(high, np.float64)
    return Statistics((low + high) / 2, (high - low) / 4, low, high)


def test_state_bins():
    state = np.array([-1.01, -1.0, -0.9921875, -1e-9, 0.0, 0.999, 1.0, 7.0])
    assert tokenizer.discretise(state) == [-1, 0, 1, 127, 128, 255, 255, 255]


def test_prompt_text():
    text = tokenizer.prompt_text("  Put_the\nCup down ", np.array([0.0, -1.0, 2.0]))
    assert text == "Task: Put the Cup down, State: 128 0 255;\nAction: "


def test_byte_stand_in_is_bytes():
    ids = tokenizer.ByteStandInTokenizer(259).encode("Aé")
    assert ids == [2, 3 + 65, 3 + 0xC3, 3 + 0xA9]


def test_prompt_is_padded_with_zeros():
    bytes_ = tokenizer.ByteStandInTokenizer(512)
    tokens, mask = tokenizer.tokenise(bytes_, "go", np.zeros(1), 60)
    length = 1 + len("Task: go, State: 128;\nAction: ")
    assert mask.tolist() == [True] * length + [False] * (60 - length)
    assert tokens[mask].tolist()[:3] == [2, 3 + ord("T"), 3 + ord("a")]
    assert not tokens[~mask].any()


def test_a_long_prompt_is_cut_at_its_end_and_logged(caplog):
    bytes_ = tokenizer.ByteStandInTokenizer(512)
    with caplog.at_level(logging.WARNING):
        tokens, mask = tokenizer.tokenise(bytes_, "go", np.zeros(1), 10)
    assert mask.all()
    assert bytes(int(token) - 3 for token in tokens[1:]).decode() == "Task: go,"
    assert "cut to 10" in caplog.text


def test_batch_keeps_the_columns_of_its_longest_prompt():
    bytes_ = tokenizer.ByteStandInTokenizer(512)
    tokens, mask = tokenizer.tokenise_batch(bytes_, ["go", "go on"], np.zeros((2, 1)), 200)
    short = 1 + len("Task: go, State: 128;\nAction: ")
    assert mask.sum(1).tolist() == [short, short + 3]
    assert tokens.shape == (2, short + 3)


@pytest.mark.parametrize("vocab_size", [258, 257152])
def test_bytes_are_refused_for_other_vocabularies(vocab_size):
    with pytest.raises(ValueError, match=r"byte stand-in needs 259\.\.4096"):
        tokenizer.build_tokenizer(Pi05Config(vocab_size=vocab_size))


def test_a_missing_tokenizer_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"policy.pi05.tokenizer=.*absent.model is no file"):
        tokenizer.build_tokenizer(Pi05Config(tokenizer=str(tmp_path / "absent.model")))


def test_quantiles_go_to_one_and_minus_one():
    stats = statistics([-2.0, 10.0], [2.0, 30.0])
    normal = stats.normalise(np.array([[-2.0, 30.0], [0.0, 25.0], [6.0, 0.0]]))
    assert_allclose(normal, [[-1, 1], [0, 0.5], [3, -2]], atol=1e-6)
    assert_allclose(stats.unnormalise(normal), [[-2, 30], [0, 25], [6, 0]], atol=1e-12)


def test_padding_passes_unnormalise_unchanged():
    stats = statistics([-2.0], [2.0])
    assert_allclose(stats.unnormalise(np.array([0.5, 9.0, -7.0])), [1.0, 9.0, -7.0], atol=1e-6)


def test_fitted_quantiles_of_a_ramp_and_of_a_constant():
    rows = np.stack([np.arange(101.0), np.full(101, 5.0)], axis=1).astype(np.float32)
    stats = transforms.fit_statistics(rows)
    assert_allclose(stats.mean, [50, 5])
    assert_allclose(stats.std, [np.sqrt((101**2 - 1) / 12), 0])
    assert_allclose(stats.q01, [1, 4.99])
    assert_allclose(stats.q99, [99, 5.01])


def test_norm_stats_file_round_trip(tmp_path):
    path = tmp_path / "assets/droid/norm_stats.json"
    stats = NormStats(statistics([0.1, -3.0], [0.7, 1 / 3]), statistics([-1.0], [1.0]))
    transforms.write_norm_stats(path, stats)
    again = transforms.read_norm_stats(path)
    for part, other in ((stats.state, again.state), (stats.actions, again.actions)):
        for flag in ("mean", "std", "q01", "q99"):
            assert_array_equal(getattr(part, flag), getattr(other, flag))


def test_a_coordinate_without_range_is_refused(tmp_path):
    path = tmp_path / "norm_stats.json"
    stats = NormStats(statistics([0.0, 1.0], [1.0, 1.00005]), statistics([-1.0], [1.0]))
    transforms.write_norm_stats(path, stats)
    with pytest.raises(ValueError, match=r"q99 - q01 of state\[1\] is below 0.0001"):
        transforms.read_norm_stats(path)


def test_statistics_without_quantiles_are_refused(tmp_path):
    path = tmp_path / "norm_stats.json"
    part = {"mean": [0.0], "std": [1.0], "q01": None}
    path.write_text(json.dumps({"norm_stats": {"state": part, "actions": part}}))
    with pytest.raises(ValueError, match="lacks q01, q99 of state"):
        transforms.read_norm_stats(path)


def test_missing_norm_stats_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no norm_stats\.json at"):
        transforms.read_norm_stats(tmp_path / "norm_stats.json")


def test_resize_pads_with_black_bars():
    image = np.full((18, 32, 3), 200, np.uint8)
    result = transforms.resize_with_pad(image, 56)
    # 32 -> 56 makes 18 -> 31 rows; (56 - 31) // 2 = 12 black rows above, 13 below.
    assert (result[12:43] == 200).all()
    assert not result[:12].any()
    assert not result[43:].any()


def test_a_square_image_of_the_right_size_is_kept():
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    assert_array_equal(transforms.resize_with_pad(image, 8), image)


def test_images_become_channels_first_in_minus_one_to_one():
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 1] = (255, 51, 102)
    result = transforms.images_to_float(image)
    assert_allclose(result[:, 0, 0], [-1, -1, -1])
    assert_allclose(result[:, 0, 1], [1, -0.6, -0.2], atol=1e-6)


def test_padding_appends_zeros():
    assert_array_equal(transforms.pad_last(np.ones((2, 1)), 3), [[1, 0, 0], [1, 0, 0]])


def stats_of(state: list[float], q99: list[float]) -> str:
    part = {"mean": state, "std": state, "q01": [-9.0] * len(state), "q99": q99}
    return json.dumps({"norm_stats": {"state": part, "actions": part}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "holds no norm stats: .*recompute them"),
        ("{}", "holds no norm stats: 'norm_stats'"),
        (stats_of([0.0] * 8, [1.0] * 7), r"state have shapes \[\(7,\), \(8,\)\]"),
        (stats_of([0.0] * 7, [1.0] * 7), "describes 7 numbers of state, a DROID rig has 8"),
        (stats_of([float("nan")] * 8, [1.0] * 8), "state holds NaN or infinity"),
    ],
)
def test_unusable_norm_stats_are_refused(tmp_path, content, message):
    path = tmp_path / "norm_stats.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        transforms.read_norm_stats(path, dim=8)


def test_statistics_of_more_coordinates_are_cut(tmp_path):
    """openpi cuts them: a rig of 8 numbers may use statistics padded to 32."""
    path = tmp_path / "norm_stats.json"
    path.write_text(stats_of([0.0] * 32, [1.0] * 32))
    stats = transforms.read_norm_stats(path, dim=8)
    assert_allclose(stats.state.normalise(np.full(8, -4.0)), np.zeros(8), atol=1e-6)


def test_velocities_of_half_a_unit_move_a_tenth_of_a_radian_per_tick():
    actions = np.full((3, 8), 0.5)
    joints = np.arange(7.0)
    positions = transforms.positions_from_velocity(actions, joints)
    assert_allclose(positions[:, 2], [2.1, 2.2, 2.3])
    assert_allclose(positions[:, 7], 0.5)
    assert_allclose(transforms.velocity_from_positions(positions, joints), actions)
