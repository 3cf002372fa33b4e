"""The console's server: who is let in, what acts, and what a page of it does in Chromium."""

import http.client
import json
import logging
import random
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from envs.droid.console import messages, server
from envs.droid.console.server import Console, ConsoleSettings, Rig, serving
from envs.droid.desk import Desk, Shown

ROOT = Path(__file__).parents[2]
TOKEN = "only-the-lab-knows-this"
EPISODE = {
    **{"trajectory_id": "a", "task": "book", "instruction": "open the book"},
    **{"policy_version": 3, "max_ticks": 150},
}


class Arm:
    """A robot's host that counts what it is asked for; without ``go_on`` it hangs."""

    def __init__(self):
        self.stops, self.clears, self.said = 0, 0, {"tick": 7, "lateness_ms": 1.5, "fault": ""}
        self.pictures = {"wrist": b"\xff\xd8wrist", "exterior_1": b"\xff\xd8one"}
        self.go_on, self.broken = threading.Event(), ""
        self.go_on.set()

    def rig(self):
        return Rig(self.cameras, self.health, self.stop, self.clear_fault)

    def cameras(self):
        if self.broken == "cameras":
            raise RuntimeError("no camera")
        return self.pictures

    def health(self):
        if self.broken == "health":
            raise RuntimeError("no arm")
        if self.broken == "silent":
            self.go_on.wait(10)
        return self.said

    def stop(self):
        self.stops += 1
        if self.broken == "stop":
            raise RuntimeError("no brake")

    def clear_fault(self):
        self.go_on.wait(10)
        if self.broken == "clear":
            raise RuntimeError("still in reflex")
        self.clears += 1
        self.said = {**self.said, "fault": ""}


class Client:
    """A page without a browser."""

    def __init__(self, socket):
        self.socket = socket

    def send(self, message):
        self.socket.send(message if isinstance(message, str | bytes) else json.dumps(message))

    def next(self, kind):
        while True:
            frame = self.socket.recv(timeout=10)
            if isinstance(frame, str) and (said := json.loads(frame))["kind"] == kind:
                return said

    def do(self, desk, act, number=1, **more):
        self.send(request(desk, act, number=number, **more))
        return self.next("said")


def heard_until_closed(client):
    """What the server says before it closes, and its close code."""
    heard = []
    try:
        while True:
            heard.append(client.recv(timeout=10))
    except ConnectionClosed as closed:
        return heard, closed.rcvd and closed.rcvd.code


def request(desk, act, **more):
    view = desk.view()
    shown = {key: view[key] for key in ("state", "trajectory_id", "turn")}
    return {"act": act, "who": "Ann", "shown": shown, **more}


class Setup:
    def __init__(self, folder, **settings):
        self.desk, self.arm = Desk(folder / "desk.jsonl", undo_s=0.0), Arm()
        self.settings = ConsoleSettings(port=0, **({"token": TOKEN, "alone_s": 60.0} | settings))
        self.console = Console(self.desk, self.arm.rig(), self.settings)
        self.port = 0

    def stranger(self):
        return connect(f"ws://127.0.0.1:{self.port}/socket", compression=None)

    @contextmanager
    def page(self, token=TOKEN):
        with self.stranger() as socket:
            client = Client(socket)
            client.send({"act": "hello", "token": token})
            yield client

    def act(self, act, *more):
        """As a person at a page that is up to date."""
        view = self.desk.view()
        shown = Shown(view["state"], view["trajectory_id"], view["turn"])
        getattr(self.desk, act)("Ann", shown, *more)

    def run(self):
        self.act("reset_done")
        self.act("start")
        self.desk.began(EPISODE)

    def until(self, wanted, seconds=10):
        deadline = time.monotonic() + seconds
        while not wanted():
            assert time.monotonic() < deadline, self.desk.view()
            time.sleep(0.01)


