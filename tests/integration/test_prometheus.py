"""A real Prometheus, fed by a real Ray: every query of the dashboard and of the alerts is asked."""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from cluster.dashboards import panels
from cluster.dashboards.__main__ import provision

pytestmark = [pytest.mark.ray, pytest.mark.prometheus]
DEADLINE_S = 90.0  # on a machine that does other things, too; alone it takes about 20 s
REPORTS = Path(__file__).with_name("reporting.py")


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def folder():
    """Short: the paths of Ray's sockets may have 107 characters."""
    path = Path(tempfile.mkdtemp(prefix="vlaw-prometheus-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def ray_that_reports(folder):
    """Another process, because how often Ray reports is settled when it starts."""
    command = [sys.executable, REPORTS, folder / "ray"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    yield process
    process.stdin.close()  # that ends it
    process.wait(DEADLINE_S)


@pytest.fixture(scope="module")
def ask(folder, ray_that_reports):
    """``ask("query", query=...)``: what Prometheus' API answers."""
    port = free_port()
    provision(folder / "config", folder / "ray", f"http://127.0.0.1:{port}", every="1s")
    config = folder / "config" / "prometheus" / "prometheus.yml"
    subprocess.run(["promtool", "check", "config", config], check=True, capture_output=True)
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answered(what, **parameters):
        url = f"http://127.0.0.1:{port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            return json.loads(reply.read())["data"]

    try:
        _until(lambda: _targets(answered), "no target of Ray's service discovery answers")
        yield answered
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def _targets(answered):
    try:
        return [t for t in answered("targets")["activeTargets"] if t["health"] == "up"]
    except OSError:  # it is starting
        return []


def _until(found, complaint):
    end = time.monotonic() + DEADLINE_S
    while not (value := found()):
        assert time.monotonic() < end, complaint
        time.sleep(0.3)
    return value


def queries():
    found = json.loads(panels.FILE.read_text())
    for panel in found["panels"]:
        for target in panel.get("targets", []):
            text = target["expr"].replace("$session", ".*").replace("$window", "20s")
            yield f"{panel['title']} {target['refId']}", text


def test_no_panel_is_empty(ask):
    """A query that does not parse is an error of the API, hence of this test."""
    left = dict(queries())

    def all_answered():
        for name, text in list(left.items()):
            rows = ask("query", query=text)["result"]
            if any(row["value"][1] != "NaN" for row in rows):
                del left[name]
        return not left

    _until(all_answered, left)


def test_growth_sees_the_first_value_of_a_series(ask):
    """The reporter judged 8 trajectories in one go: 6 accepted, 1 rejected, 1 not scored."""
    text = panels.grown(panels.metrics.VERDICTS, "task", panels.ACCEPTED, "1h")
    newest = []

    def grown():
        newest[:] = ask("query", query=text.replace("$session", ".*"))["result"]
        return [(row["metric"], row["value"][1]) for row in newest] == [({"task": "book"}, "6")]

    _until(grown, newest)  # a scrape may be late on a crowded machine


def test_every_alert_is_evaluated_and_those_fire_that_have_a_reason(ask):
    def evaluated():
        (group,) = ask("rules")["groups"]
        return group["rules"] if all(r["health"] == "ok" for r in group["rules"]) else None

    def state(name):
        return next((rule["state"] for rule in evaluated() or [] if rule["name"] == name), "")

    rules = {rule["name"]: rule for rule in _until(evaluated, "rules are not evaluated")}
    assert [rule["lastError"] for rule in rules.values() if "lastError" in rule] == []
    _until(lambda: state("VlawScoringErrors") == "firing", "1 of 8 was not scored")
    # 400 s, first for less than a minute
    _until(lambda: state("VlawWorkerSilent") in ("pending", "firing"), "a worker was silent")
    assert state("VlawManyRestarts") == "inactive"  # two restarts
