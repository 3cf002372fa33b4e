"""``policy=remote``: the chunks of the server's policy, or one clear error in time."""

import asyncio
import json
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import pytest
from websockets.asyncio.server import serve

from configs.policy import Pi05Config, PolicyConfig
from configs.remote import RemoteConfig
from contracts.errors import PolicyUnavailableError
from contracts.protocols import Policy
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
    unpack,
)
from models.build import load_acting_policy
from models.interfaces import PolicyBatch
from models.pi05.policy import Pi05Policy
from models.pi05.transforms import resize_with_pad
from models.remote.policy import OpenpiPolicy
from services.policy_requests import RequestFormat
from services.policy_server import ServerSettings

HORIZON = 6
REQUEST_S = 0.5  # limits of the tests of silence
CONNECT_S = 0.6


def config(port: int, horizon: int = HORIZON, **changes: object) -> PolicyConfig:
    limits = {"connect_timeout_s": 10.0, "request_timeout_s": 20.0}
    remote = RemoteConfig(port=port, **(limits | changes))  # type: ignore[arg-type]
    return PolicyConfig(
        kind="remote", checkpoint="", horizon=horizon, execute=min(horizon, 12), remote=remote
    )


def observation(seed: int) -> Observation:
    rng = np.random.default_rng(seed)
    joints = rng.normal(size=7).astype(np.float32)
    zeros = np.zeros(7, np.float32)
    state = RobotState(joints, zeros, zeros[:6], float(np.float32(rng.random())), 0.0)
    return Observation(rng.integers(0, 256, (3, 18, 32, 3), np.uint8), state, f"stack {seed}")


def remote(port: int, **changes: object):
    return closing(OpenpiPolicy(config(port, **changes), version=3))


def actions(value: float = 0.0, rows: int = HORIZON) -> bytes:
    return pack({"actions": np.full((rows, 8), value)})


def answering(*replies: str | bytes, metadata: object = None):
    """A server that greets, then gives these answers in turn, whatever it is asked."""

    async def handler(client) -> None:
        await client.send(pack({} if metadata is None else metadata))
        for reply in replies:
            await client.recv()
            await client.send(reply)
        await client.wait_closed()

    return handler


# what is asked and answered


@pytest.fixture(scope="module")
def pi05() -> Pi05Policy:
    """A tiny pi0.5 with random weights. Its views are 28 pixels wide."""
    sizes = Pi05Config(
        vision_width=16, vision_depth=1, vision_heads=2, vision_mlp=16, image_size=28,
        text_width=16, text_mlp=16, expert_width=16, expert_mlp=16, heads=2, head_dim=8,
    )  # fmt: skip
    policy = Pi05Policy(PolicyConfig(kind="pi05", horizon=HORIZON, execute=4, pi05=sizes), seed=1)
    rng = np.random.default_rng(0)
    policy.fit_statistics(
        PolicyBatch(
            rng.integers(0, 256, (32, 3, 18, 32, 3), np.uint8),
            rng.normal(size=(32, 7)).astype(np.float32),
            rng.random(32, np.float32),
            ["go"] * 32,
            rng.uniform(-1, 1, (32, HORIZON, 8)).astype(np.float32),
            np.ones(32, np.float32),
        )
    )
    policy.module().eval()
    return policy


