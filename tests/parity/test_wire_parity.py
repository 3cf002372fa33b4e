"""Frames written by openpi's own codec (PARITY_DIR/openpi_droid_transforms/*.msgpack)."""

import os
from pathlib import Path

import msgpack
import numpy as np
import pytest

from contracts.wire import GRIPPER, JOINTS, PROMPT, WRIST, pack, unpack

pytestmark = pytest.mark.parity

FRAMES = Path(os.environ["PARITY_DIR"]) / "openpi_droid_transforms"


@pytest.mark.parametrize("name", ["metadata_empty", "request", "response"])
def test_our_bytes_are_openpis(name):
    frame = (FRAMES / f"{name}.msgpack").read_bytes()
    assert pack(unpack(frame)) == frame


def test_the_request_means_what_plain_msgpack_says():
    frame = (FRAMES / "request.msgpack").read_bytes()
    plain, ours = msgpack.unpackb(frame), unpack(frame)
    assert ours.keys() == plain.keys() >= {JOINTS, GRIPPER, WRIST, PROMPT}
    for key in (JOINTS, GRIPPER, WRIST):
        header = plain[key]
        assert ours[key].dtype.str == header[b"dtype"]
        assert list(ours[key].shape) == header[b"shape"]
        expected = np.frombuffer(header[b"data"], header[b"dtype"])
        np.testing.assert_array_equal(ours[key].ravel(), expected)
    assert ours[PROMPT] == plain[PROMPT]


def test_the_response_has_actions_and_timings():
    reply = unpack((FRAMES / "response.msgpack").read_bytes())
    assert reply["actions"].ndim == 2
    assert {"policy_timing", "server_timing"} <= reply.keys()
    assert {"infer_ms", "prev_total_ms"} <= reply["server_timing"].keys()
