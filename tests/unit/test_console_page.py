"""The console in headless Chromium: real clicks and keys, at the size of a desk and of a phone.

CONSOLE_PICTURES=<folder> keeps the screenshots for somebody to look at.
"""

import json
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from envs.droid.console.demo import DemoHost
from envs.droid.console.server import Console, ConsoleSettings, serving
from envs.droid.desk import Desk, Shown
from tools.chromium import Chromium

pytestmark = pytest.mark.browser
TOKEN = "only-the-lab-knows-this"
SIZES = {"desk": (1280, 800), "phone": (390, 844)}


class Table:
    """A desk, a robot that is not there, and one tab of a browser at it."""

    def __init__(self, folder, page):
        self.journal, self.page, self.folder = folder / "desk.jsonl", page, folder
        self.desk = Desk(self.journal, undo_s=1.0)
        self.host = DemoHost(self.desk, ("stack", "book"), max_ticks=900)
        self.pictures = Path(os.environ.get("CONSOLE_PICTURES", folder))
        self.thread = threading.Thread(target=self.host.run)
        self.thread.start()

    def close(self):
        self.host.close()
        self.thread.join(10)
        self.desk.close()

    @contextmanager
    def served(self, port=0, alone_s=30.0):
        settings = ConsoleSettings(port=port, token=TOKEN, alone_s=alone_s)
        console = Console(self.desk, self.host.rig(), settings)
        with serving(console, settings) as address:
            yield console, address

    def open(self, address):
        self.page.open(address)
        self.reach("waiting_for_reset")

    def reach(self, state):
        self.page.until(f"document.body.dataset.state === '{state}'")

    def can(self, act):
        self.page.until(f"!document.querySelector('[data-act={act}]').disabled")
        time.sleep(0.4)  # a click within 0.35 s of a change is not meant for what is there now

    def click(self, act):
        self.can(act)
        self.page.click(f"[data-act={act}]")

    def name(self, name="Ann Lee"):
        self.page.click("#who")
        self.page.type(name)
        self.page.press("Enter")

    def bring(self, state):
        """By keys, as far as it takes."""
        for now, act, key, then in (
            ("waiting_for_reset", "reset_done", "r", "ready"),
            ("ready", "start", "Enter", "running"),
        ):
            if self.page.run("document.body.dataset.state") == now != state:
                self.can(act)
                self.page.press(key)
                self.reach(then)

    def picture(self, name):
        for size, shape in SIZES.items():
            self.page.resize(*shape)
            time.sleep(0.3)
            self.page.picture(self.pictures / f"{name}_{size}.png")
        self.page.resize(*SIZES["desk"])

    def labels(self):
        entries = map(json.loads, self.journal.read_text().splitlines())
        return [(e["who"], e["outcome"], e["progress"]) for e in entries if e["act"] == "label"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("profile"), 1280, 900) as page:
        page.resize(*SIZES["desk"])
        yield page


@pytest.fixture
def table(tmp_path, browser):
    table = Table(tmp_path, browser)
    yield table
    browser.open("about:blank")
    table.close()


@pytest.fixture
def at(table):
    with table.served() as (console, address):
        table.console = console
        table.open(address)
        table.name()  # every port is a site of its own, which knows nobody yet
        yield table


def test_nobody_acts_without_a_name(at):
    at.page.run("localStorage.clear()")
    at.page.reload()
    at.reach("waiting_for_reset")
    at.picture("1_no_name")
    at.click("reset_done")
    at.page.until("document.getElementById('said').innerText.includes('Say who you are')")
    assert at.desk.view()["state"] == "waiting_for_reset"
    at.name()
    at.page.reload()
    at.reach("waiting_for_reset")
    assert at.page.run("document.getElementById('who').value") == "Ann Lee"
    assert TOKEN not in at.page.run("location.href")


def test_an_episode_by_mouse_with_progress(at):
    at.page.until("[...document.images].filter((i) => i.naturalWidth > 0).length === 3")
    assert (
        at.page.run("document.getElementById('instruction').innerText")
        == (at.desk.view()["scene"]["instruction"])
    )
    at.picture("2_lay_the_scene")
    at.click("reset_done")
    at.reach("ready")
    at.picture("3_ready")
    at.click("start")
    at.reach("running")
    at.page.until("document.getElementById('timer').innerText === '0:01'")
    at.picture("4_running")
    at.host.fault = "camera wrist is 400 ms old"
    at.reach("stopped")
    at.page.until("!document.querySelector('[data-act=clear]').disabled")
    at.picture("5_fault")
    at.click("clear")
    at.reach("to_label")
    at.page.run(
        "(() => { const s = document.getElementById('slider'); s.value = 70;"
        " s.dispatchEvent(new Event('input')); })()"
    )
    at.picture("6_label")
    at.click("failure")
    at.reach("waiting_for_reset")
    at.picture("7_undo")
    at.can("reset_done")
    assert at.labels() == [("Ann Lee", "failure", 70)]
    assert at.page.run("document.getElementById('tally').innerText").split("\t") == [
        *("stack", "v0", "0 of 1", "0 %", "0\u201379 %", "0")
    ]