def test_pi05_answers_over_the_wire_as_in_process_bit_for_bit(serving_policy, pi05):
    """Resizing on the client, seeds on the wire and float64 answers change nothing."""
    seen, seeds = [observation(n) for n in range(5)], [9, 8, 7, 6, 5]
    with (
        serving_policy(pi05, RequestFormat((0, 2), 28, 28, padded=True)) as port,
        remote(port, image_size=28, connections=3) as policy,
    ):
        assert isinstance(policy, Policy)
        far = policy.act(seen, seeds)
        alone = policy.act(seen[3:4], seeds[3:4])
    near = pi05.act(seen, seeds)
    for one, other in zip(far, near, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
    np.testing.assert_array_equal(alone[0].actions, near[3].actions)
    assert {chunk.version for chunk in far} == {3}
    assert not np.array_equal(far[0].actions, far[1].actions)


def test_the_request_is_that_of_openpis_droid_client(serving_handler):
    asked = []

    async def handler(client) -> None:
        await client.send(pack({}))
        asked.append(unpack(await client.recv()))
        await client.send(actions())
        await client.wait_closed()

    seen = observation(1)
    with serving_handler(handler) as port, remote(port, exterior_view=1) as policy:
        policy.act([seen], [5])
    (request,) = asked
    assert request.keys() == {EXTERIOR_1, WRIST, JOINTS, GRIPPER, PROMPT}  # no seed: not announced
    np.testing.assert_array_equal(request[EXTERIOR_1], resize_with_pad(seen.images[1], 224))
    np.testing.assert_array_equal(request[WRIST], resize_with_pad(seen.images[2], 224))
    np.testing.assert_array_equal(request[JOINTS], seen.state.joint_position.astype(np.float64))
    assert request[JOINTS].dtype == np.float64
    assert request[GRIPPER].tolist() == [seen.state.gripper_position]
    assert request[PROMPT] == "stack 1"


def test_a_server_that_looks_at_both_exterior_cameras_gets_both(serving_handler):
    asked = []

    async def handler(client) -> None:
        await client.send(pack({"optional_keys": [SEED, EXTERIOR_2]}))
        asked.append(unpack(await client.recv()))
        await client.send(actions())
        await client.wait_closed()

    seen = observation(1)
    with serving_handler(handler) as port, remote(port, image_size=0) as policy:
        policy.act([seen], [5])
    np.testing.assert_array_equal(asked[0][EXTERIOR_1], seen.images[0])
    np.testing.assert_array_equal(asked[0][EXTERIOR_2], seen.images[1])
    assert asked[0][SEED] == 5


def test_several_slots_are_asked_at_once_and_answered_in_order(serving_handler):
    """No answer comes before three requests are there, over a pool of three connections."""
    together, counts = asyncio.Barrier(3), {"connections": 0}

    async def handler(client) -> None:
        counts["connections"] += 1
        await client.send(pack({}))
        async for frame in client:
            await together.wait()
            await client.send(actions(unpack(frame)[JOINTS][0]))

    seen = [observation(n) for n in range(9)]
    with serving_handler(handler) as port, remote(port, connections=3) as policy:
        chunks = policy.act(seen, range(9))
    found = [chunk.actions[0, 0] for chunk in chunks]
    assert found == [np.float32(each.state.joint_position[0]) for each in seen]
    assert counts["connections"] == 3


def test_nothing_to_ask_needs_no_answer(serving_handler):
    with serving_handler(answering()) as port, remote(port) as policy:
        assert policy.act([], []) == []


# what goes wrong


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (actions(rows=10), r"shape \(10, 8\), not \(6, 8\): set policy.horizon=10"),
        (pack({"actions": np.zeros((HORIZON, 7))}), r"shape \(6, 7\), not \(6, 8\)"),
        (pack({"actions": np.zeros(8)}), r"shape \(8,\)"),
        (actions(np.nan), "NaN or infinite"),
        (actions(1e39), "NaN or infinite"),
        (pack({"actions": [[0.0] * 8] * HORIZON}), "without an array of actions"),
        (pack({"actions": np.full((HORIZON, 8), "x")}), "without an array of actions"),
        (pack({"action": np.zeros((HORIZON, 8))}), r"without an array of actions: \['action'\]"),
        (pack([1, 2]), r"without an array of actions: \[1, 2\]"),
        (actions()[:-3], "answered nonsense: a frame of .* bytes is no openpi message"),
        (b"\xc1", "answered nonsense"),
        ("Traceback:\n  File x\nKeyError: 'prompt'\n", "refused the request: KeyError: 'prompt'"),
        ("", "refused the request: no reason given"),
    ],
)
def test_an_answer_that_the_arm_must_not_follow_is_an_error(serving_handler, reply, said):
    """... and the next request is answered all the same, over a new connection if need be."""
    calls = {"n": 0}

    async def handler(client) -> None:
        await client.send(pack({}))
        async for _ in client:
            calls["n"] += 1
            await client.send(reply if calls["n"] == 1 else actions(0.5))

    with serving_handler(handler) as port, remote(port) as policy:
        with pytest.raises(PolicyUnavailableError, match=said) as error:
            policy.act([observation(0)], [0])
        assert f"ws://127.0.0.1:{port}" in str(error.value)
        assert policy.act([observation(0)], [0])[0].actions[0, 0] == 0.5


