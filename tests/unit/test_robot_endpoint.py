"""The host's door and the run's side of it, over real sockets; the rig has no physics."""

import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from actors.rollout import EpisodeRequest, RolloutActor, run_episode
from contracts.errors import ArmStoppedError, DiscardedError
from contracts.types import ActionChunk
from contracts.wire import pack, unpack
from envs.droid.client import DroidLabels, DroidRobot
from envs.droid.control import Control, Rig
from envs.droid.endpoint import Endpoint, EndpointSettings
from envs.droid.messages import PROTOCOL
from envs.droid.serving import in_thread
from envs.safety import Limits
from tests.unit.rig import HOLD, FakeArm, FakeCameras, FakePerson

TOKEN = "a token of enough letters"
FACTS = {"protocol": PROTOCOL, "height": 16, "width": 16}


class Served:
    """A control loop in real time behind its door."""

    def __init__(self, port, control, arm, cameras, person):
        self.address = f"ws://127.0.0.1:{port}"
        self.control, self.arm, self.cameras, self.person = control, arm, cameras, person

    def robot(self, **options):
        return DroidRobot(self.address, TOKEN, **options)

    def moved(self):
        return len([command for command in self.arm.sent if command is not HOLD])

    def wait(self, what, seconds=5.0):
        until = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < until, "it did not happen in time"
            time.sleep(0.01)


@contextmanager
def serving(facts=FACTS):
    arm, cameras = FakeArm(time.monotonic), FakeCameras(time.monotonic)
    person = FakePerson()
    rig = Rig(arm, cameras, person)
    control = Control(rig, Limits(late_s=5.0))  # tests beside it take the processor away
    thread = threading.Thread(target=control.run)
    with ExitStack() as stack:
        thread.start()
        stack.callback(thread.join, 5)
        stack.callback(control.close)
        control.wait_until_open()
        settings = EndpointSettings("127.0.0.1", 0, TOKEN)
        endpoint = Endpoint(control, rig, facts, settings)
        port = stack.enter_context(in_thread(endpoint.listening, "endpoint", ("127.0.0.1", 0)))
        yield Served(port, control, arm, cameras, person)


class Drift:
    """A policy that moves a little, once in a while saying something that a test wants."""

    def __init__(self, velocity=0.01, then=None):
        self.version, self.velocity, self.then = 3, velocity, then or {}
        self.calls = 0

    def act(self, observations, seeds):
        del observations, seeds
        self.calls += 1
        if do := self.then.get(self.calls):
            do()
        return [ActionChunk(np.full((8, 8), self.velocity, np.float32), self.version)]


def request(**changes):
    fields = {"trajectory_id": "real-1", "task": "stack", "iteration": 1, "seed": 5}
    return EpisodeRequest(**fields | {"max_ticks": 20, "execute": 8, "settle_ticks": 1} | changes)


def say(at, success=True, **changes):
    """The person labels whatever ends, as soon as it has ended."""
    said = {"success": success, "discarded": False, "who": "Ann", "progress": None} | changes
    inner = at.person.ended

    def ended(episode):
        inner(episode)
        at.person.labels[episode["trajectory_id"]] = said

    at.person.ended = ended


def test_an_episode_is_played_recorded_and_labelled():
    with serving() as at:
        say(at)
        robot = at.robot()
        actor = RolloutActor(lambda: (robot, DroidLabels(robot), robot.finished), Drift())
        trajectory, label = actor.collect(request())
        actor.close()
    assert trajectory.instruction == "do stack 5"
    assert (trajectory.num_ticks, len(trajectory.frames)) == (20, 7)
    assert trajectory.ending == "timeout"
    assert trajectory.provenance.policy_version == 3
    assert (label.success, label.source, label.operator) == (True, "human", "Ann")
    np.testing.assert_allclose(trajectory.actions[:, :7], 0.01, atol=1e-6)
    assert set(trajectory.actions[:, 7]) == {0.0}
    moves = np.diff(trajectory.joint_position, axis=0)
    np.testing.assert_allclose(moves, 0.002, atol=1e-4)
    began = at.person.told[0][1]
    assert began["trajectory_id"].startswith("real-1.")
    assert (began["policy_version"], began["max_ticks"]) == (3, 20)


def test_the_gripper_is_opened_or_closed_and_on_request_neither():
    with serving() as at:
        for binary, wanted in ((True, 1.0), (False, 0.7)):
            robot = at.robot(binary_gripper=binary)
            robot.announce("a", 1, 10)
            robot.reset("stack", 0)
            action = np.append(np.zeros(7), 0.7).astype(np.float32)
            list(robot.play(action[None]))
            assert [c for c in at.arm.sent if c is not HOLD][-1][7] == pytest.approx(wanted)
            robot.end("done")
            robot.close()
            at.wait(lambda: at.control.health()["doing"] == "idle")