@contextmanager
def served(folder, **settings):
    setup = Setup(folder, **settings)
    with serving(setup.console, setup.settings) as address:
        setup.port = int(address.split(":")[2].split("/")[0])
        yield setup
    setup.desk.close()


@pytest.fixture
def at(tmp_path):
    with served(tmp_path) as setup:
        yield setup


def get(port, path, headers, method="GET"):
    """One plain request; returns status, headers, body."""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    line.putrequest(method, path, skip_host=True)
    for name, value in headers:
        line.putheader(name, value)
    line.endheaders()
    reply = line.getresponse()
    body = b"" if reply.status == 101 else reply.read()
    line.close()
    return reply.status, dict(reply.headers), body


def upgrade(port, *headers):
    wanted = [
        *(("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ]
    return get(port, "/socket", [*headers, *wanted])[0]


def test_a_whole_episode(at):
    with at.page() as page:
        view = page.next("view")
        assert (view["desk"]["state"], view["health"].get("fault", "")) == ("waiting_for_reset", "")
        assert page.do(at.desk, "reset_done", 1) == {
            **{"kind": "said", "number": 1, "ok": True, "said": ""}
        }
        assert page.do(at.desk, "start", 2)["ok"]
        assert at.desk.may_start()
        at.desk.began(EPISODE)
        assert page.do(at.desk, "say", 3, outcome="success", progress=80)["ok"]
        assert at.desk.finished()
        at.desk.ended(EPISODE | {"ending": "done"})
        label = at.desk.label("a")
        assert (label["success"], label["who"], label["progress"]) == (True, "Ann", 80)
        assert (at.arm.stops, at.arm.clears) == (0, 0)


def test_stop_and_clear_reach_the_host(at):
    at.run()
    with at.page() as page:
        page.send('{"act": "stop"}')  # no name, no moment: it stops
        assert page.next("said")["ok"]
        assert (at.arm.stops, at.desk.stop_asked()) == (1, True)
        refused = page.do(at.desk, "clear", 2)
        assert "not ended the episode yet" in refused["said"]
        assert at.arm.clears == 0
        at.desk.ended(EPISODE | {"ending": "aborted:operator stop"})
        assert page.do(at.desk, "clear", 3)["ok"]
        assert (at.arm.clears, at.desk.stop_asked()) == (1, False)


def test_a_stop_passes_what_hangs(at):
    at.desk.stop()
    with at.page() as page:
        at.arm.go_on.clear()
        page.send(request(at.desk, "clear"))
        page.send(request(at.desk, "clear"))
        page.send({"act": "stop", "number": 9})
        assert page.next("said")["number"] == 9
        assert at.arm.stops == 1
        at.arm.go_on.set()
        assert {page.next("said")["ok"] for _ in range(2)} == {False}  # a stop came after they saw
        assert at.desk.stop_asked()


def test_a_host_that_fails_to_stop_is_said_and_the_desk_stops(at):
    at.arm.broken = "stop"
    with at.page() as page:
        page.send({"act": "stop"})
        assert "failed at stop: RuntimeError('no brake')" in page.next("said")["said"]
    assert at.desk.stop_asked()


def test_a_fault_that_cannot_be_cleared_stays(at):
    at.arm.broken = "clear"
    at.desk.fault("reflex")
    with at.page() as page:
        assert "still in reflex" in page.do(at.desk, "clear")["said"]
    assert at.desk.stop_asked()


def test_a_fault_of_the_host_latches(at):
    at.run()
    at.arm.said = {"fault": "camera wrist is 400 ms old"}
    at.until(at.desk.stop_asked)
    at.arm.said = {"fault": ""}
    assert at.desk.view()["stopped"] == "fault: camera wrist is 400 ms old"


@pytest.mark.parametrize(("how", "why"), [("health", "no arm"), ("silent", "has said nothing")])
def test_a_host_that_does_not_tell_its_health_is_a_fault(tmp_path, monkeypatch, how, why):
    monkeypatch.setattr(server, "HEALTH_S", 0.2)
    with served(tmp_path) as at:
        at.arm.go_on.clear()
        at.arm.broken = how
        at.until(at.desk.stop_asked)
        at.until(lambda: why in at.desk.view()["stopped"])
        at.arm.go_on.set()


def test_numbers_that_json_lacks_are_left_out(at):
    at.arm.said = {"lateness_ms": float("nan"), "frame_age_ms": {"wrist": float("inf")}, "x": {1}}
    with at.page() as page:
        at.until(lambda: page.next("view")["health"].get("tick", 0) is None)
        health = page.next("view")["health"]
    assert health == {
        **{"tick": None, "lateness_ms": None, "fault": "", "frame_age_ms": {"wrist": None}}
    }


def test_an_episode_that_no_page_watches_is_stopped(tmp_path):
    with served(tmp_path, alone_s=0.5) as at:
        with at.page() as page:
            page.next("view")
            at.run()
            for _ in range(10):  # a second, heard all the time
                page.send({"act": "look"})
                page.next("looked")  # 0.1 s later
            assert not at.desk.stop_asked()
        at.until(at.desk.stop_asked)
        at.until(lambda: at.desk.view()["stopped"] == "no page of the console is connected")
        at.until(lambda: at.arm.stops >= 1)


def test_strangers_keep_no_episode_running(tmp_path):
    """Their connections and their words are no person who watches."""
    with served(tmp_path, alone_s=0.5) as at:
        at.run()
        deadline = time.monotonic() + 10
        while not at.desk.stop_asked():
            assert time.monotonic() < deadline
            with suppress(ConnectionClosed), at.page("wrong") as page:
                page.send({"act": "look"})


def test_pictures_come_when_asked_for(at):
    with at.page() as page:
        page.send({"act": "look"})
        seen = []
        while len(seen) < 2:
            frame = page.socket.recv(timeout=10)
            if isinstance(frame, bytes):
                seen.append(frame)
        assert seen == [b"wrist\n\xff\xd8wrist", b"exterior_1\n\xff\xd8one"]
        page.next("looked")
        at.arm.broken = "cameras"
        page.send({"act": "look"})
        page.next("looked")  # no pictures, and nobody thrown out


@pytest.mark.parametrize(
    "first",
    [
        *('{"act":"hello"}', '{"act":"hello","token":""}', '{"act":"hello","token":7}', "", "{"),
        *('{"act":"hello","token":"only-the-lab-knows-thi"}', b"\xff\x00", '{"act":"stop"}'),
        *(f'{{"act":"hi","token":"{TOKEN}"}}', '{"act":"hello","token":"\\ud800"}', "[" * 4000),
    ],
)
def test_without_the_token_nothing_acts(at, first):
    before = at.desk.view()
    with at.stranger() as strange:
        strange.send(first)
        with suppress(ConnectionClosed):  # it may be closed already
            strange.send('{"act":"stop"}')
            strange.send(json.dumps(request(at.desk, "reset_done")))
        heard, code = heard_until_closed(strange)
    assert code == server.DENIED
    assert [json.loads(text)["kind"] for text in heard] == ["denied"]  # not a word of the desk
    assert at.desk.view() == before
    assert at.arm.stops == 0


def test_who_says_nothing_is_shown_out(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "HELLO_S", 0.2)
    with served(tmp_path) as at, at.stranger() as strange:
        assert heard_until_closed(strange)[1] == server.DENIED


@pytest.mark.parametrize(
    ("token", "host", "origin", "status"),
    [
        ("", "127.0.0.1:{port}", "http://127.0.0.1:{port}", 101),
        ("", "localhost:{port}", "http://localhost:{port}", 101),
        ("", "[::1]:9", "http://[::1]:9", 101),  # through a tunnel
        ("", "localhost:{port}", None, 101),  # a program, not a page
        ("", "localhost:{port}", "http://evil.example", 403),  # a page of another site
        ("", "localhost:{port}", "http://localhost:1", 403),
        ("", "localhost:{port}", "null", 403),  # a sandboxed frame, a file
        ("", "localhost:{port}", "http://[", 403),
        ("", "evil.example:{port}", "http://evil.example:{port}", 403),  # DNS rebinding
        ("", "localhost.evil.example", "http://localhost.evil.example", 403),
        ("", "[", None, 403),
        (TOKEN, "robot.lab:8081", "http://robot.lab:8081", 101),
        (TOKEN, "robot.lab:8081", "https://robot.lab:8081", 101),  # behind TLS
        (TOKEN, "robot.lab:8081", "http://evil.example", 403),
    ],
)
def test_pages_of_other_sites_are_turned_away(tmp_path, token, host, origin, status):
    with served(tmp_path, token=token) as at:
        headers = [("Host", host.format(port=at.port))]
        if origin:
            headers.append(("Origin", origin.format(port=at.port)))
        assert upgrade(at.port, *headers) == status
        if origin and status == 101:
            assert upgrade(at.port, *headers, ("Origin", "http://evil.example")) == 403
            assert upgrade(at.port, *headers, ("Host", "evil.example")) in (400, 403)


def test_the_page_is_served_and_nothing_else(at):
    host = [("Host", f"127.0.0.1:{at.port}")]
    status, headers, body = get(at.port, "/", host)
    assert status == 200
    assert b"<title>Robot console</title>" in body
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert b"http" not in body  # no CDN
    for name in ("console.css", "console.js", "keys.js"):
        assert get(at.port, f"/{name}", host)[0] == 200
    assert get(at.port, "/healthz", host)[::2] == (200, b"OK\n")
    for path in ("/../server.py", "/%2e%2e/server.py", "/desk.jsonl", "/index.html", "//", "/x"):
        assert get(at.port, path, host)[0] == 404
    assert get(at.port, "/", host, method="POST")[0] in (200, 405)  # no more than a page
    assert TOKEN.encode() not in body


def test_the_token_is_in_no_log(at, caplog):
    caplog.set_level(logging.DEBUG)
    logging.getLogger("websockets").setLevel(logging.DEBUG)
    with at.page() as page:
        page.next("view")
    with at.page("wrong-token-of-somebody") as page:
        page.next("denied")
    at.act("reset_done")
    mine = [r.getMessage() for r in caplog.records if "envs" in r.name]
    assert not [text for text in mine if TOKEN in text or "wrong-token" in text]
    assert TOKEN not in Path(at.desk._journal.path).read_text()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"host": "0.0.0.0"}, "host 0.0.0.0 is open to other machines: give a token"),
        ({"host": "0.0.0.0", "token": "short"}, "at least 16 ASCII characters"),
        ({"token": "é" * 20}, "at least 16 ASCII"),
        ({"alone_s": 0.0}, "alone_s=0.0 must be positive"),
        ({"alone_s": float("nan")}, "alone_s=nan must be positive"),
    ],
)
def test_settings_that_open_a_door_are_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        ConsoleSettings(**settings)