def test_a_late_answer_is_never_taken_for_that_to_the_next_request(serving_handler):
    """The first answer, 0.25, comes after its request was given up."""
    gate, calls = asyncio.Event(), {"n": 0}

    async def handler(client) -> None:
        await client.send(pack({}))
        async for _ in client:
            calls["n"] += 1
            if calls["n"] == 1:
                await gate.wait()
                await client.send(actions(0.25))
            gate.set()
            await client.send(actions(0.75))

    with (
        serving_handler(handler) as port,
        remote(port, connections=1, request_timeout_s=REQUEST_S) as policy,
    ):
        with pytest.raises(PolicyUnavailableError, match=r"did not answer within 0\.5 s"):
            policy.act([observation(0)], [0])
        assert policy.act([observation(0)], [0])[0].actions[0, 0] == 0.75


def test_one_blocked_slot_fails_all_without_waiting_for_the_rest(serving_handler):
    """Eight requests over two connections of a server that is silent: only two are ever sent."""
    arrived = {"n": 0}

    async def handler(client) -> None:
        await client.send(pack({}))
        async for _ in client:
            arrived["n"] += 1

    with (
        serving_handler(handler) as port,
        remote(port, connections=2, request_timeout_s=REQUEST_S) as policy,
        pytest.raises(PolicyUnavailableError, match="did not answer within"),
    ):
        policy.act([observation(n) for n in range(8)], range(8))
    assert arrived == {"n": 2}


@dataclass
class Restarting:
    """Closes every connection after its first answer, as a restarted server would have."""

    connections: int = 0
    plans: list[float] = field(default_factory=list)

    async def __call__(self, client) -> None:
        self.connections += 1
        await client.send(pack({}))
        await client.recv()
        await client.send(actions(self.connections / 4))


def test_a_connection_that_broke_since_is_replaced(serving_handler):
    server = Restarting()
    with serving_handler(server) as port, remote(port, connections=1) as policy:
        found = [policy.act([observation(0)], [0])[0].actions[0, 0] for _ in range(3)]
    assert found == [0.25, 0.5, 0.75]


def test_a_server_that_hangs_up_on_every_request_is_an_error(serving_handler):
    async def handler(client) -> None:
        await client.send(pack({}))
        await client.recv()
        await client.close(1001, "going away")

    with (
        serving_handler(handler) as port,
        remote(port) as policy,
        pytest.raises(PolicyUnavailableError, match="closed the connection: code 1001 going"),
    ):
        policy.act([observation(0)], [0])


def test_nobody_there(serving_handler):
    with serving_handler(answering()) as port:
        pass
    with remote(port, connect_timeout_s=CONNECT_S) as policy:
        said = r"cannot be reached for 0.6 s .*policy\.remote\.host"
        with pytest.raises(PolicyUnavailableError, match=said):
            policy.act([observation(0)], [0])


def test_a_server_that_starts_a_moment_later_is_waited_for(serving_handler):
    with serving_handler(answering()) as port:
        pass

    async def late() -> list[ActionChunk]:
        asked = asyncio.create_task(asyncio.to_thread(policy.act, [observation(0)], [0]))
        await asyncio.sleep(0.4)
        async with serve(answering(actions(0.5)), "127.0.0.1", port):
            return await asked

    with remote(port) as policy:
        assert asyncio.run(late())[0].actions[0, 0] == 0.5


