"""The whole host on simulated physics: its command line, its records, and a person at its page."""

import json
import threading
import time

import av
import numpy as np
import pytest

from actors.rollout import EpisodeRequest, RolloutActor
from contracts.constants import VIEWS
from contracts.types import ActionChunk
from envs.droid import records
from envs.droid.client import DroidLabels, DroidRobot
from envs.droid.host import Settings, arguments, hosting
from envs.droid.records import EpisodeRecords
from tests.unit.rig import Bench
from tools.chromium import Chromium

SMALL = ["--backend", "mujoco", "--size", "32x48", "--port", "0", "--console-port", "0"]


CROWDED = """
[limits]  # tests beside it take the processor away
late_s = 5
clock_jump_s = 60
[calibration]
wrist = [0.1, 0.2]
"""


def settings(tmp_path, *more):
    (rig := tmp_path / "crowded.toml").write_text(CROWDED)
    where = ["--records", str(tmp_path / "records"), "--rig", str(rig)]
    return Settings.read(arguments([*SMALL, *where, *more]))


class Reach:
    """Turns the base a little, forth and back."""

    version = 4

    def act(self, observations, seeds):
        del seeds
        assert observations[0].images.shape == (3, 32, 48, 3)
        plan = np.zeros((12, 8), np.float32)
        plan[:6, 0], plan[6:, 0] = 0.1, -0.1
        return [ActionChunk(plan, self.version)]


def request(name="real-1", max_ticks=15):
    return EpisodeRequest(name, "book", 1, seed=5, max_ticks=max_ticks, settle_ticks=1)


def roll_out(address, *requests, token=""):
    robot = DroidRobot(address, token)
    actor = RolloutActor(lambda: (robot, DroidLabels(robot), robot.finished), Reach())
    try:
        return [actor.collect(one) for one in requests]
    finally:
        actor.close()


