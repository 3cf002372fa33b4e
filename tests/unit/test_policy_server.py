"""Our server as openpi's clients meet it; what one of them does harms no other."""

import asyncio
import json
import pickle
import threading
import urllib.request
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from contracts.types import ActionChunk, Observation
from contracts.wire import EXTERIOR_1, GRIPPER, JOINTS, PROMPT, SEED, WRIST, pack, unpack
from services.policy_requests import RequestFormat
from services.policy_server import OpenpiServer, ServerSettings, serve_until

WANTED = RequestFormat((0, 2), 8, 8, padded=True)


@dataclass
class Mirror:
    """Plans ``horizon`` rows: joints plus the row's number, and the seed modulo 100 as gripper.

    It waits for ``gate`` before it answers, and fails or plans NaN for joints above 900.
    """

    version: int = 4
    horizon: int = 15
    gate: threading.Event = field(default_factory=threading.Event)
    batches: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        assert self.gate.wait(20)
        self.batches.append(len(observations))
        return [self._plan(seen, seed) for seen, seed in zip(observations, seeds, strict=True)]

    def _plan(self, seen: Observation, seed: int) -> ActionChunk:
        if seen.state.joint_position[0] > 950:
            raise ArithmeticError("this policy cannot count so far")
        actions = np.full((self.horizon, 8), seed % 100, np.float32)
        actions[:, :7] = seen.state.joint_position + np.arange(self.horizon)[:, None]
        actions[:, 0] = np.nan if seen.state.joint_position[0] > 900 else actions[:, 0]
        return ActionChunk(actions, self.version)


def request(**changes: object) -> dict[str, object]:
    pixels = np.zeros((8, 8, 3), np.uint8)
    return {
        EXTERIOR_1: pixels,
        WRIST: pixels,
        JOINTS: np.arange(7.0),
        GRIPPER: np.array([0.5]),
        PROMPT: "draw",
    } | changes


@contextmanager
def client(port: int, **options):
    """A websocket and the metadata that it was greeted with."""
    with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None, **options) as socket:
        yield socket, unpack(socket.recv(timeout=20))


def ask(socket, message: object) -> dict:
    socket.send(pack(message))
    return unpack(socket.recv(timeout=20))


def refusal(socket, frame: str | bytes) -> str:
    """The traceback that the server sends before it closes with 1011, as openpi's does."""
    socket.send(frame)
    report = socket.recv(timeout=20)
    assert isinstance(report, str)
    assert report.startswith("Traceback (most recent call last)")
    with pytest.raises(ConnectionClosed) as closed:
        socket.recv(timeout=20)
    assert closed.value.rcvd.code == 1011
    return report


@pytest.fixture
def policy():
    return Mirror()


@pytest.fixture
def port(serving_policy, policy):
    facts = {"model": "mirror", "action_horizon": 15}
    with serving_policy(policy, WANTED, facts) as port:
        yield port


def test_metadata_say_what_the_policy_is(port):
    with client(port) as (_, metadata):
        assert json.loads(json.dumps(metadata)) == {
            "server": "vlaw",
            "model": "mirror",
            "action_space": "joint_velocity",
            "action_dim": 8,
            "action_horizon": 15,
            "control_hz": 15,
            "image_keys": [EXTERIOR_1, WRIST],
            "image_size": [8, 8],
            "optional_keys": ["seed"],
        }


def test_answers_are_openpis(port):
    with client(port) as (socket, _):
        first, second = ask(socket, request()), ask(socket, request())
    assert list(first) == ["actions", "policy_timing", "server_timing"]
    assert first["actions"].dtype == np.float64
    expected = np.arange(7) + np.arange(15)[:, None]
    np.testing.assert_array_equal(first["actions"][:, :7], expected)
    assert first["policy_timing"].keys() == first["server_timing"].keys() == {"infer_ms"}
    assert second["server_timing"].keys() == {"infer_ms", "prev_total_ms"}
    assert 0 < first["server_timing"]["infer_ms"] < second["server_timing"]["prev_total_ms"] + 1e3


