"""The robot as a run sees it: a ``PacedRobot`` whose host is at the other end of a websocket."""

import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
from jaxtyping import Float32
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.sync.client import ClientConnection, connect

from contracts.errors import ArmStoppedError, DiscardedError
from contracts.types import Label, Moment, Observation, RobotState, Trajectory
from contracts.wire import MAX_FRAME_BYTES, pack, unpack
from envs.droid.messages import PROTOCOL, moment

ANSWER_S = 5.0  # the host answers at its next tick
PERSON_S = 3600.0  # for so long a person may be away from the robot
GRIPPER_CLOSES = 0.5  # a planned position above this is sent as 1, below as 0, as openpi does


class DroidRobot:
    """Single-threaded. Every method but ``hold`` and ``close`` raises ``ConnectionError`` when the
    host is gone, and ``ArmStoppedError`` when a fault holds the arm."""

    def __init__(
        self, address: str, token: str = "", binary_gripper: bool = True, person_s: float = PERSON_S
    ) -> None:
        """Connect to ``address``, as in ws://127.0.0.1:8090.

        Raises:
            ValueError: nobody answers there, the token is wrong, or it is no robot's host.
        """
        self._address, self._binary, self._person_s = address, binary_gripper, person_s
        self._stack = ExitStack()
        self._socket = self._stack.enter_context(_connect(address, token))
        self._number = 0
        self._next = {"episode": "", "policy_version": -1, "max_ticks": 0}
        self._instruction, self._seen, self._finished = "", 0, False
        self._seen_s = time.monotonic()
        try:
            self.facts = _greeting(self._socket, address)
        except ValueError:
            self.close()
            raise
        self.episode = ""  # the host's name for the running or last episode

    def announce(self, trajectory_id: str, policy_version: int, max_ticks: int) -> None:
        """An attempt gets a name of its own on the host: what was run is never run over."""
        self.episode = f"{trajectory_id}.{uuid.uuid4().hex[:8]}"
        self._next = {
            "episode": self.episode,
            "policy_version": policy_version,
            "max_ticks": max_ticks,
        }

    def reset(self, task: str, seed: int) -> str:
        """Wait for the person to lay the scene and press start, and for the arm to be at home.

        Raises:
            ValueError: the host refuses; the message is the host's.
            ArmStoppedError: the arm was stopped on its way home. Ask again: that waits until a
                person has cleared it.
        """
        answer = self._ask("reset", self._person_s, task=task, seed=seed, **self._next)
        self._instruction, self._finished = answer["instruction"], False
        return self._instruction

    def observe(self) -> Observation:
        answer = self._ask("observe", ANSWER_S)
        seen = self._note(answer, None)
        assert seen.images is not None
        return Observation(seen.images, seen.state, self._instruction)

    def step(self, action: Float32[np.ndarray, " 8"]) -> RobotState:
        """One tick; ``play`` is smoother, since the host then knows what comes next."""
        return list(self.play(action[None]))[-1].state

    def play(self, actions: Float32[np.ndarray, "ticks 8"]) -> Generator[Moment]:
        """See ``PacedRobot.play``."""
        planned = actions.astype(np.float32)
        if self._binary:
            planned[:, -1] = planned[:, -1] > GRIPPER_CLOSES
        latency = time.monotonic() - self._seen_s
        number = self._send("play", actions=planned, seen=self._seen, latency_s=latency)
        executed, done = None, False
        try:
            while not done:
                answer = self._answer(number, ANSWER_S)
                done = answer["done"]
                yield self._note(answer, executed)
                executed = answer["tick"]["sent"]
        finally:
            if not done:
                self.hold()

    def finished(self) -> bool:
        """Whether the person has ended the episode, as of the last tick that was seen."""
        return self._finished

    def hold(self) -> None:
        with suppress(OSError, ValueError, ArmStoppedError):
            self._ask("hold", ANSWER_S)

    def end(self, ending: str) -> None:
        """The episode is over. A fault may have ended it before: then nothing changes."""
        self._ask("end", ANSWER_S, ending=ending[:200])

    def label(self) -> dict[str, Any]:
        """What the person says of the last episode; waits until it is said."""
        return self._ask("label", self._person_s, episode=self.episode)["label"]

    def health(self) -> dict[str, Any]:
        """Of the host's last tick; anybody may ask, also while another drives."""
        return self._ask("health", ANSWER_S)

    def close(self) -> None:
        self._stack.close()

    def _note(self, answer: dict[str, Any], executed: np.ndarray | None) -> Moment:
        self._seen, self._finished = answer["tick"]["tick"], answer["finished"]
        self._seen_s = time.monotonic()
        return moment(answer["tick"], executed)

    def _ask(self, what: str, wait_s: float, **given: Any) -> dict[str, Any]:
        return self._answer(self._send(what, **given), wait_s)

    def _send(self, what: str, **given: Any) -> int:
        self._number += 1
        try:
            self._socket.send(pack({"number": self._number, "ask": what} | given))
        except ConnectionClosed as error:
            raise self._gone(error) from error
        return self._number

    def _answer(self, number: int, wait_s: float) -> dict[str, Any]:
        """The next answer to request ``number``; late ones to others are dropped."""
        until = time.monotonic() + wait_s
        while True:
            try:
                frame = self._socket.recv(timeout=max(0.0, until - time.monotonic()))
            except TimeoutError as error:
                raise self._gone(f"no answer within {wait_s:g} s") from error
            except ConnectionClosed as error:
                raise self._gone(error) from error
            answer = unpack(frame) if isinstance(frame, bytes) else {}
            if answer.get("number") != number:
                continue
            if "stopped" in answer:
                raise ArmStoppedError(answer["stopped"])
            if "error" in answer:
                raise ValueError(f"the robot's host refused: {answer['error']}")
            return answer

    def _gone(self, why: object) -> ConnectionError:
        return ConnectionError(
            f"the robot's host at {self._address} is gone ({why}). It holds the arm by itself. "
            "Look at the robot and at the host's terminal, then run the same command"
        )