def test_without_a_person_an_episode_is_judged_by_the_simulator_and_every_tick_is_kept(tmp_path):
    with hosting(settings(tmp_path, "--unattended")) as (address, page, _):
        ((trajectory, label),) = roll_out(address, request())
    assert page == ""
    assert (trajectory.num_ticks, trajectory.ending) == (15, "timeout")
    assert (label.success, label.source) == (False, "simulator")
    assert trajectory.instruction == "open the book"
    moved = trajectory.joint_position[6, 0] - trajectory.joint_position[0, 0]
    assert 0.02 < moved < 0.12  # 6 ticks that ask for 0.02 rad each
    (folder,) = (tmp_path / "records").glob("real-1.*")
    rows = np.load(folder / "ticks.npz")
    sent = np.isfinite(rows["action_sent"][:, 0])
    assert sent.sum() == 15
    np.testing.assert_array_equal(rows["action_sent"][sent], trajectory.actions)
    assert (np.diff(rows["tick"]) == 1).all()
    told = json.loads((folder / "episode.json").read_text())
    assert (told["ending"], told["ticks_not_recorded"]) == ("timeout", 0)
    assert (told["rig"]["backend"], told["rig"]["simulated"]) == ("mujoco", True)
    assert told["rig"]["calibration"] == {"wrist": [0.1, 0.2]}
    assert told["rig"]["gains"]["joint_stiffness"] == [40, 30, 50, 25, 35, 25, 10]
    plans = rows["chunk"][sent], rows["row_in_chunk"][sent]
    assert list(zip(*plans, strict=True)) == [(k // 12, k % 12) for k in range(15)]
    assert (rows["query_latency_ms"][sent] > 0).all()
    for view in VIEWS:
        with av.open(str(folder / f"{view}.mp4")) as film:
            assert sum(1 for _ in film.decode(video=0)) == len(rows["tick"])


def test_two_episodes_follow_each_other(tmp_path):
    with hosting(settings(tmp_path, "--unattended")) as (address, _, _control):
        first, second = roll_out(address, request(max_ticks=6), request("real-2", max_ticks=6))
    assert (first[0].id, second[0].id) == ("real-1", "real-2")


def test_a_disk_that_hangs_costs_ticks_of_the_record_and_never_delays_the_arm(
    tmp_path, monkeypatch
):
    gate, written = threading.Event(), []

    class Slow:
        def __init__(self, folder):
            gate.wait(20)

        def add(self, tick):
            written.append(tick)

        def finish(self, episode):
            written.append(episode)

    monkeypatch.setattr(records, "_Episode", Slow)
    kept = EpisodeRecords(tmp_path / "records")
    began = time.monotonic()
    kept.begin({"trajectory_id": "a"})
    seen = Bench()
    seen.tick()
    for _ in range(2 * records.QUEUED):
        kept.tick(seen.control.latest)
    kept.end({"trajectory_id": "a"})
    assert time.monotonic() - began < 5
    gate.set()
    kept.close()
    assert written[-1]["ticks_not_recorded"] >= records.QUEUED - 1
    assert len(written) - 1 + written[-1]["ticks_not_recorded"] == 2 * records.QUEUED


@pytest.mark.browser
def test_a_person_at_the_page_starts_labels_stops_and_clears(tmp_path):
    """By keys: reset done, start, success; then start, stop, and the episode is aborted."""
    key = tmp_path / "token"
    key.write_text("a token of enough letters\n")
    found = []

    def state(name):
        browser.until(f"document.body.dataset.state === '{name}'")

    def press(act, letter):
        browser.until(f"!document.querySelector('[data-act={act}]').disabled")
        browser.press(letter)

    with (
        hosting(settings(tmp_path, "--token-file", str(key))) as (address, page, control),
        Chromium(tmp_path / "profile", 1280, 900) as browser,
    ):
        wanted = (request(max_ticks=600), request("real-2", max_ticks=600))
        run = threading.Thread(
            target=lambda: found.extend(roll_out(address, *wanted, token=key.read_text().strip()))
        )
        run.start()
        browser.open(page)
        browser.until("document.getElementById('instruction').innerText === 'open the book'")
        browser.click("#who")
        browser.type("Ann Lee")
        browser.press("Enter")
        for letter, ends in (("s", "waiting_for_reset"), (" ", "stopped")):
            press("reset_done", "r")
            state("ready")
            press("start", "Enter")
            state("running")
            browser.until("document.getElementById('timer').innerText === '0:01'")
            browser.picture(tmp_path / "running.png")
            browser.press(letter)
            state(ends)
        time.sleep(0.2)  # the arm's loop hears of it at its next tick
        assert control.health()["fault"].startswith("operator_stop")
        browser.until("!document.querySelector('[data-act=clear]').disabled")
        time.sleep(0.4)  # a click within 0.35 s of a change is not meant for what is there now
        browser.click("[data-act=clear]")
        state("to_label")
        assert control.health()["fault"] == ""
        browser.press("f")
        run.join(20)
        assert not run.is_alive()
    (good, first), (stopped, second) = found
    assert (good.ending, first.success, first.operator) == ("done", True, "Ann Lee")
    assert stopped.ending.startswith("aborted:operator_stop")
    assert (second.success, second.source) == (False, "human")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--host", "0.0.0.0"], "--token-file"),
        (["--size", "big"], "--size big"),
        (["--speed", "2"], "speed=2"),
        (["--token-file", "/nowhere"], "--token-file /nowhere"),
        (["--rig", "/nowhere"], "--rig /nowhere"),
        (["--console-host", "0.0.0.0"], "token"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(tmp_path, more, words):
    with (
        pytest.raises(ValueError, match=words) as caught,
        hosting(settings(tmp_path, *more)),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_a_rig_file_sets_limits_and_knows_no_others(tmp_path):
    rig = tmp_path / "rig.toml"
    rig.write_text("[limits]\nspeed = 0.25\nbox_low = [0.3, -0.3, 0.1]\n")
    limits = settings(tmp_path, "--rig", str(rig)).limits
    assert (limits.speed, limits.box_low) == (0.25, (0.3, -0.3, 0.1))
    rig.write_text("[limit]\nspeed = 0.25\n")
    with pytest.raises(ValueError, match=r"\[limit\] is unknown"):
        settings(tmp_path, "--rig", str(rig))


@pytest.mark.zerorpc
def test_hardware_is_never_driven_without_a_person(tmp_path):
    rig = tmp_path / "rig.toml"
    views = "".join(f"{view} = 'video.mp4'\n" for view in VIEWS)
    rig.write_text(f"[arm]\naddress = 'tcp://127.0.0.1:1'\n[cameras]\nkind = 'uvc'\n{views}")
    arm = ["--backend", "droid_zerorpc", "--rig", str(rig), "--unattended"]
    with (
        pytest.raises(ValueError, match="needs a person"),
        hosting(settings(tmp_path, *arm)),
    ):
        pass
