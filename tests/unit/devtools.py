"""Drives headless Chromium by the DevTools protocol: real clicks, keys and screenshots."""

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager

from websockets.sync.client import connect

KEYS = {" ": ("Space", 32), "Escape": ("Escape", 27), "Enter": ("Enter", 13)}


class Page:
    """One tab. Mouse and keys go the way that a person's go, through Chromium's input queue."""

    def __init__(self, socket):
        self._socket, self._numbers = socket, itertools.count(1)

    def call(self, method, **params):
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            reply = json.loads(self._socket.recv(timeout=30))
            if reply.get("id") == number:
                assert "error" not in reply, reply
                return reply["result"]

    def open(self, url):
        self.call("Page.navigate", url=url)

    def ask(self, script):
        """The value of a JavaScript expression; a promise is awaited."""
        reply = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def until(self, script, seconds=15):
        """Wait for an expression to be true; returns its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.ask(script)):
            text = "document.body && document.body.innerText"
            assert time.monotonic() < deadline, f"never true: {script}\n{self.ask(text)}"
            time.sleep(0.03)
        return value

    def resize(self, width, height, mobile=False):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "mobile": mobile, "deviceScaleFactor": 1},
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=mobile)

    def click(self, selector):
        """Where a finger would land: whatever lies on top there gets it."""
        x, y = self.ask(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'nearest'}); const b = e.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent",
                **{"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1},
            )

    def key(self, key):
        code, number = KEYS.get(key, (f"Key{key.upper()}", ord(key.upper()[0])))
        text = {"Enter": "\r", "Escape": ""}.get(key, key)
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if kind == "keyDown" and text else {}
            self.call(
                "Input.dispatchKeyEvent",
                **{"type": kind, "key": key, "code": code, "windowsVirtualKeyCode": number},
                **typed,
            )

    def write(self, text):
        self.call("Input.insertText", text=text)

    def picture(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def chromium(profile):
    """A tab of a fresh headless Chromium, which ends with the block."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    assert browser, "install it: apt-get install -y chromium"
    command = [
        *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connect(_tab(profile / "DevToolsActivePort"), max_size=None) as socket:
            page = Page(socket)
            page.call("Page.enable")
            yield page
            page.call("Browser.close")
    finally:
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tab(port_file):
    deadline = time.monotonic() + 60
    while not (port_file.exists() and port_file.read_text().count("\n")):
        assert time.monotonic() < deadline, "Chromium did not start"
        time.sleep(0.05)
    port = port_file.read_text().splitlines()[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as reply:
        tabs = json.load(reply)
    return next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