def test_a_request_may_bring_its_seed_and_others_differ(port):
    with client(port) as (socket, _):
        seeded = [ask(socket, request(**{SEED: 42}))["actions"][0, 7] for _ in range(2)]
        free = {ask(socket, request())["actions"][0, 7] for _ in range(5)}
    assert seeded == [42, 42]
    assert len(free) > 1


def test_equal_servers_draw_equal_seeds(serving_policy):
    drawn = []
    for seed in (0, 0, 1):
        serving = serving_policy(Mirror(), WANTED, None, ServerSettings(seed=seed))
        with serving as port, client(port) as (socket, _):
            drawn.append([ask(socket, request())["actions"][0, 7] for _ in range(3)])
    assert drawn[0] == drawn[1] != drawn[2]


def test_health(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as reply:
        assert (reply.status, reply.read()) == (200, b"OK\n")


def test_a_key_is_asked_for_where_there_is_one(serving_policy, policy):
    with serving_policy(policy, WANTED, None, ServerSettings(key="s3cret")) as port:
        for headers in (
            {},
            {"Authorization": "Api-Key other"},
            {"Authorization": "Api-Key \u00fc"},
        ):
            with pytest.raises(InvalidStatus) as refused, client(port, additional_headers=headers):
                pass
            assert refused.value.response.status_code == 401
        right = {"Authorization": "Api-Key s3cret"}
        with client(port, additional_headers=right) as (socket, _):
            assert ask(socket, request())["actions"].shape == (15, 8)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        ("hello", "this is text"),
        (b"", "no openpi message"),
        (pickle.dumps(request()), "no openpi message"),
        (pack(request())[:-7], "no openpi message"),
        (pack({}), "lacks 'observation/joint_position'"),
        (pack(request(prompt=3)), "must be a text"),
        (pack(request(**{JOINTS: np.full(7, np.nan)})), "is not finite"),
        (pack(request(**{JOINTS: np.full(7, 910.0)})), "planned NaN"),
        (pack(request(**{JOINTS: np.full(7, 999.0)})), "ArithmeticError: this policy cannot"),
    ],
    ids=["text", "empty", "pickle", "truncated", "no keys", "type", "nan", "nan out", "policy"],
)
def test_a_bad_request_costs_its_client_the_connection_and_nobody_else_anything(port, frame, said):
    with client(port) as (good, _), client(port) as (bad, _):
        before = ask(good, request())["actions"]
        assert said in refusal(bad, frame)
        np.testing.assert_array_equal(ask(good, request())["actions"][:, :7], before[:, :7])


def test_a_huge_frame_is_refused_while_it_arrives(port):
    """The websocket's own code for it is 1009; nothing of that size is kept."""
    with client(port) as (bad, _):
        with suppress(ConnectionClosed):  # it need not have been sent whole
            bad.send(bytes(65 * 2**20))
        with pytest.raises(ConnectionClosed) as closed:
            bad.recv(timeout=20)
        assert closed.value.rcvd.code == 1009
    with client(port) as (good, _):
        assert ask(good, request())["actions"].shape == (15, 8)


