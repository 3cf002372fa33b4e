"""The person at the robot: every step, every refusal, and what a restart remembers."""

import errno
import json
import os
import threading

import pytest

from contracts.statistics import wilson
from envs.droid.console.journal import Journal
from envs.droid.console.prompts import Prompts
from envs.droid.desk import Desk, RefusedError, Shown
from envs.mujoco.draw import Draw
from envs.mujoco.erase import Erase
from envs.mujoco.scoop import Scoop
from envs.mujoco.stack import Stack

STATES = ("waiting_for_reset", "ready", "running", "to_label", "stopped")


class Clock:
    """Stands still until told."""

    def __init__(self):
        self.s = 100.0

    def __call__(self):
        return self.s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def open_desk(tmp_path, clock):
    """``open_desk()``: the desk of one journal; opening again is a restart of the host."""
    opened = []

    def start():
        if opened:
            opened.pop().close()
        moments = iter(f"2026-11-26T12:00:{second:02d}.000+00:00" for second in range(60))
        opened.append(Desk(tmp_path / "desk.jsonl", None, 3.0, clock, lambda: next(moments)))
        return opened[0]

    yield start
    opened.pop().close()


@pytest.fixture
def desk(open_desk):
    return open_desk()


def shown(desk):
    view = desk.view()
    return Shown(view["state"], view["trajectory_id"], view["turn"])


def state(desk):
    return desk.view()["state"]


def episode(name="a", task="book", version=3, **more):
    return {
        "trajectory_id": name,
        "task": task,
        "instruction": "open the book",
        "policy_version": version,
        "max_ticks": 150,
        **more,
    }


def bring(desk, wanted, name="a"):
    """By the straight way from a fresh desk."""
    steps = (
        lambda: desk.reset_done("Ann", shown(desk)),
        lambda: (desk.start("Ann", shown(desk)), desk.began(episode(name))),
        lambda: desk.ended(episode(name, ending="timeout")),
    )
    if wanted == "stopped":
        desk.stop("Ann")
        return
    for step in steps[: STATES.index(wanted)]:
        step()
    assert state(desk) == wanted


def test_one_episode_after_another(desk, clock):
    assert not desk.may_start()
    desk.reset_done("Ann", shown(desk))
    assert state(desk) == "ready"
    assert not desk.may_start()
    desk.start("Ann", shown(desk))
    assert desk.may_start()
    desk.began(episode("a"))
    assert state(desk) == "running"
    assert not desk.may_start()
    clock.s += 2.5
    assert desk.view()["elapsed_s"] == pytest.approx(2.5)
    desk.ended(episode("a", ending="timeout"))
    assert state(desk) == "to_label"
    assert desk.label("a") is None
    desk.say("Bob", shown(desk), "failure", 40)
    assert state(desk) == "waiting_for_reset"
    assert not desk.may_start()
    desk.reset_done("Bob", shown(desk))
    assert desk.label("a") == {
        "trajectory_id": "a",
        "success": False,
        "discarded": False,
        "who": "Bob",
        "when": "2026-11-26T12:00:04.000+00:00",
        "progress": 40,
    }
    desk.start("Bob", shown(desk))
    desk.began(episode("b"))
    assert desk.view()["trajectory_id"] == "b"


@pytest.mark.parametrize(
    ("outcome", "success", "discarded"),
    [("success", True, False), ("failure", False, False), ("discard", None, True)],
)
def test_outcomes(desk, clock, outcome, success, discarded):
    bring(desk, "to_label")
    desk.say("Ann", shown(desk), outcome)
    clock.s += 3
    label = desk.label("a")
    assert (label["success"], label["discarded"], label["progress"]) == (success, discarded, None)


PERSON = {
    "reset_done": (lambda d, who, at: d.reset_done(who, at), {"waiting_for_reset"}),
    "start": (lambda d, who, at: d.start(who, at), {"ready"}),
    "say": (lambda d, who, at: d.say(who, at, "success"), {"running", "to_label"}),
    "undo": (lambda d, who, at: d.undo(who, at), set()),  # allowed for 3 s only; see below
    "clear": (lambda d, who, at: d.clear(who, at), {"stopped"}),
}