def test_a_port_in_use_is_named(at, tmp_path):
    settings = ConsoleSettings(port=at.port, token=TOKEN)
    with (
        pytest.raises(ValueError, match=f"cannot listen at 127.0.0.1:{at.port}.*another port"),
        serving(Console(at.desk, at.arm.rig(), settings), settings),
    ):
        pass


JUNK = [None, True, -1, 1.5, 10**30, "", "x" * 200, [], {}, ["say"], {"a": {}}, "\ud800", "\n"]


def noise(rng, good):
    return bytes(rng.randrange(256) for _ in range(rng.randrange(60)))


def letters(rng, good):
    return "".join(chr(rng.randrange(1, 0xD800)) for _ in range(rng.randrange(60)))


def cut(rng, good):
    return json.dumps(good)[: -rng.randrange(1, 40)]


def deep(rng, good):
    return "[" * rng.randrange(1, 4000)


def other_act(rng, good):
    return json.dumps(good | {"act": rng.choice([*JUNK, "Stop", " stop", "stop\0", "hello"])})


def other_field(rng, good):
    junk = [value for value in JUNK if value != "x" * 200] + ["x" * 61]
    return json.dumps(good | {rng.choice(["who", "shown", "more"]): rng.choice(junk)})


def other_moment(rng, good):
    name = rng.choice(["state", "turn", "more", "trajectory_id"])
    return json.dumps(good | {"shown": good["shown"] | {name: rng.choice(JUNK)}})


