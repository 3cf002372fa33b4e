"""``policy=remote`` through Ray: it evaluates, collects and imagines, and its end ends the run."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from websockets.asyncio.server import serve

from contracts.wire import pack
from replay.store import ReplayStore

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def served(start, tiny, bases, tmp_path_factory) -> Iterator[int]:
    """``job=serve`` with the policy of ``bases``; yields its port."""
    folder = tmp_path_factory.mktemp("serve") / "run"
    checkpoint = f"policy.checkpoint={bases / 'policy'}"
    job = start(folder, "job=serve", "serve.port=0", "serve.device=cpu", checkpoint, *tiny)
    job.when(lambda: "serving" in job.output)
    yield int(job.output.split("127.0.0.1:")[-1].split()[0])
    job.interrupt()
    assert job.end() == 0, job.output


def of(run, name: str) -> ReplayStore:
    return ReplayStore.open(run / "stores" / name)


def test_a_run_with_a_remote_policy(served, start, loop, undisturbed, tmp_path):
    """The server has the policy of ``undisturbed``. It gets the views as they are and the seeds, so
    its evaluation is the same one, bit for bit."""
    settings = [flag for flag in loop if not flag.startswith("policy.checkpoint")]
    remote = [f"policy.remote.port={served}", "policy.remote.image_size=0"]
    smaller = ["each_task.rollouts=2", "each_task.imagine=5", "imagination.slots=3"]
    job = start(tmp_path / "run", *settings, "policy=remote", *remote, *smaller)
    assert job.end() == 0, job.output
    evaluated = of(tmp_path / "run", "evaluation")
    assert sorted(evaluated.ids()) == [f"evaluation-base-book-000{k}" for k in (0, 1)]
    for name in evaluated.ids():
        there, here = evaluated.trajectory(name), of(undisturbed, "evaluation").trajectory(name)
        np.testing.assert_array_equal(there.actions, here.actions)
        np.testing.assert_array_equal(there.joint_position, here.joint_position)
    real, imagined = of(tmp_path / "run", "real"), of(tmp_path / "run", "imagined")
    assert (len(real.ids()), len(imagined.ids())) == (2, 5)
    assert {imagined.provenance(name).policy_version for name in imagined.ids()} == {0}
    assert {imagined.provenance(name).world_model_version for name in imagined.ids()} == {1}
    facts = tmp_path / "run" / "checkpoints" / "policy" / "v0000" / "remote.json"
    assert json.loads(facts.read_text())["uri"] == f"ws://127.0.0.1:{served}"
    assert not (tmp_path / "run" / "checkpoints" / "policy" / "v0001").exists()


@contextmanager
def dying(answers: int) -> Iterator[int]:
    """A server that is gone after so many answers; yields its port."""
    started, found = threading.Event(), []

    async def run() -> None:
        left, gone = [answers], asyncio.Event()

        async def talk(client) -> None:
            await client.send(pack({}))
            async for _ in client:
                left[0] -= 1
                if left[0] < 0:
                    gone.set()
                else:
                    await client.send(pack({"actions": np.zeros((15, 8))}))

        async with serve(talk, "127.0.0.1", 0) as server:
            found.append((next(iter(server.sockets)).getsockname()[1], gone))
            found.append(asyncio.get_running_loop())
            started.set()
            await gone.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert started.wait(20)
    (port, gone), loop = found
    yield port
    if thread.is_alive():
        loop.call_soon_threadsafe(gone.set)
    thread.join(20)


def test_a_server_that_dies_aborts_the_episode_and_ends_the_run(start, tiny, tmp_path):
    """The probe and one decision are answered: the first episode is kept up to there, the second
    has no decision at all and ends the run in one line."""
    with dying(answers=2) as port:
        job = start(
            tmp_path / "run", *tiny, "job=evaluate", "policy=remote", "task=book", "robot.count=1",
            f"policy.remote.port={port}", "policy.remote.connect_timeout_s=1",
            "evaluation.episodes=3", "each_task.max_ticks=24",
        )  # fmt: skip
        assert job.end() == 1, job.output
    said = job.output.strip().splitlines()[-1]
    assert said.startswith(f"error: the policy server at ws://127.0.0.1:{port} cannot be reached")
    assert "Traceback" not in job.output
    store = of(tmp_path / "run", "evaluation")
    (name,) = store.ids()
    kept = store.trajectory(name)
    assert kept.ending.startswith(f"aborted:the policy server at ws://127.0.0.1:{port}")
    assert (kept.num_ticks, kept.actions[:, :7].any()) == (12, False)