@pytest.mark.parametrize("act", PERSON)
@pytest.mark.parametrize("at", STATES)
def test_each_action_works_in_its_states_and_nowhere_else(desk, at, act):
    bring(desk, at)
    before = desk.view()
    do, allowed = PERSON[act]
    if at in allowed:
        do(desk, "Ann", shown(desk))
        assert desk.view()["turn"] == before["turn"] + 1
    else:
        with pytest.raises(RefusedError, match=r"nothing done|too late"):
            do(desk, "Ann", shown(desk))
        assert desk.view() == before


@pytest.mark.parametrize("act", PERSON)
@pytest.mark.parametrize("at", STATES)
@pytest.mark.parametrize("wrong", ["state", "trajectory_id", "turn", "who"])
def test_a_stale_page_and_a_nameless_person_do_nothing(desk, at, act, wrong):
    bring(desk, at)
    before, now = desk.view(), shown(desk)
    who = "" if wrong == "who" else "Ann"
    stale = Shown(
        "x" if wrong == "state" else now.state,
        "x" if wrong == "trajectory_id" else now.trajectory_id,
        now.turn - 1 if wrong == "turn" else now.turn,
    )
    with pytest.raises(RefusedError):
        PERSON[act][0](desk, who, stale)
    assert desk.view() == before


def test_a_page_of_the_episode_before_labels_nothing(desk):
    bring(desk, "to_label", "a")
    old = shown(desk)
    desk.say("Ann", old, "success")
    bring(desk, "to_label", "b")
    with pytest.raises(RefusedError, match=r"still showed to label of a, by now .* to label of b"):
        desk.say("Ann", old, "failure")
    assert desk.label("b") is None


def test_a_pedal_that_bounces_counts_once(desk):
    bring(desk, "to_label")
    once = shown(desk)
    desk.say("Ann", once, "success")
    with pytest.raises(RefusedError, match="Look again"):
        desk.say("Ann", once, "success")


@pytest.mark.parametrize("at", STATES)
def test_stop_works_from_everywhere_and_only_clear_leaves_it(desk, at):
    bring(desk, at)
    desk.stop()
    assert desk.stop_asked()
    assert not desk.may_start()
    assert state(desk) == "stopped"
    if at == "running":
        with pytest.raises(RefusedError, match="has not ended the episode yet"):
            desk.clear("Ann", shown(desk))
        desk.ended(episode(ending="aborted:operator stop"))
        assert state(desk) == "stopped"
    desk.clear("Ann", shown(desk))
    assert not desk.stop_asked()
    assert state(desk) == ("to_label" if at in ("running", "to_label") else "waiting_for_reset")
    assert not desk.may_start()


def test_a_second_stop_outdates_a_clear(desk):
    desk.stop("Ann")
    before = shown(desk)
    desk.stop("Bob")
    with pytest.raises(RefusedError):
        desk.clear("Ann", before)
    assert desk.stop_asked()


def test_a_stop_withdraws_the_start(desk):
    bring(desk, "ready")
    desk.start("Ann", shown(desk))
    desk.stop("Ann")
    with pytest.raises(ValueError, match="a may not begin: the desk is stopped"):
        desk.began(episode())
    desk.clear("Ann", shown(desk))
    assert not desk.may_start()
    assert state(desk) == "waiting_for_reset"


def test_a_fault_latches_with_its_reason(desk):
    bring(desk, "running")
    desk.fault("camera wrist is 400 ms old")
    desk.fault("and another")
    assert desk.stop_asked()
    assert desk.view()["stopped"] == "fault: camera wrist is 400 ms old"


def test_a_person_ends_an_episode_by_saying_what_it_was(desk, clock):
    bring(desk, "running")
    assert not desk.finished()
    desk.say("Ann", shown(desk), "failure")
    desk.say("Ann", shown(desk), "success", 90)  # thought better of it before the host noticed
    assert desk.finished()
    assert desk.label("a") is None
    desk.ended(episode(ending="done"))
    assert not desk.finished()
    assert state(desk) == "waiting_for_reset"
    clock.s += 3
    assert (desk.label("a")["success"], desk.label("a")["progress"]) == (True, 90)


