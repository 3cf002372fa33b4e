"""Both ends of the wire against the real openpi-client of PyPI, in another process.

That process finds it in OPENPI_CLIENT_DIR, outside our environment, because it pins numpy<2.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from configs.policy import PolicyConfig
from configs.remote import RemoteConfig
from contracts.errors import PolicyUnavailableError
from contracts.types import Observation, RobotState
from models.build import load_policy
from models.remote.policy import OpenpiPolicy

pytestmark = pytest.mark.openpi_client

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "models" / "embedded" / "base" / "policy"

# What openpi's DROID script does with its client, and what its own server class does (facts of
# ../shared/reference/openpi.md section 4), each with upstream's codec.
DROID_SCRIPT = """
import json, sys
import numpy as np
from openpi_client import image_tools
from openpi_client.websocket_client_policy import WebsocketClientPolicy

client = WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]))
rng = np.random.default_rng(0)
cells = rng.integers(0, 256, (2, 6, 10, 3), dtype=np.uint8)
views = cells.repeat(8, 1).repeat(8, 2)  # single pixels would not survive the resizing
request = {
    "observation/exterior_image_1_left": image_tools.resize_with_pad(views[0], 224, 224),
    "observation/wrist_image_left": image_tools.resize_with_pad(views[1], 224, 224),
    "observation/joint_position": np.array([0.0, -0.6, 0.0, -2.5, 0.0, 1.9, 0.0]),
    "observation/gripper_position": np.array([0.25]),
    "prompt": "open the book",
}
replies = [client.infer(request), client.infer(request)]
seeded = client.infer(request | {"seed": 11})
found = {
    "metadata": client.get_server_metadata(),
    "shape": replies[0]["actions"].shape,
    "dtype": replies[0]["actions"].dtype.str,
    "keys": [sorted(reply) for reply in replies],
    "timing": [sorted(reply["server_timing"]) for reply in replies],
    "seeded": seeded["actions"].tolist(),
}
try:
    client.infer({"prompt": "open the book"})
except RuntimeError as error:
    found["refusal"] = str(error)
WebsocketClientPolicy("127.0.0.1", int(sys.argv[1])).infer(request)
print(json.dumps(found))
"""
OPENPI_SERVER = """
import asyncio, signal, traceback
import numpy as np
from openpi_client import msgpack_numpy
from websockets.asyncio.server import serve

async def talk(client):
    packer = msgpack_numpy.Packer()
    await client.send(packer.pack({}))
    while True:
        try:
            request = msgpack_numpy.unpackb(await client.recv())
            joints = request["observation/joint_position"]
            if request["prompt"] == "fail":
                raise KeyError("observation/secret")
            actions = np.zeros((15, 8)) + request["observation/gripper_position"]
            actions[:, :7] = joints + request["observation/wrist_image_left"].mean()
            await client.send(packer.pack({
                "actions": actions, "policy_timing": {"infer_ms": np.float32(1.5)},
                "server_timing": {"infer_ms": 2.0},
            }))
        except KeyError:
            await client.send(traceback.format_exc())
            await client.close(1011, "Internal server error. Traceback included in previous frame.")
            raise

async def main():
    async with serve(talk, "127.0.0.1", 0, compression=None, max_size=None) as server:
        print("serving at", server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()

# A shell that starts the tests in the background lets its children ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
asyncio.run(main())
"""


def environment() -> dict[str, str]:
    """The client's own environment; a proxy would come between."""
    kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    return kept | {"PYTHONPATH": os.environ["OPENPI_CLIENT_DIR"]}


@contextmanager
def serving(*command: str, env: dict[str, str]) -> Iterator[int]:
    """A process that prints a line ending in its port; it ends by Ctrl-C."""
    with subprocess.Popen(
        [sys.executable, *command], env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().split(":")[-1].split()[-1])
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


@pytest.fixture(scope="module")
def droid_script():
    """What the real client saw of ``job=serve``."""
    command = ("ray_job.py", "job=serve", "serve.port=0", "serve.device=cpu")
    with serving(*command, env=dict(os.environ)) as port:
        done = subprocess.run(
            [sys.executable, "-c", DROID_SCRIPT, str(port)],
            env=environment(), capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_real_client_is_answered_as_by_openpi(droid_script):
    assert droid_script["shape"] == [15, 8]
    assert droid_script["dtype"] == "<f8"
    assert droid_script["keys"] == [["actions", "policy_timing", "server_timing"]] * 2
    assert droid_script["timing"] == [["infer_ms"], ["infer_ms", "prev_total_ms"]]
    assert droid_script["metadata"]["action_horizon"] == 15


def test_the_real_client_raises_our_refusal(droid_script):
    assert droid_script["refusal"].startswith("Error in inference server:\nTraceback")
    assert "lacks 'observation/joint_position'" in droid_script["refusal"]


def test_the_actions_are_those_of_the_policy_in_process(droid_script):
    """The wrist view was padded to 224 x 224 by the client, and cut back to 48 x 80 by the server:
    it is a little blurred, so actions agree, but not to the bit."""
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (2, 6, 10, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    joints = np.array([0, -0.6, 0, -2.5, 0, 1.9, 0], np.float32)
    zeros = np.zeros(7, np.float32)
    state = RobotState(joints, zeros, zeros[:6], 0.25, 0.0)
    seen = Observation(np.stack([views[0], views[0], views[1]]), state, "open the book")
    policy = load_policy(PolicyConfig(), BASE, 0)
    near = policy.act([seen], [11])[0].actions
    others = [policy.act([seen], [seed])[0].actions for seed in range(12, 20)]
    far = np.array(droid_script["seeded"])
    apart = [np.abs(far - other).mean() for other in others]
    assert np.abs(far - near).mean() < 0.8 * min(apart)


def test_our_client_with_openpis_codec_behind_the_server():
    pixels = np.full((3, 18, 32, 3), 100, np.uint8)
    zeros = np.zeros(7, np.float32)
    states = [RobotState(zeros + n, zeros, zeros[:6], 0.25, 0.0) for n in range(5)]
    seen = [Observation(pixels, state, "draw") for state in states]
    mean = 100 * 126 / 224  # of an 18 x 32 view in a black square of 224
    with serving("-c", OPENPI_SERVER, env=environment()) as port:
        remote = RemoteConfig(port=port, connections=2)
        config = PolicyConfig(kind="remote", checkpoint="", remote=remote)
        with closing(OpenpiPolicy(config, version=0)) as policy:
            policy.probe()
            chunks = policy.act(seen, range(5))
            for n, chunk in enumerate(chunks):
                np.testing.assert_allclose(chunk.actions[:, :7], mean + n, rtol=1e-6)
                np.testing.assert_array_equal(chunk.actions[:, 7], 0.25)
            failing = Observation(pixels, states[0], "fail")
            with pytest.raises(PolicyUnavailableError, match=r"refused.*observation/secret"):
                policy.act([failing], [0])
            assert len(policy.act(seen, range(5))) == 5