def mutants(count: int, seed: int):
    """Valid requests, damaged: bytes flipped, cut, doubled, or a value of another type put in."""
    rng = np.random.default_rng(seed)
    values = [
        None, True, -1, 2**63, 1e308, "x", b"x", [], {}, [[1], [1, 2]], np.zeros(0), np.float32(3),
        np.array(["a"]), np.zeros((8, 8, 3), np.uint8), np.full((3, 8, 8), 0.5),
        {b"__ndarray__": 1},
        {b"__ndarray__": True, b"dtype": "|O8", b"data": pickle.dumps(1), b"shape": [1]},
        {b"__npgeneric__": True, b"dtype": "<f4", b"data": 1e300},
    ]  # fmt: skip
    keys = [EXTERIOR_1, WRIST, JOINTS, GRIPPER, PROMPT, SEED]
    for _ in range(count):
        message = request()
        if rng.random() < 0.5:
            message[keys[rng.integers(len(keys))]] = values[rng.integers(len(values))]
        frame = bytearray(pack(message))
        for _ in range(rng.integers(0, 4)):
            where = int(rng.integers(max(1, len(frame))))
            match rng.integers(4):
                case 0:
                    frame[where:] = b""
                case 1:
                    frame[where:where] = frame[:where]
                case 2:
                    frame[where : where + 1] = bytes([rng.integers(256)])
                case 3:
                    frame[:where] = b""
        yield bytes(frame)


def test_it_survives_300_damaged_requests(port):
    """Each is answered (some damage is harmless) or refused as openpi refuses, never else."""
    outcomes = {"answered": 0, "refused": 0}
    with client(port) as (good, _):
        for frame in mutants(300, seed=7):
            with client(port) as (socket, _):
                socket.send(frame)
                reply = socket.recv(timeout=20)
                if isinstance(reply, bytes):
                    assert np.isfinite(unpack(reply)["actions"]).all()
                    outcomes["answered"] += 1
                else:
                    assert reply.startswith("Traceback")
                    assert "ValueError" in reply.splitlines()[-1]
                    with pytest.raises(ConnectionClosed) as closed:
                        socket.recv(timeout=20)
                    assert closed.value.rcvd.code == 1011
                    outcomes["refused"] += 1
        assert ask(good, request())["actions"].shape == (15, 8)
    assert min(outcomes.values()) > 30


def test_requests_that_wait_share_a_forward_pass(port, policy):
    """While one is computed four more arrive; they are the next batch, each with its own answer."""
    policy.gate.clear()
    with client(port) as (first, _):
        first.send(pack(request()))
        sockets = [connect(f"ws://127.0.0.1:{port}", proxy=None) for _ in range(4)]
        for index, socket in enumerate(sockets):
            socket.recv(timeout=20)
            socket.send(pack(request(**{JOINTS: np.full(7, 10.0 * index)})))
        # The server answers a greeting only after it has read what these clients sent before.
        for _ in sockets:
            with client(port):
                pass
        policy.gate.set()
        first.recv(timeout=20)
        found = [unpack(socket.recv(timeout=20))["actions"][0, 0] for socket in sockets]
        for socket in sockets:
            socket.close()
    assert found == [0, 10, 20, 30]
    assert sum(policy.batches) == 5
    assert max(policy.batches) > 1


def test_a_client_that_reads_nothing_blocks_only_itself(serving_policy):
    """It asks 400 times and takes none of the 50 MB of answers, more than the buffers hold."""
    policy = Mirror(horizon=2000)
    with serving_policy(policy, WANTED) as port, client(port) as (idle, _):
        for _ in range(400):
            idle.send(pack(request()))
        with client(port) as (good, _):
            for _ in range(20):
                assert ask(good, request())["actions"].shape == (2000, 8)
        idle.socket.shutdown(2)
    assert 20 < sum(policy.batches) < 400


def test_a_client_that_leaves_while_it_is_answered_takes_nothing_along(port, policy):
    policy.gate.clear()
    with client(port) as (gone, _):
        gone.send(pack(request()))
        gone.socket.shutdown(2)
    policy.gate.set()
    with client(port) as (good, _):
        assert ask(good, request())["actions"].shape == (15, 8)


def test_a_port_in_use_is_named(port):
    server = OpenpiServer(Mirror(), WANTED, {}, ServerSettings())
    address = ("127.0.0.1", port)
    with pytest.raises(ValueError, match=f"serve.port={port}: cannot listen there"):
        asyncio.run(serve_until(server, address, asyncio.Event(), lambda _: None))