async def _silent(client) -> None:
    await client.wait_closed()


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (_silent, "does not greet within 0.6 s"),
        (answering(metadata=[1, 2]), "is no openpi server: it greets with"),
        (answering(metadata=b"x"), "is no openpi server: it greets with"),
    ],
)
def test_who_greets_otherwise_is_no_openpi_server(serving_handler, handler, said):
    with (
        serving_handler(handler) as port,
        remote(port, connect_timeout_s=CONNECT_S) as policy,
        pytest.raises(PolicyUnavailableError, match=said),
    ):
        policy.probe()


def test_a_port_that_speaks_something_else(serving_policy, pi05):
    async def serve_http(ports: list[int], stop: asyncio.Event) -> None:
        async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(page, "127.0.0.1", 0) as server:
            ports.append(server.sockets[0].getsockname()[1])
            await stop.wait()

    async def ask() -> None:
        ports, stop = [], asyncio.Event()
        task = asyncio.create_task(serve_http(ports, stop))
        while not ports:
            await asyncio.sleep(0.01)
        with remote(ports[0]) as policy:
            try:
                await asyncio.to_thread(policy.probe)
            finally:
                stop.set()
                await task

    with pytest.raises(PolicyUnavailableError, match=r"is no openpi server .*404"):
        asyncio.run(ask())


def test_keys(serving_policy, pi05, tmp_path):
    (tmp_path / "key").write_text("s3cret\n")
    wanted = RequestFormat((0, 2), 28, 28, padded=True)
    with serving_policy(pi05, wanted, None, ServerSettings(key="s3cret")) as port:
        with remote(port, key_file=str(tmp_path / "key")) as policy:
            policy.probe()
        with (
            remote(port) as policy,
            pytest.raises(PolicyUnavailableError, match=r"give policy\.remote\.key_file"),
        ):
            policy.probe()
    with pytest.raises(ValueError, match=r"policy\.remote\.key_file=.*: No such file"):
        OpenpiPolicy(config(1, key_file=str(tmp_path / "none")), 0)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"action_space": "joint_position"}, "answers 'joint_position'"),
        ({"action_horizon": 10}, "plans 10 ticks, not 6: set policy.horizon=10"),
    ],
)
def test_a_server_that_announces_another_kind_of_plan_is_refused(serving_handler, metadata, said):
    with (
        serving_handler(answering(metadata=metadata)) as port,
        remote(port) as policy,
        pytest.raises(ValueError, match=said),
    ):
        policy.probe()


def test_a_published_server_is_recognised_and_another_one_refused(serving_handler, tmp_path):
    with serving_handler(answering(metadata={"model": "a"})) as port, remote(port) as policy:
        policy.save(tmp_path)
    assert json.loads((tmp_path / "remote.json").read_text())["uri"] == f"ws://127.0.0.1:{port}"
    with (
        serving_handler(answering(actions(), metadata={"model": "a"})) as port,
        closing(OpenpiPolicy.load(config(port), tmp_path, 7)) as same,
    ):
        assert same.act([observation(0)], [0])[0].version == 7
    with (
        serving_handler(answering(actions(), metadata={"model": "b"})) as port,
        closing(OpenpiPolicy.load(config(port), tmp_path, 7)) as other,
        pytest.raises(ValueError, match=r"is another one now: it was {'model': 'a'}"),
    ):
        other.act([observation(0)], [0])
    acting = load_acting_policy(config(port), tmp_path, 7)
    assert isinstance(acting, OpenpiPolicy)
    acting.close()
    with pytest.raises(ValueError, match=r"holds no remote\.json"):
        OpenpiPolicy.load(config(port), tmp_path / "nowhere", 7)