@pytest.mark.parametrize("stopped", [True, False])
def test_what_was_said_before_a_fault_is_asked_again(desk, stopped):
    bring(desk, "running")
    desk.say("Ann", shown(desk), "success")
    if stopped:
        desk.stop("Ann")
    desk.ended(episode(ending="done" if stopped else "aborted:reflex"))
    if stopped:
        desk.clear("Ann", shown(desk))
    assert state(desk) == "to_label"
    assert desk.label("a") is None


def test_undo_until_the_host_may_have_it(desk, clock):
    bring(desk, "to_label")
    desk.say("Ann", shown(desk), "success")
    clock.s += 2.9
    assert desk.label("a") is None
    desk.undo("Ann", shown(desk))
    assert state(desk) == "to_label"
    desk.say("Ann", shown(desk), "failure")
    clock.s += 3.1
    with pytest.raises(RefusedError, match="too late"):
        desk.undo("Ann", shown(desk))
    assert desk.label("a")["success"] is False


def test_the_host_is_told_of_its_mistakes(desk):
    with pytest.raises(ValueError, match="a may not begin: the desk is waiting_for_reset"):
        desk.began(episode())
    with pytest.raises(ValueError, match=r"episode\['max_ticks'\]=None must be int"):
        desk.began({**episode(), "max_ticks": None})
    with pytest.raises(ValueError, match=r"episode\['policy_version'\]=True must be int"):
        desk.began({**episode(), "policy_version": True})
    with pytest.raises(ValueError, match="must not be empty"):
        desk.began(episode(""))
    with pytest.raises(ValueError, match="a ended, but none began"):
        desk.ended(episode(ending="done"))
    bring(desk, "to_label")
    desk.ended(episode(ending="done"))  # told twice
    assert desk.view()["episode"]["ending"] == "timeout"
    desk.say("Ann", shown(desk), "success")
    bring(desk, "ready", "a")
    desk.start("Ann", shown(desk))
    with pytest.raises(ValueError, match="a was run before"):
        desk.began(episode("a"))


def test_the_scene_is_laid_for_the_episode_that_comes(desk):
    instruction = desk.expect("stack", 7)
    assert desk.view()["scene"]["instruction"] == instruction
    desk.reset_done("Ann", shown(desk))
    desk.expect("stack", 7)  # asked again: still laid
    assert state(desk) == "ready"
    desk.expect("stack", 8)
    assert state(desk) == "waiting_for_reset"
    desk.reset_done("Ann", shown(desk))
    desk.start("Ann", shown(desk))
    with pytest.raises(ValueError, match="but the scene was laid for 'stack'"):
        desk.began(episode("a", "book"))
    desk.began(episode("a", "stack", instruction=desk.view()["scene"]["instruction"]))
    with pytest.raises(ValueError, match="a still runs"):
        desk.expect("stack", 9)
    desk.ended(episode("a", "stack", ending="timeout"))
    desk.say("Ann", shown(desk), "success")
    with pytest.raises(RefusedError, match="has not said yet what comes next"):
        desk.reset_done("Ann", shown(desk))
    desk.expect("stack", 7)  # the same scene as an episode ago is still to be laid again
    desk.reset_done("Ann", shown(desk))


@pytest.mark.parametrize(
    ("until", "then"),
    [
        ("waiting_for_reset", "waiting_for_reset"),
        ("ready", "waiting_for_reset"),  # whatever happened meanwhile: look at the scene again
        ("running", "to_label"),
        ("to_label", "to_label"),
        ("stopped", "stopped"),
    ],
)
def test_a_restart_goes_on_where_the_journal_ends(open_desk, until, then):
    desk = open_desk()
    bring(desk, until)
    turn = desk.view()["turn"]
    desk = open_desk()
    assert state(desk) == then
    assert desk.view()["turn"] >= turn
    assert desk.stop_asked() == (until == "stopped")
    assert not desk.may_start()
    if until == "running":
        assert desk.view()["episode"]["ending"] == "aborted:the robot host was restarted"


