"""openpi's msgpack: what goes in comes out, and nothing but numbers and text is read."""

import pickle

import msgpack
import numpy as np
import pytest

from contracts.wire import pack, unpack


def header(**changes: object) -> dict[bytes, object]:
    """An array of two float32 ones on the wire, with some of its fields replaced or left out."""
    fields = {"__ndarray__": True, "data": b"\0\0\x80?" * 2, "dtype": "<f4", "shape": [2]} | changes
    return {name.encode(): value for name, value in fields.items() if value is not ...}


def test_an_array_by_hand():
    """The bytes of a map of four, as the msgpack specification spells them."""
    by_hand = (
        b"\x84"
        b"\xc4\x0b__ndarray__\xc3"
        b"\xc4\x04data\xc4\x02\x07\x08"
        b"\xc4\x05dtype\xa3|u1"
        b"\xc4\x05shape\x91\x02"
    )
    assert pack(np.array([7, 8], np.uint8)) == by_hand
    assert unpack(by_hand).tolist() == [7, 8]


@pytest.mark.parametrize(
    "value",
    [
        np.arange(12.0).reshape(3, 4), np.arange(6, dtype=">i2").reshape(1, 6), np.array(True),
        np.zeros((0, 8), np.float32), np.array(["pick", "up"]), np.array([b"ab"]),
        np.float32(1.5), np.uint8(7), np.bool_(True),
    ],
)  # fmt: skip
def test_round_trip_keeps_type_shape_and_values(value):
    back = unpack(pack({"x": value}))["x"]
    assert back.dtype == value.dtype
    assert back.shape == value.shape
    np.testing.assert_array_equal(back, value)


def test_slices_and_fortran_order_travel_as_what_they_show():
    whole = np.arange(24).reshape(4, 6)
    np.testing.assert_array_equal(unpack(pack(whole[::2, 1::3])), [[1, 4], [13, 16]])
    np.testing.assert_array_equal(unpack(pack(np.asfortranarray(whole))), whole)


def test_arrays_are_read_only_as_in_openpi():
    with pytest.raises(ValueError, match="read-only"):
        unpack(pack(np.zeros(3)))[0] = 1


@pytest.mark.parametrize(
    "value", [np.array([None]), np.array([1j]), np.zeros(2, [("a", "i4")]), np.complex64(1)]
)
def test_objects_complex_numbers_and_records_are_not_sent(value):
    with pytest.raises(ValueError, match="cannot send"):
        pack({"x": value})


def test_other_python_values_are_not_sent():
    with pytest.raises(TypeError, match="cannot send a value of type object"):
        pack({"x": object()})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dtype": "|O"}, "only numbers and text"),
        ({"dtype": "|V8"}, "only numbers and text"),
        ({"dtype": "<c16"}, "only numbers and text"),
        ({"dtype": "i4,f8"}, "only numbers and text"),
        ({"dtype": "<f3"}, "f3"),
        ({"dtype": 4}, "only numbers and text"),
        ({"dtype": ...}, "only numbers and text"),
        ({"data": "text"}, "data is str"),
        ({"data": b"123"}, "has 3 bytes"),
        ({"data": ...}, "data is NoneType"),
        ({"shape": [3]}, "has 8 bytes"),
        ({"shape": [-1, -2]}, "shape is"),
        ({"shape": [2.0]}, "shape is"),
        ({"shape": [2**62, 2**62]}, "has 8 bytes"),
        ({"shape": [1] * 99 + [2]}, "shape is"),
        ({"shape": 2}, "shape is"),
    ],
)
def test_a_header_that_contradicts_its_data_is_refused(fields, said):
    with pytest.raises(ValueError, match=f"no openpi message.*{said}"):
        unpack(msgpack.packb({"x": header(**fields)}))


@pytest.mark.parametrize("data", ["x", [1], None, 1e999])
def test_a_scalar_that_is_none_is_refused(data):
    frame = msgpack.packb({b"__npgeneric__": True, b"data": data, b"dtype": "|u1"})
    with pytest.raises(ValueError, match="no openpi message"):
        unpack(frame)


@pytest.mark.parametrize(
    "frame",
    [
        b"", b"\xc1", b"hello", pickle.dumps({"a": 1}), pack({"x": np.zeros(9)})[:-1],
        pack({}) + b"\0", b"\x91" * 5000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff",
        b"\x81\x90\x01", b"\xa2\xff\xff",
    ],
    ids=["empty", "reserved", "text", "pickle", "truncated", "trailing", "deep", "long list",
         "long map", "list as key", "not utf-8"],
)  # fmt: skip
def test_what_is_no_message_is_refused(frame):
    with pytest.raises(ValueError, match="no openpi message"):
        unpack(frame)
