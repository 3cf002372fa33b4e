"""What openpi's DROID clients send, checked and turned into an Observation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from configs.run import RunConfig
from contracts.constants import NUM_JOINTS, VIEWS
from contracts.kinematics import flange_pose
from contracts.types import Observation, RobotState
from contracts.wire import EXTERIOR_1, EXTERIOR_2, GRIPPER, JOINTS, PROMPT, SEED, WRIST, unpack
from models.pi05.transforms import resize_with_pad

WRIST_VIEW = VIEWS.index("wrist")
MAX_PROMPT = 2000  # characters; longer ones are a mistake, and tokenising them blocks others
MAX_PIXELS = 4096 * 4096  # of a view


@dataclass(frozen=True, slots=True)
class RequestFormat:
    """Which views a policy looks at, and how they are brought to the size that it was trained on.

    ``padded``: fitted into a black rectangle (pi0.5, openpi). Otherwise the largest centred part of
    the right shape is cut out and resized, which undoes the padding of a client that padded.
    """

    views: tuple[int, ...]
    height: int
    width: int
    padded: bool

    @property
    def keys(self) -> dict[str, int]:
        """Key of a request -> view. A single exterior view is called the first, as in openpi."""
        exterior = [view for view in self.views if view != WRIST_VIEW]
        keys = dict(zip((EXTERIOR_1, EXTERIOR_2), exterior, strict=False))
        return keys | ({WRIST: WRIST_VIEW} if WRIST_VIEW in self.views else {})


def request_format(config: RunConfig) -> RequestFormat:
    """The format of the policy that a config names."""
    if config.policy.kind == "pi05":
        pi05 = config.policy.pi05
        return RequestFormat((pi05.exterior_view, WRIST_VIEW), *2 * (pi05.image_size,), padded=True)
    views = tuple(sorted(set(config.policy.embedded.views)))
    return RequestFormat(views, config.robot.height, config.robot.width, padded=False)


def read_request(frame: str | bytes, wanted: RequestFormat) -> tuple[Observation, int | None]:
    """The observation of a request, and the seed if it brings one.

    As openpi does, it takes float images in [0, 1] and channels-first images too. Views that the
    policy does not look at are black, whatever was sent.

    Raises:
        ValueError: the frame is text or no message, a key is missing, a value has the wrong type or
            shape, or is not finite.
    """
    if isinstance(frame, str):
        raise ValueError("a request is one binary msgpack frame, this is text")
    message = unpack(frame)
    if not isinstance(message, dict):
        raise ValueError(f"a request is a map of keys, this is {type(message).__name__}")
    joints = _vector(message, JOINTS, NUM_JOINTS)
    gripper = _vector(message, GRIPPER, 1)
    state = RobotState(
        joint_position=joints,
        joint_velocity=np.zeros(NUM_JOINTS, np.float32),  # not part of the protocol
        cartesian_position=np.asarray(flange_pose(joints), np.float32),
        gripper_position=float(gripper[0]),
        time_s=0.0,
    )
    images = np.zeros((len(VIEWS), wanted.height, wanted.width, 3), np.uint8)
    for key, view in wanted.keys.items():
        images[view] = _fit(_image(message, key), wanted)
    return Observation(images, state, _prompt(message)), _seed(message)


def _value(message: Mapping[Any, Any], key: str) -> Any:
    if key not in message:
        found = ", ".join(sorted(str(name)[:60] for name in message)[:12])
        raise ValueError(f"the request lacks {key!r}; it has {found or 'nothing'}")
    return message[key]


def _vector(message: Mapping[Any, Any], key: str, size: int) -> Float32[np.ndarray, " size"]:
    array = np.asarray(_value(message, key))
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{key!r} must be numbers, it is {array.dtype}")
    if array.shape != (size,) and not (size == 1 and array.shape == ()):
        raise ValueError(f"{key!r} must have shape ({size},), it has {array.shape}")
    with np.errstate(over="ignore"):  # becomes infinite, and is refused
        numbers = array.reshape(size).astype(np.float32)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{key!r} is not finite: {array.tolist()}")
    return numbers


def _image(message: Mapping[Any, Any], key: str) -> UInt8[np.ndarray, "height width 3"]:
    array = _value(message, key)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "uf":
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{key!r} must be an image of uint8 or of floats in [0, 1], it is {kind}")
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != 3 or not 0 < array.size <= MAX_PIXELS * 3:
        raise ValueError(f"{key!r} must have shape (height, width, 3), it has {array.shape}")
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError(f"{key!r} holds floats outside [0, 1] or NaN")
        return (255 * array).astype(np.uint8)  # truncated, as in openpi
    if array.dtype != np.uint8:
        raise ValueError(f"{key!r} must be uint8 or floats, it is {array.dtype}")
    return array


def _fit(
    image: UInt8[np.ndarray, "height width 3"], wanted: RequestFormat
) -> UInt8[np.ndarray, "fitted_height fitted_width 3"]:
    if image.shape[:2] == (wanted.height, wanted.width):
        return image
    if wanted.padded:
        return resize_with_pad(image, wanted.height)
    height, width = image.shape[:2]
    ratio = max(wanted.height / height, wanted.width / width)
    part = max(1, int(wanted.height / ratio)), max(1, int(wanted.width / ratio))
    top, left = (height - part[0]) // 2, (width - part[1]) // 2
    cut = np.ascontiguousarray(image[top : top + part[0], left : left + part[1]])
    size = (wanted.width, wanted.height)
    return np.asarray(Image.fromarray(cut).resize(size, Image.Resampling.BILINEAR))


def _prompt(message: Mapping[Any, Any]) -> str:
    value = _value(message, PROMPT)
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value.item()
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{PROMPT!r} must be a text that is not empty, it is {str(value)[:60]!r}")
    if len(value) > MAX_PROMPT:
        raise ValueError(f"{PROMPT!r} has {len(value)} characters, more than {MAX_PROMPT}")
    return value


def _seed(message: Mapping[Any, Any]) -> int | None:
    seed = message.get(SEED)
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
        raise ValueError(f"{SEED!r} must be an integer in 0..2**63, it is {str(seed)[:60]}")
    return seed
