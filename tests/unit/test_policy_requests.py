"""Requests of openpi's DROID clients become observations, or one error that says what is wrong."""

import numpy as np
import pytest

from contracts.wire import (
    EXTERIOR_1,
    EXTERIOR_2,
    GRIPPER,
    JOINTS,
    PROMPT,
    SEED,
    WRIST,
    pack,
)
from models.pi05.transforms import resize_with_pad
from services.policy_requests import RequestFormat, read_request

PI05 = RequestFormat((0, 2), 8, 8, padded=True)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def request(**changes: object) -> dict[str, object]:
    """What openpi's client sends; a value of ... leaves its key out."""
    message = {
        EXTERIOR_1: picture(8, 8, 1),
        WRIST: picture(8, 8, 2),
        JOINTS: np.arange(7) / 10,
        GRIPPER: np.array([0.25]),
        PROMPT: "open the book",
    }
    names = {"exterior": EXTERIOR_1, "wrist": WRIST, "joints": JOINTS, "gripper": GRIPPER}
    message |= {names.get(name, name): value for name, value in changes.items()}
    return {key: value for key, value in message.items() if value is not ...}


def read(message: object, wanted: RequestFormat = PI05):
    return read_request(pack(message), wanted)


def test_every_value_arrives_where_it_belongs():
    seen, seed = read(request(seed=5))
    np.testing.assert_array_equal(seen.images[0], picture(8, 8, 1))
    np.testing.assert_array_equal(seen.images[2], picture(8, 8, 2))
    assert not seen.images[1].any()
    joints = np.float32([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    np.testing.assert_array_equal(seen.state.joint_position, joints)
    assert (seen.state.gripper_position, seen.instruction, seed) == (0.25, "open the book", 5)


def test_the_flange_pose_follows_from_the_joints():
    """Joints of 0: the Panda's flange is 88 mm before and 926 mm above its base (its data sheet:
    333 + 316 + 384 - 107 mm)."""
    seen, _ = read(request(joints=np.zeros(7)))
    np.testing.assert_allclose(seen.state.cartesian_position[:3], [0.088, 0, 0.926], atol=1e-6)


@pytest.mark.parametrize(
    ("views", "keys"),
    [
        ((0, 2), {EXTERIOR_1: 0, WRIST: 2}),
        ((1, 2), {EXTERIOR_1: 1, WRIST: 2}),  # openpi's client calls the only camera the first
        ((0, 1, 2), {EXTERIOR_1: 0, EXTERIOR_2: 1, WRIST: 2}),
        ((2,), {WRIST: 2}),
        ((1,), {EXTERIOR_1: 1}),
    ],
)
def test_keys_of_the_views_that_a_policy_looks_at(views, keys):
    assert RequestFormat(views, 8, 8, padded=True).keys == keys


def test_the_other_exterior_camera_is_shown_in_its_own_place():
    seen, _ = read(request(), RequestFormat((1, 2), 8, 8, padded=True))
    np.testing.assert_array_equal(seen.images[1], picture(8, 8, 1))
    assert not seen.images[0].any()


def test_floats_and_channels_first_as_openpi_takes_them():
    """0.999 * 255 = 254.7 is truncated to 254."""
    grey = np.full((8, 8, 3), 0.999, np.float32)
    seen, _ = read(request(exterior=grey, wrist=picture(8, 8, 2).transpose(2, 0, 1)))
    assert set(seen.images[0].ravel()) == {254}
    np.testing.assert_array_equal(seen.images[2], picture(8, 8, 2))


def test_lists_and_bare_numbers_are_numbers_too():
    seen, _ = read(request(joints=[1, 2, 3, 4, 5, 6, 7], gripper=1))
    np.testing.assert_array_equal(seen.state.joint_position, np.arange(1, 8))
    assert seen.state.gripper_position == 1


def test_a_raw_camera_frame_is_fitted_as_by_openpi():
    seen, _ = read(request(exterior=picture(18, 32)))
    np.testing.assert_array_equal(seen.images[0], resize_with_pad(picture(18, 32), 8))


def test_the_padding_of_a_client_is_cut_off_for_a_policy_that_never_saw_any():
    """An even picture, padded to 224 x 224 by the client, comes back without black rows."""
    even = np.full((48, 80, 3), 200, np.uint8)
    padded = resize_with_pad(even, 224)
    assert (padded == 0).any()
    wanted = RequestFormat((2,), 48, 80, padded=False)
    seen, _ = read(request(wrist=padded), wanted)
    np.testing.assert_array_equal(seen.images[2], even)
    exact, _ = read(request(wrist=picture(48, 80)), wanted)
    np.testing.assert_array_equal(exact.images[2], picture(48, 80))


NAN = np.array([0, 0, 0, np.nan, 0, 0, 0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": ...}, "lacks 'prompt'; it has observation/exterior_image_1_left"),
        ({"prompt": "  "}, "must be a text that is not empty"),
        ({"prompt": b"bytes"}, "must be a text"),
        ({"prompt": 4}, "must be a text"),
        ({"prompt": "x" * 2001}, "has 2001 characters"),
        ({"joints": ...}, "lacks 'observation/joint_position'"),
        ({"joints": np.zeros(6)}, r"must have shape \(7,\), it has \(6,\)"),
        ({"joints": np.zeros((1, 7))}, r"it has \(1, 7\)"),
        ({"joints": NAN}, "is not finite"),
        ({"joints": np.full(7, 1e300)}, "is not finite"),
        ({"joints": "zero"}, "must be numbers"),
        ({"joints": {"a": 1}}, "must be numbers"),
        ({"joints": [[1], [2, 3]]}, "inhomogeneous"),
        ({"joints": np.ones(7, bool)}, "must be numbers, it is bool"),
        ({"gripper": np.zeros(2)}, r"must have shape \(1,\), it has \(2,\)"),
        ({"gripper": np.array([np.inf])}, "is not finite"),
        ({"gripper": None}, "must be numbers"),
        ({"exterior": ...}, "lacks 'observation/exterior_image_1_left'"),
        ({"wrist": np.zeros((8, 8), np.uint8)}, r"\(height, width, 3\), it has \(8, 8\)"),
        ({"wrist": np.zeros((8, 8, 4), np.uint8)}, r"it has \(8, 8, 4\)"),
        ({"wrist": np.zeros((0, 8, 3), np.uint8)}, r"it has \(0, 8, 3\)"),
        ({"wrist": np.zeros((8, 8, 3), np.int32)}, "it is int32"),
        ({"wrist": np.zeros((8, 8, 3), np.uint16)}, "it is uint16"),
        ({"wrist": np.full((8, 8, 3), np.nan)}, "floats outside"),
        ({"wrist": np.full((8, 8, 3), 2.0)}, "floats outside"),
        ({"wrist": [[1, 2, 3]]}, "it is list"),
        ({"seed": -1}, "'seed' must be an integer"),
        ({"seed": True}, "'seed' must be an integer"),
        ({"seed": 1.5}, "'seed' must be an integer"),
    ],
)
def test_refusals_name_the_key_and_what_it_should_be(changes, said):
    with pytest.raises(ValueError, match=said):
        read(request(**changes))


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        ("text", "this is text"),
        (b"\x93\x01\x02\x03", "this is list"),
        (b"\xc0", "this is NoneType"),
    ],
)
def test_a_frame_that_is_no_map_is_refused(frame, said):
    with pytest.raises(ValueError, match=said):
        read_request(frame, PI05)


def test_both_exterior_cameras_are_needed_where_the_policy_looks_at_both():
    both = RequestFormat((0, 1, 2), 8, 8, padded=True)
    with pytest.raises(ValueError, match="lacks 'observation/exterior_image_2_left'"):
        read(request(), both)
    seen, _ = read(request() | {EXTERIOR_2: picture(8, 8, 3), SEED: 0}, both)
    np.testing.assert_array_equal(seen.images[1], picture(8, 8, 3))
