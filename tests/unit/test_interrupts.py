"""Ctrl-C and kill, sent to a process of its own that does not want to hear them."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.interrupts import STOPPED

ROOT = Path(__file__).resolve().parents[2]
DEAF = """
import time
from cluster.interrupts import one_line
with one_line():
    for attempt in range(3):
        try:
            print("working", flush=True)
            time.sleep(30)
        except KeyboardInterrupt:
            if attempt == 1:
                raise ConnectionError("a process of Ray died of the same signal")
"""
CLEANING = """
import time
from cluster.interrupts import one_line, undisturbed
with one_line():
    with undisturbed():
        print("working", flush=True)
        time.sleep(1)
        print("clean", flush=True)
    print("listening", flush=True)
    time.sleep(30)
"""
FAILING = """
from cluster.interrupts import one_line
print("working", flush=True)
with one_line():
    raise RuntimeError("nobody asked for a stop")
"""


@pytest.fixture
def begin():
    started = []

    def run(code: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_that_was_swallowed_is_asked_for_again(begin, number):
    process = begin(DEAF)
    process.send_signal(number)
    output, errors = process.communicate(timeout=25)
    assert output == "working\n"  # the second attempt, by the timer
    assert errors.strip() == STOPPED
    assert process.returncode == 1


def test_a_clean_up_is_not_cut_short(begin):
    process = begin(CLEANING)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "clean\n"
    assert process.stdout.readline() == "listening\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=25)
    assert (output, errors.strip(), process.returncode) == ("", STOPPED, 1)


def test_other_errors_stay_what_they_are(begin):
    process = begin(FAILING)
    _, errors = process.communicate(timeout=25)
    assert "RuntimeError: nobody asked for a stop" in errors
    assert STOPPED not in errors
