"""``policy=remote``: any openpi server as the policy of rollouts and imagination."""

import asyncio
import json
import threading
from collections.abc import Collection, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float32

from configs.policy import PolicyConfig
from configs.remote import RemoteConfig
from contracts.constants import ACTION_DIM, NUM_JOINTS, VIEWS
from contracts.errors import PolicyUnavailableError
from contracts.types import ActionChunk, Observation, RobotState
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
from models.remote.connection import Pool, Server

FACTS_FILE = "remote.json"  # instead of weights: which server, and what it said about itself
ACTION_SPACE = "joint_velocity"  # of ActionChunk; servers of joint positions are refused
EXTRA_KEYS = "optional_keys"  # of the metadata: request keys that openpi does not have
_PROBE_SIZE = (48, 80)

Answer = TypeVar("Answer")


class OpenpiPolicy:
    """A ``Policy`` without weights. Views are fitted into 224 x 224 here, as openpi's client does.

    Several observations are asked concurrently over a small pool of connections. A server of this
    project draws its noise from the seeds given; openpi's own ignores them, and then equal seeds
    do not give equal actions. ``act`` may be called from any thread and always returns or raises.
    """

    def __init__(self, cfg: PolicyConfig, version: int) -> None:
        self.version = version
        self._cfg = cfg
        self._known: str | None = None  # the server's metadata: another one is another policy
        self._extras: tuple[str, ...] | None = None  # request keys that it announces
        remote = cfg.remote
        limits = remote.connect_timeout_s, remote.request_timeout_s
        self._pool = Pool(Server(remote.uri, read_key(remote), *limits), remote.connections)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @classmethod
    def load(cls, cfg: PolicyConfig, folder: Path, version: int) -> "OpenpiPolicy":
        """Use the server whose facts ``save`` wrote into ``folder``; nothing is asked yet.

        Raises:
            ValueError: the folder holds no such facts.
        """
        path = folder / FACTS_FILE
        if not path.is_file():
            raise ValueError(
                f"{folder} holds no {FACTS_FILE}: it was not published by policy=remote"
            )
        policy = cls(cfg, version)
        policy._known = json.loads(path.read_text())["metadata"]
        return policy

    def save(self, folder: Path) -> None:
        """Write which server this is.

        Raises:
            PolicyUnavailableError: it cannot be reached.
        """
        facts = {"uri": self._cfg.remote.uri, "metadata": repr(self.metadata())}
        (folder / FACTS_FILE).write_text(json.dumps(facts, indent=2))

    def metadata(self) -> dict[str, Any]:
        """What the server says about itself; openpi's own may say nothing.

        Raises:
            PolicyUnavailableError: it cannot be reached, or speaks another protocol.
            ValueError: it announces another action space or horizon than the config.
        """
        metadata = self._wait(self._pool.metadata())
        self._check(metadata)
        return metadata

    def probe(self) -> None:
        """One request with black views, so that a wrong server is found before an arm moves.

        Raises:
            PolicyUnavailableError, ValueError: as ``act``.
        """
        self.metadata()
        zeros = np.zeros(NUM_JOINTS, np.float32)
        images = np.zeros((len(VIEWS), *_PROBE_SIZE, 3), np.uint8)
        state = RobotState(zeros, zeros, zeros[:6], 0.0, 0.0)
        self.act([Observation(images, state, "do nothing")], [0])

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        """One chunk per observation, as the server answers it: neither clipped nor rounded.

        Raises:
            PolicyUnavailableError: no answer in time, a refusal, NaN, or something that is not
                (policy.horizon, 8) numbers.
            ValueError: the server announces another action space or horizon than the config, or
                it is no longer the one that was asked first.
        """
        if self._extras is None:
            self.metadata()
        extras = self._extras or ()
        requests = [
            pack(droid_request(seen, seed, self._cfg.remote, extras))
            for seen, seed in zip(observations, seeds, strict=True)
        ]
        return [self._chunk(*answer) for answer in self._wait(self._pool.infer(requests))]

    def close(self) -> None:
        """Drop the connections; the policy cannot be used afterwards."""
        self._wait(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._pool.drop()
        own = asyncio.current_task()
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not own))

    def _wait(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Run in the connections' own thread, where pings are answered between requests too."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _chunk(self, reply: Any, metadata: Mapping[str, Any]) -> ActionChunk:
        self._check(metadata)
        actions = read_actions(reply, self._cfg.horizon, self._cfg.remote.uri)
        return ActionChunk(actions, self.version)

    def _check(self, metadata: Mapping[str, Any]) -> None:
        uri, horizon = self._cfg.remote.uri, self._cfg.horizon
        if self._known not in (None, repr(metadata)):
            raise ValueError(
                f"the policy server at {uri} is another one now: it was {self._known}, it is "
                f"{metadata!r}. Start the first one again, or begin a new run with out=<new folder>"
            )
        self._known = repr(metadata)
        space = metadata.get("action_space", ACTION_SPACE)
        if space != ACTION_SPACE:
            raise ValueError(
                f"the policy server at {uri} answers {space!r}, the arm is moved by "
                f"{ACTION_SPACE!r}: give policy.remote.host and port of a velocity policy"
            )
        announced = metadata.get("action_horizon", horizon)
        if announced != horizon:
            raise ValueError(
                f"the policy server at {uri} plans {announced} ticks, not {horizon}: set "
                f"policy.horizon={announced}"
            )
        extras = metadata.get(EXTRA_KEYS, ())
        self._extras = tuple(extras) if isinstance(extras, list | tuple) else ()


def read_key(config: RemoteConfig) -> str:
    """The api key to send. Raises ValueError where its file cannot be read."""
    if not config.key_file:
        return ""
    try:
        return Path(config.key_file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(f"policy.remote.key_file={config.key_file}: {error.strerror}") from error


def droid_request(
    seen: Observation, seed: int, config: RemoteConfig, extras: Collection[str]
) -> dict[str, Any]:
    """The keys that openpi's DROID client sends, and those of ``extras`` that we know.

    State is float64, as it is when it comes from DROID's lists.
    """
    exterior = config.exterior_view
    views = {EXTERIOR_1: seen.images[exterior], WRIST: seen.images[VIEWS.index("wrist")]}
    if EXTERIOR_2 in extras:
        views |= {EXTERIOR_1: seen.images[0], EXTERIOR_2: seen.images[1]}
    if config.image_size:
        views = {key: resize_with_pad(view, config.image_size) for key, view in views.items()}
    return {
        **views,
        JOINTS: seen.state.joint_position.astype(np.float64),
        GRIPPER: np.array([seen.state.gripper_position], np.float64),
        PROMPT: seen.instruction,
        **({SEED: seed} if SEED in extras else {}),
    }


def read_actions(reply: Any, horizon: int, uri: str) -> Float32[np.ndarray, "horizon 8"]:
    """The actions of an answer. Raises PolicyUnavailableError where the arm must not follow it."""
    actions = reply.get("actions") if isinstance(reply, dict) else None
    if not isinstance(actions, np.ndarray) or actions.dtype.kind not in "iuf":
        found = sorted(map(str, reply))[:8] if isinstance(reply, dict) else repr(reply)[:60]
        raise PolicyUnavailableError(
            f"the policy server at {uri} answered without an array of actions: {found}"
        )
    if actions.shape != (horizon, ACTION_DIM):
        hint = ""
        if actions.ndim == 2 and actions.shape[1] == ACTION_DIM:
            hint = f": set policy.horizon={len(actions)}"
        raise PolicyUnavailableError(
            f"the policy server at {uri} answered actions of shape {actions.shape}, not "
            f"({horizon}, {ACTION_DIM}){hint}"
        )
    with np.errstate(over="ignore"):  # becomes infinite, and is refused
        actions = actions.astype(np.float32)
    if not np.isfinite(actions).all():
        raise PolicyUnavailableError(f"the policy server at {uri} answered NaN or infinite actions")
    return actions