def test_labels_and_tally_survive_a_restart(open_desk):
    desk = open_desk()
    for number, outcome in enumerate(["success", "failure", "success", "discard"]):
        bring(desk, "to_label", f"e{number}")
        desk.say("Ann", shown(desk), outcome, 10 * number)
    before = desk.view()["tally"]
    desk = open_desk()
    assert desk.view()["tally"] == before
    interval = wilson(2, 3)
    assert before == [
        {
            **{"task": "book", "policy_version": 3, "success": 2, "failure": 1, "discard": 1},
            **{"n": 3, "low": interval.low, "high": interval.high},
        }
    ]
    assert [desk.label(f"e{k}")["success"] for k in range(4)] == [True, False, True, None]
    assert [desk.label(f"e{k}")["progress"] for k in range(4)] == [0, 10, 20, 30]


def test_rates_of_different_policies_are_not_mixed(desk):
    for number, version in enumerate([0, 0, 1]):
        desk.reset_done("Ann", shown(desk))
        desk.start("Ann", shown(desk))
        desk.began(episode(f"e{number}", version=version))
        desk.ended(episode(f"e{number}", version=version, ending="timeout"))
        desk.say("Ann", shown(desk), "success" if number else "failure")
    rows = [(r["policy_version"], r["success"], r["n"]) for r in desk.view()["tally"]]
    assert rows == [(0, 1, 2), (1, 1, 1)]


def test_the_journal_says_who_when_and_what(desk, tmp_path):
    bring(desk, "to_label")
    desk.say("Bob", shown(desk), "success", 80)
    entries = [json.loads(line) for line in (tmp_path / "desk.jsonl").read_text().splitlines()]
    said = [(e["act"], e["who"]) for e in entries]
    assert said == [
        *(("reset_done", "Ann"), ("start", "Ann"), ("began", "robot host")),
        *(("ended", "robot host"), ("label", "Bob")),
    ]
    assert entries[-1] == {
        **{"act": "label", "trajectory_id": "a", "who": "Bob", "outcome": "success"},
        **{"progress": 80, "when": "2026-11-26T12:00:04.000+00:00"},
    }


def test_a_line_that_a_crash_cut_short_never_counted(open_desk, tmp_path):
    desk = open_desk()
    bring(desk, "to_label")
    whole = (tmp_path / "desk.jsonl").read_bytes()
    with (tmp_path / "desk.jsonl").open("ab") as file:
        file.write(b'{"act": "label", "trajectory_id": "a", "outc')
    desk = open_desk()
    assert state(desk) == "to_label"
    assert (tmp_path / "desk.jsonl").read_bytes() == whole
    desk.say("Ann", shown(desk), "success")
    assert desk.view()["tally"][0]["success"] == 1


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("nonsense", "line 1 is damaged"),
        ("[1]", "line 1 is no entry of a desk"),
        ('{"act": "fly"}', "line 1 makes no sense.*fly"),
        ('{"act": "label"}', "line 1 makes no sense.*trajectory_id"),
    ],
)
def test_a_damaged_journal_is_named(tmp_path, line, why):
    (tmp_path / "desk.jsonl").write_text(line + '\n{"act": "stop", "why": "x"}\n')
    with pytest.raises(ValueError, match=f"desk.jsonl, {why}"):
        Desk(tmp_path / "desk.jsonl")


def test_one_robot_has_one_desk(desk, tmp_path):
    with pytest.raises(ValueError, match="open in another process: one robot has one desk"):
        Desk(tmp_path / "desk.jsonl")


def test_a_full_disk_loses_no_label_silently_and_never_holds_up_a_stop(desk, monkeypatch):
    bring(desk, "to_label")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(RefusedError, match=r"desk\.jsonl cannot be written .*Make room"):
            desk.say("Ann", shown(desk), "success")
        assert state(desk) == "to_label"
        desk.stop("Ann")
        assert desk.stop_asked()
        assert state(desk) == "stopped"
        assert "cannot be written" in desk.view()["trouble"]
    desk.clear("Ann", shown(desk))
    desk.say("Ann", shown(desk), "success")
    assert desk.view()["tally"][0]["success"] == 1
    assert desk.view()["trouble"] == ""


