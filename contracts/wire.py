"""openpi's messages: msgpack maps in which numpy arrays travel as maps with bytes keys.

An array is ``{b"__ndarray__": True, b"data", b"dtype", b"shape"}``, a numpy scalar
``{b"__npgeneric__": True, b"data", b"dtype"}``; ``dtype`` is numpy's ``dtype.str``. These are not
the keys of PyPI's msgpack-numpy. Nothing is ever unpickled. Source: openpi_client/msgpack_numpy.py,
checked against frames that it wrote (tests/parity/test_wire_parity.py).
"""

import math
import re
from typing import Any, cast

import msgpack
import numpy as np

# Keys of a DROID request; openpi's client sends one exterior view and calls it the first,
# whichever camera it is. The second, and a seed, are ours and sent to servers that announce them.
EXTERIOR_1 = "observation/exterior_image_1_left"
EXTERIOR_2 = "observation/exterior_image_2_left"
WRIST = "observation/wrist_image_left"
JOINTS = "observation/joint_position"
GRIPPER = "observation/gripper_position"
PROMPT = "prompt"
SEED = "seed"

MAX_FRAME_BYTES = 64 * 2**20  # three 4K views are 75 MB: nobody sends more than this by intent
_MAX_ITEMS = 100_000  # of one list or map; arrays travel as bytes, so messages have a few dozen
_NUMERIC = re.compile(r"[<>|][biuf][1-9]\d?")
_TEXT = re.compile(r"[<>|][US][1-9]\d{0,4}")


def pack(message: Any) -> bytes:
    """Write one message.

    Raises:
        ValueError: it holds an array of objects, complex numbers or records.
        TypeError: it holds something else that msgpack does not know.
    """
    return cast(bytes, msgpack.packb(message, default=_to_wire))


def unpack(frame: bytes) -> Any:
    """Read one message. Arrays share memory with ``frame`` and are read-only, as in openpi.

    Raises:
        ValueError: it is truncated or no msgpack, or an array's header contradicts its data or
            names a type that is neither numbers nor text.
    """
    try:
        return msgpack.unpackb(
            frame, object_hook=_from_wire, max_array_len=_MAX_ITEMS, max_map_len=_MAX_ITEMS
        )
    except (msgpack.UnpackException, ValueError, TypeError, OverflowError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"a frame of {len(frame)} bytes is no openpi message: {reason}") from error


def _to_wire(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"cannot send a value of type {type(value).__name__}")
    if value.dtype.kind in "VOc":
        raise ValueError(f"cannot send an array of dtype {value.dtype}")
    if isinstance(value, np.ndarray):
        data, dtype, shape = value.tobytes(), value.dtype.str, value.shape
        return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def _from_wire(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return _array(value)
    if b"__npgeneric__" in value:
        return _scalar(value)
    return value


def _array(header: dict[Any, Any]) -> np.ndarray:
    dtype, data, shape = _dtype(header), header.get(b"data"), header.get(b"shape")
    if not isinstance(data, bytes):
        raise ValueError(f"an array's data is {type(data).__name__}, not bytes")
    whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if not isinstance(shape, list) or not whole or len(shape) > 8:
        raise ValueError(f"an array's shape is {str(shape)[:60]}")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"an array of {dtype} and shape {shape} has {len(data)} bytes of data")
    return np.ndarray(shape, dtype, buffer=data)


def _scalar(header: dict[Any, Any]) -> Any:
    dtype, data = _dtype(header), header.get(b"data")
    if not isinstance(data, bool | int | float | str | bytes):
        raise ValueError(f"a scalar's data is {type(data).__name__}")
    with np.errstate(over="ignore"):  # becomes infinite; whoever needs it finite checks that
        return dtype.type(data)


def _dtype(header: dict[Any, Any]) -> np.dtype[Any]:
    """The stated type, if it is one that needs no interpreter to be read."""
    name = header.get(b"dtype")
    if not isinstance(name, str) or not (_NUMERIC.fullmatch(name) or _TEXT.fullmatch(name)):
        raise ValueError(f"an array's dtype is {str(name)[:60]!r}: only numbers and text are read")
    return np.dtype(name)