def test_keys_and_undo(at):
    at.bring("running")
    at.page.press("s")
    at.reach("waiting_for_reset")
    at.page.press("u")
    at.reach("to_label")
    at.page.press("d")
    at.reach("waiting_for_reset")
    at.bring("running")
    at.page.press("f")
    at.reach("waiting_for_reset")
    assert [outcome for _, outcome, _ in at.labels()] == ["success", "discard", "failure"]


@pytest.mark.parametrize("key", [" ", "Escape"])
@pytest.mark.parametrize("focus", ["body", "[data-act=success]", "#slider", "#who", "summary"])
def test_space_and_escape_stop_whatever_has_the_focus(at, key, focus):
    at.bring("running")
    at.page.run(f"document.querySelector('{focus}').focus()")
    at.page.press(key)
    at.reach("stopped")
    assert at.labels() == []
    assert at.desk.view()["pending"] == ""
    at.page.press("c")
    at.page.press("Enter")
    time.sleep(0.3)
    assert at.desk.stop_asked()  # no key clears a stop


def test_stop_by_finger_from_every_state_and_always_in_the_same_place(at):
    at.page.resize(*SIZES["phone"])
    places = set()
    for state in ("waiting_for_reset", "ready", "running"):
        at.bring(state)
        places.add(tuple(at.page.run(PLACE)))
        at.page.click("[data-act=stop]")
        at.reach("stopped")
        places.add(tuple(at.page.run(PLACE)))
        at.click("clear")
        at.page.until("document.body.dataset.state !== 'stopped'")
    at.reach("to_label")
    places.add(tuple(at.page.run(PLACE)))
    at.page.resize(*SIZES["desk"])
    assert len(places) == 1
    entries = [json.loads(line)["act"] for line in at.journal.read_text().splitlines()]
    assert entries.count("stop") == 3  # a press is one stop, not two


PLACE = "(({x, y, width, height}) => [x, y, width, height])(document.querySelector('[data-act=stop]').getBoundingClientRect())"  # noqa: E501
SMALL = "[...document.querySelectorAll('[data-act]')].filter((b) => b.offsetParent || b.offsetHeight).filter((b) => b.offsetHeight < 56 || b.offsetWidth < 56).length"  # noqa: E501
COVERED = "[...document.querySelectorAll('[data-act]:enabled')].filter((b) => b.offsetHeight).filter((b) => { const r = b.getBoundingClientRect(); const e = document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2); return !b.contains(e); }).length"  # noqa: E501


@pytest.mark.parametrize("size", SIZES)
def test_all_that_acts_is_big_and_in_view_without_scrolling(at, size):
    at.page.resize(*SIZES[size])
    for state in ("waiting_for_reset", "ready", "running"):
        at.bring(state)
        at.can("stop")
        assert at.page.run(SMALL) == 0
        assert at.page.run(COVERED) == 0
        assert at.page.run("document.documentElement.scrollWidth <= innerWidth")
    at.page.resize(*SIZES["desk"])


def test_a_gamepad(at):
    at.page.run(
        "(() => { const buttons = Array.from({length: 17}, () => ({pressed: false}));"
        " buttons[3].pressed = true; window.pad = buttons;"
        " navigator.getGamepads = () => [{index: 0, buttons}, null]; })()"
    )
    at.can("reset_done")
    time.sleep(0.2)
    assert at.desk.view()["state"] == "waiting_for_reset"  # down when it appeared: no press
    for button, then in ((3, "ready"), (9, "running"), (6, "stopped")):
        at.page.run(f"window.pad[{button}].pressed = false")
        time.sleep(0.15)
        at.page.run(f"window.pad[{button}].pressed = true")
        at.reach(then)


def test_a_page_that_is_behind_cannot_label_the_next_episode(at):
    at.bring("running")
    at.can("success")
    at.console._pages.clear()  # its socket lives, but it hears of nothing
    view = at.desk.view()
    at.desk.say("Bob", Shown("running", view["trajectory_id"], view["turn"]), "discard")
    at.page.press("s")
    at.page.until("document.getElementById('said').innerText.includes('your page still showed')")
    at.page.picture(at.pictures / "8_stale.png")
    deadline = time.monotonic() + 10
    while at.labels() != [("Bob", "discard", None)]:
        assert time.monotonic() < deadline, at.labels()
        time.sleep(0.05)


def test_a_lost_connection_is_said_and_comes_back(table):
    with table.served(alone_s=1.0) as (_, address):
        table.open(address)
        table.name()
        port = int(address.split(":")[2].split("/")[0])
        table.bring("running")
    table.page.until("!document.getElementById('lost').hidden")
    assert "watchdog holds the arm" in table.page.run("document.getElementById('lost').innerText")
    assert table.page.run("document.querySelectorAll('[data-act]:enabled').length") == 1
    table.picture("9_lost")
    table.page.press(" ")
    table.page.until("document.getElementById('said').innerText.includes('STOP WAS NOT SENT')")
    with table.served(port) as _:
        table.page.until("document.getElementById('lost').hidden")
        table.page.until("document.getElementById('link').innerText === 'connected'")


def test_a_wrong_token_is_said(table):
    with table.served() as (_, address):
        table.page.run("sessionStorage.clear()") if "http" in table.page.run("origin") else None
        table.page.open(address.replace(TOKEN, "a-token-of-another-day"))
        table.page.until("document.body.dataset.state === 'denied'")
        assert "not let in" in table.page.run("document.getElementById('link').innerText")
        table.page.open(address)
        table.reach("waiting_for_reset")
