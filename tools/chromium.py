"""Headless Chromium for tests: real clicks and keys through its own debugging protocol."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

KEYS = {
    " ": ("Space", 32),
    "Enter": ("Enter", 13),
    "Escape": ("Escape", 27),
    "ArrowLeft": ("ArrowLeft", 37),
    "ArrowRight": ("ArrowRight", 39),
}
PAINTED = "new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(() => go(1))))"


class Chromium:
    """One browser with one page. Whatever its scripts complain of is kept in ``complaints``."""

    def __init__(self, profile: Path, width: int, height: int) -> None:
        program = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
        assert program, "install it: apt-get install -y chromium"
        self.complaints: list[str] = []
        self._number = 0
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += [f"--user-data-dir={profile}", "--remote-debugging-port=0"]
        command += [f"--window-size={width},{height}", "about:blank"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        port = self._port(profile / "DevToolsActivePort")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=20) as answer:
            (page,) = [one for one in json.load(answer) if one["type"] == "page"]
        self._link = connect(page["webSocketDebuggerUrl"], max_size=None)
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()
        self._process.terminate()
        self._process.wait(timeout=30)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command; events that come before its answer are looked through for complaints."""
        self._number += 1
        self._link.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            found = json.loads(self._link.recv(timeout=60))
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]
            self._hear(found)

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, address: str) -> None:
        self.send("Page.navigate", url=address)

    def reload(self) -> None:
        """As F5; what is asked afterwards is asked of the new page."""
        self.run("window.stale = true")
        self.send("Page.reload")
        self.until("!window.stale && document.readyState === 'complete'")

    def until(self, script: str, seconds: float = 30) -> Any:
        """Wait until an expression is true in the page, which may still be loading."""
        deadline = time.monotonic() + seconds
        patient = f"(() => {{ try {{ return {script}; }} catch {{ return null; }} }})()"
        while not (value := self.run(patient)):
            assert time.monotonic() < deadline, f"{script}: never true in {seconds} s"
            time.sleep(0.05)
        return value

    def click(self, selector: str) -> None:
        """A real click in the middle of an element, which is scrolled into view."""
        self.run(PAINTED)
        box = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'nearest', behavior: 'instant'});"
            " const b = e.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        where = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, **where)

    def press(self, key: str, repeats: int = 0) -> None:
        """Push a key, hold it for so many repeats, let go."""
        code, number = KEYS.get(key, (f"Key{key.upper()}", ord(key[0].upper())))
        facts = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        for k in range(repeats + 1):
            self.send("Input.dispatchKeyEvent", type="keyDown", autoRepeat=k > 0, **facts, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **facts)

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def resize(self, width: int, height: int) -> None:
        """A window of this size; a phone with fingers below 600 pixels of width."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.send("Emulation.setDeviceMetricsOverride", mobile=width < 600, **size)
        self.send("Emulation.setTouchEmulationEnabled", enabled=width < 600)
        self.run(PAINTED)

    def picture(self, path: Path) -> None:
        found = self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))

    def _port(self, file: Path) -> int:
        deadline = time.monotonic() + 60
        while not (file.exists() and file.read_text().count("\n")):
            assert time.monotonic() < deadline, "Chromium did not start within 60 s"
            time.sleep(0.05)
        return int(file.read_text().splitlines()[0])

    def _hear(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(event["params"]["exceptionDetails"]))
        if event.get("method") == "Log.entryAdded":
            entry = event["params"]["entry"]
            if entry["level"] == "error":
                self.complaints.append(f"{entry['text']} {entry.get('url', '')}")