def the_past(rng, good):
    good["shown"]["turn"] -= rng.randrange(1, 3)
    return json.dumps(good | {"progress": rng.choice([None, 101, -1, "5", True, 1e9])})


def wrong_messages(desk, count):
    """Never valid, from a seed: valid ones with something broken, and noise."""
    rng = random.Random(0)
    ways = (noise, letters, cut, deep, other_act, other_field, other_moment, the_past)
    for number in range(count):
        good = request(desk, rng.choice(["reset_done", "start", "say", "undo", "clear"]))
        if good["act"] == "say":
            good |= {"outcome": "success", "progress": 5}
        yield ways[number % len(ways)](rng, good)


@pytest.mark.long
def test_ten_thousand_wrong_messages_do_nothing(at, caplog):
    """5,000 by strangers, 5,000 by a page that has the token and talks nonsense."""
    caplog.set_level(logging.WARNING)
    at.act("reset_done")
    at.act("start")
    at.desk.began(EPISODE)
    at.desk.ended(EPISODE | {"ending": "timeout"})
    before, entries = at.desk.view(), Path(at.desk._journal.path).read_bytes()
    # What strangers would say if they could: all of it would act at a page that is let in.
    valid = [*(request(at.desk, "say", outcome=o) for o in ("success", "failure", "discard"))]
    valid = [json.dumps(message) for message in [*valid, {"act": "stop"}, {"act": "look"}]]
    for _ in range(500):
        with at.stranger() as strange, suppress(ConnectionClosed):
            for text in valid * 2:
                strange.send(text)
    with at.page() as page:
        page.next("view")
        for wrong in wrong_messages(at.desk, 5000):
            page.send(wrong)
            answer = page.next("said")
            assert (answer["ok"], bool(answer["said"])) == (False, True), wrong
    for _ in range(50):  # and what is not even HTTP
        with socket.create_connection(("127.0.0.1", at.port), 10) as line:
            line.sendall(b"\x16\x03\x01" + bytes(range(256)))
    with at.page() as page:
        page.send("x" * (messages.MAX_BYTES + 1))
        assert heard_until_closed(page.socket)[1] == 1009  # too big, refused while it arrives
    assert at.desk.view() == before
    assert Path(at.desk._journal.path).read_bytes() == entries
    assert (at.arm.stops, at.arm.clears) == (0, 0)
    assert caplog.records == []  # no exception that nobody saw
    with at.page() as page:  # and it still works
        assert page.do(at.desk, "say", outcome="success")["ok"]


def test_a_stop_is_obeyed_however_badly_it_is_put(at):
    with at.page() as page:
        for count, extra in enumerate([{"who": 5}, {"number": "x"}, {"shown": 0}, {"more": []}]):
            page.send({"act": "stop"} | extra)
            assert page.next("said")["ok"]
            assert at.arm.stops == count + 1


def test_the_console_is_light():
    code = (
        "import sys, envs.droid.desk, envs.droid.console.server\n"
        "bad = {'torch', 'ray', 'mujoco', 'PIL', 'numpy.random'} & set(sys.modules); "
        "assert not bad - {'numpy.random'}, bad"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_without_demo_the_command_says_what_to_do():
    command = [sys.executable, "-m", "envs.droid.console"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "envs.droid.host" in done.stderr
    assert "--demo" in done.stderr