class DroidLabels:
    """``LabelSource``: whoever stands beside the robot, asked through its host."""

    def __init__(self, robot: DroidRobot) -> None:
        self._robot = robot

    def label(self, trajectory: Trajectory) -> Label:
        """End the episode and wait for what the person says.

        Raises:
            DiscardedError: the person wants it to be run again.
        """
        self._robot.end(trajectory.ending)
        said = self._robot.label()
        if said["discarded"]:
            raise DiscardedError(f"{trajectory.id} was discarded by {said['who']}")
        source = "simulator" if said["who"] == "simulator" else "human"
        return Label(trajectory.id, bool(said["success"]), source, said["who"])


@contextmanager
def _connect(address: str, token: str) -> Iterator[ClientConnection]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    options = {"compression": None, "max_size": MAX_FRAME_BYTES, "proxy": None}
    with ExitStack() as stack:
        try:
            socket = stack.enter_context(connect(address, additional_headers=headers, **options))
        except (OSError, InvalidHandshake, InvalidURI) as error:
            raise ValueError(
                f"robot.address={address}: no robot's host answers there ({error}). Start it "
                "beside the robot with python -m envs.droid.host, and check robot.token_file"
            ) from error
        yield socket


def _greeting(socket: ClientConnection, address: str) -> dict[str, Any]:
    try:
        frame = socket.recv(timeout=ANSWER_S)
        facts = unpack(frame)["greeting"] if isinstance(frame, bytes) else {}
        version = facts["protocol"]
    except (TimeoutError, ConnectionClosed, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"robot.address={address} is no robot's host: {error!r}") from error
    if version != PROTOCOL:
        raise ValueError(
            f"robot.address={address} speaks protocol {version}, this is {PROTOCOL}: bring both "
            "machines to the same version"
        )
    return facts