def test_a_person_who_ends_the_episode_ends_it_at_the_next_frame():
    with serving() as at:
        say(at, success=False)
        robot = at.robot()
        policy = Drift(then={2: lambda: setattr(at.person, "done", True)})
        trajectory = run_episode(robot, policy, request(max_ticks=200), robot.finished)
        assert trajectory.ending == "done"
        assert trajectory.num_ticks < 15
        assert not DroidLabels(robot).label(trajectory).success
        robot.close()


def test_a_discarded_episode_is_run_again_under_a_name_of_its_own():
    with serving() as at:
        said = [{"discarded": True, "success": None}, {"discarded": False, "success": True}]
        inner = at.person.ended

        def ended(episode):
            inner(episode)
            at.person.labels[episode["trajectory_id"]] = said.pop(0) | {"who": "Ann"}

        at.person.ended = ended
        robot = at.robot()
        actor = RolloutActor(lambda: (robot, DroidLabels(robot), robot.finished), Drift())
        trajectory, label = actor.collect(request(max_ticks=9))
        actor.close()
        names = [e["trajectory_id"] for what, e in at.person.told if what == "began"]
        assert len(set(names)) == 2
    assert (trajectory.id, label.success) == ("real-1", True)


def test_a_fault_ends_the_episode_and_keeps_what_happened():
    with serving() as at:
        say(at, success=False)
        robot = at.robot()

        def stop():
            at.person.stop = True

        trajectory = run_episode(robot, Drift(then={2: stop}), request(), robot.finished)
        assert trajectory.ending.startswith("aborted:operator_stop")
        assert trajectory.num_ticks == 8
        held = at.moved()
        with pytest.raises(ArmStoppedError):
            list(robot.play(np.zeros((3, 8), np.float32)))
        time.sleep(0.3)
        assert at.moved() == held
        assert at.arm.sent[-1] is HOLD
        robot.close()


def test_an_episode_stopped_before_its_first_tick_is_asked_for_again():
    with serving() as at:
        say(at)
        robot = at.robot()
        stops = []

        def began(episode):
            at.person.told.append(("began", episode))
            if len(stops) < 2:  # the person stops as soon as the arm may move
                stops.append(1)
                at.control.stop()
                threading.Timer(0.3, at.control.clear).start()

        at.person.began = began
        actor = RolloutActor(lambda: (robot, DroidLabels(robot), robot.finished), Drift())
        trajectory, _ = actor.collect(request(max_ticks=9))
        actor.close()
    assert len(stops) == 2
    assert trajectory.num_ticks == 9


def test_a_client_that_dies_in_an_episode_leaves_a_held_arm():
    with serving() as at:
        robot = at.robot()
        robot.announce("real-1", 1, 100)
        robot.reset("stack", 0)
        moments = robot.play(np.full((60, 8), 0.01, np.float32))
        for _ in range(4):
            next(moments)
        robot._socket.socket.close()  # as when its process is killed
        at.wait(lambda: at.control.health()["doing"] == "idle")
        moved = at.moved()
        assert moved < 30
        assert at.arm.sent[-1] is HOLD
        time.sleep(0.3)
        assert at.moved() == moved
        (ending,) = [e["ending"] for what, e in at.person.told if what == "ended"]
        assert ending.startswith("aborted:client_lost")
        again = at.robot()  # and another may drive
        again.announce("real-2", 1, 100)
        assert again.reset("stack", 1) == "do stack 1"
        again.close()


def test_only_one_client_drives_and_others_may_look():
    with serving() as at:
        robot = at.robot()
        robot.announce("real-1", 1, 100)
        robot.reset("stack", 0)
        other = at.robot()
        other.announce("real-2", 1, 100)
        assert other.observe().images.shape == (3, 16, 16, 3)
        with pytest.raises(ValueError, match="another client drives"):
            other.reset("stack", 1)
        other.close()
        assert list(robot.play(np.zeros((2, 8), np.float32)))
        robot.close()


def test_what_the_host_refuses_is_said_in_its_words():
    with serving() as at:
        robot = at.robot()
        robot.announce("real-1", 1, 100)
        with pytest.raises(ValueError, match="no prompts for the task 'unknown'"):
            robot.reset("unknown", 0)
        robot.close()


