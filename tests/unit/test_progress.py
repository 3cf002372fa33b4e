import io
import json

import pytest
from rich.console import Console

from services import progress
from services.progress import Reporter, describe


def reporter(folder, terminal=False):
    out = io.StringIO()
    return Reporter(folder, Console(file=out, force_terminal=terminal, width=120)), out


def events(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_off_a_terminal_a_stage_is_one_line(tmp_path):
    report, out = reporter(tmp_path)
    with report, report.stage("collect", 3, "episodes") as bar:
        for _ in range(3):
            bar.advance(loss=0.25)
    assert len(out.getvalue().strip().splitlines()) == 1
    assert "3/3 episodes" in out.getvalue()
    assert "loss 0.25" in out.getvalue()


def test_off_a_terminal_a_long_stage_tells_how_far_it_is_once_a_minute(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    report, out = reporter(tmp_path)
    with report, report.stage("1 imagine", 500, "trajectories") as bar:
        for seconds in (30, 31, 20, 20, 30):  # told at 61 s and at 131 s
            now[0] += seconds
            bar.advance(10)
    lines = out.getvalue().splitlines()
    assert [line.split()[2:4] for line in lines] == [
        ["at", "20/500"], ["at", "50/500"], ["done", "50/500"],
    ]  # fmt: skip


def test_off_a_terminal_no_line_is_broken(tmp_path):
    report, out = reporter(tmp_path)
    with report:
        report.say("x " * 300)
    assert len(out.getvalue().splitlines()) == 1


def test_on_a_terminal_there_is_a_bar_with_an_eta(tmp_path):
    report, out = reporter(tmp_path, terminal=True)
    with report, report.stage("imagine", 4, "trajectories") as bar:
        bar.advance(2)
    assert "imagine" in out.getvalue()
    assert "eta" in out.getvalue()
    assert "2/4" in out.getvalue()


def test_every_stage_leaves_its_beginning_and_its_end_as_json_lines(tmp_path):
    report, _ = reporter(tmp_path)
    with report, report.stage("train", 10, "steps") as bar:
        bar.at(10, loss=0.5)
    first, last = events(tmp_path)
    assert (first["event"], first["stage"], first["total"]) == ("begin", "train", 10)
    assert (last["outcome"], last["done"], last["loss"]) == ("done", 10, 0.5)


def test_a_stage_that_raises_is_reported_as_failed(tmp_path):
    report, _ = reporter(tmp_path)
    with report, pytest.raises(RuntimeError), report.stage("score", 2):
        raise RuntimeError
    assert events(tmp_path)[-1]["outcome"] == "failed"


def test_numbers_are_short():
    assert describe({"loss": 0.123456, "n": 12}) == "loss 0.123  n 12"