def test_half_a_write_leaves_the_journal_whole(tmp_path, monkeypatch):
    journal, write = Journal(tmp_path / "j"), os.write
    journal.append({"act": "stop", "why": "1"})
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, line: write(file, line[:5]))
        with pytest.raises(OSError, match="only a part"):
            journal.append({"act": "stop", "why": "2"})
    journal.append({"act": "stop", "why": "3"})
    journal.close()
    assert [entry["why"] for entry in Journal(tmp_path / "j").entries] == ["1", "3"]


def test_a_stop_waits_for_no_disk(desk, monkeypatch):
    """Somebody else's entry hangs in the disk; the next tick of the robot still sees the stop."""
    inside, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(os, "fsync", lambda _: (inside.set(), go_on.wait(10)))
    writer = threading.Thread(target=lambda: desk.reset_done("Ann", shown(desk)))
    writer.start()
    assert inside.wait(10)
    stopper = threading.Thread(target=desk.stop)
    stopper.start()
    for _ in range(1000):
        if desk.stop_asked():
            break
        stopper.join(0.005)
    assert desk.stop_asked()
    assert stopper.is_alive()
    go_on.set()
    writer.join()
    stopper.join()
    assert state(desk) == "stopped"


def test_of_many_hands_one_counts(desk):
    bring(desk, "to_label")
    once, refused = shown(desk), []

    def press(outcome):
        try:
            desk.say("Ann", once, outcome)
        except RefusedError as error:
            refused.append(error)

    hands = [threading.Thread(target=press, args=(o,)) for o in ["success", "failure"] * 8]
    for hand in hands:
        hand.start()
    for hand in hands:
        hand.join()
    assert len(refused) == 15
    assert sum(desk.view()["tally"][0][o] for o in ("success", "failure")) == 1


def test_outcomes_and_progress_are_checked(desk):
    bring(desk, "to_label")
    for outcome, progress in (("maybe", None), ("success", -1), ("success", 101)):
        with pytest.raises(RefusedError, match=r"outcome 'maybe'|progress"):
            desk.say("Ann", shown(desk), outcome, progress)


def test_prompts_are_functions_of_task_and_seed():
    first, second = Prompts(), Prompts()
    draws = [first.draw("stack", seed) for seed in range(200)]
    assert draws == [second.draw("stack", seed) for seed in range(200)]
    assert {d.instruction for d in draws} == set(Stack.instructions)  # all 12 of the simulated task
    for draw in draws:
        words = draw.instruction.split()
        assert words[2] != words[6]
        assert f"{words[2]} block" in draw.scene
        assert f"{words[6]} block" in draw.scene
    assert len({d.scene for d in draws}) > 150


@pytest.mark.parametrize(
    ("task", "simulated"), [("scoop", Scoop), ("draw", Draw), ("erase", Erase)]
)
def test_the_simulated_tasks_instructions_are_among_the_prompts(task, simulated):
    drawn = {Prompts().draw(task, seed).instruction for seed in range(200)}
    assert set(simulated.instructions) <= drawn


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("[fold", "is no table of prompts"),
        ("fold = 3", r"section \[fold\]: must be a section"),
        ("[fold]\nscene = 'x'", r"section \[fold\]: needs instructions"),
        ("[fold]\ninstructions = []\nscene = 'x'", "needs instructions"),
        ("[fold]\ninstructions = ['a']\nscene = '{place1}'", "{place1} asks for more than"),
        ("[fold]\ninstructions = ['{c3}']\nscene = ''\nlists = {c=['a','b']}", r"holds \(2\)"),
        ("[fold]\ninstructions = ['{c0}']\nscene = ''\nlists = {c=['a','b']}", "{c0} asks"),
        ("[fold]\ninstructions = ['a']\nscene = ''\nlists = {c=['a','a']}", "different texts"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(tmp_path, table, why):
    (tmp_path / "mine.toml").write_text(table)
    with pytest.raises(ValueError, match=why):
        Prompts(tmp_path / "mine.toml")


def test_a_task_without_prompts_says_where_to_add_them(desk):
    with pytest.raises(ValueError, match=r"no prompts for the task 'fold'.*add a section \[fold\]"):
        desk.expect("fold", 0)