def test_a_discarded_episode_raises_from_the_label():
    with serving() as at:
        say(at, discarded=True, success=None)
        robot = at.robot()
        trajectory = run_episode(robot, Drift(), request(max_ticks=3), robot.finished)
        with pytest.raises(DiscardedError, match="Ann"):
            DroidLabels(robot).label(replace(trajectory, ending="done"))
        robot.close()


def test_wrong_addresses_tokens_and_versions_are_one_clear_error():
    with serving() as at:
        with pytest.raises(ValueError, match=r"check robot\.token_file"):
            DroidRobot(at.address, "another token")
        header = {"Authorization": f"Bearer {TOKEN}"}
        with (
            pytest.raises(InvalidStatus) as caught,
            connect(at.address, additional_headers=header, origin="http://evil.example"),
        ):
            pass
        assert caught.value.response.status_code == 403
    with pytest.raises(ValueError, match="no robot's host answers"):
        DroidRobot(at.address, TOKEN)
    with serving(FACTS | {"protocol": 99}) as at, pytest.raises(ValueError, match="protocol 99"):
        at.robot()
    with pytest.raises(ValueError, match="at least 16"):
        EndpointSettings("0.0.0.0", 0, "short")


def nonsense(rng):
    """Messages that are damaged, foreign or out of place, by the seed."""
    fair = {"number": 1, "ask": "play", "actions": np.zeros((4, 8)), "seen": 0, "latency_s": 0.1}
    whole = pack(fair)
    wrong = [
        rng.bytes(int(rng.integers(0, 200))),
        whole[: int(rng.integers(0, len(whole)))],
        pack(fair | {"actions": np.zeros((int(rng.integers(0, 3)), 7))}),
        pack(fair | {"ask": "move"}),
        pack(fair | {"seen": "now"}),
        pack({"number": True, "ask": "hold"}),
        pack([1, 2, 3]),
        "text",
        pack({"number": 1, "ask": "reset", "task": "stack", "seed": 1.5}),
        pack({"number": 1, "ask": "label", "episode": "../elsewhere"}),
        pack({"number": 1, "ask": "label", "episode": ""}),
    ]
    return wrong[int(rng.integers(len(wrong)))]


class Answers:
    """What a talk would send."""

    def __init__(self):
        self.said = []

    def answer(self, number, message):
        del number
        self.said.append(message)


def test_ten_thousand_messages_that_make_no_sense_move_nothing():
    rng = np.random.default_rng(7)
    arm = FakeArm(time.monotonic)
    rig = Rig(arm, FakeCameras(time.monotonic), FakePerson())
    control, talk = Control(rig), Answers()
    endpoint = Endpoint(control, rig, FACTS, EndpointSettings())
    for turn in range(10_000):
        endpoint._hear("a stranger", talk, nonsense(rng))
        if turn % 100 == 0:
            control.tick(time.monotonic())
    assert len(talk.said) == 10_000
    assert all("error" in message for message in talk.said)
    assert arm.sent == []
    assert control.health()["fault"] == ""


def test_nonsense_over_the_wire_is_answered_and_moves_nothing():
    rng = np.random.default_rng(8)
    header = {"Authorization": f"Bearer {TOKEN}"}
    with serving() as at:
        with connect(at.address, additional_headers=header, compression=None) as socket:
            socket.recv(timeout=5)
            for _ in range(300):
                socket.send(nonsense(rng))
                assert "error" in unpack(socket.recv(timeout=5))
        assert at.moved() == 0
        assert at.control.health()["fault"] == ""
        robot = at.robot()
        robot.announce("real-1", 1, 100)
        assert robot.reset("stack", 0)
        robot.close()


def test_nonsense_from_whoever_drives_costs_it_the_connection_and_the_arm_is_held():
    with serving() as at:
        robot = at.robot()
        robot.announce("real-1", 1, 100)
        robot.reset("stack", 0)
        moments = robot.play(np.full((60, 8), 0.01, np.float32))
        next(moments)
        robot._socket.send(b"nonsense")
        with pytest.raises(ConnectionError, match="is gone"):
            list(moments)
        at.wait(lambda: at.control.health()["doing"] == "idle")
        assert at.arm.sent[-1] is HOLD
        robot.close()


def test_strangers_get_nowhere():
    with serving() as at:
        for turn in range(200):
            headers = {"Authorization": f"Bearer {TOKEN[:-1]}{turn}"} if turn % 2 else {}
            refused = pytest.raises(InvalidStatus)
            with refused, connect(at.address, additional_headers=headers):
                pass
        assert at.moved() == 0
