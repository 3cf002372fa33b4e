import io
import json

import pytest
from rich.console import Console

from services.progress import Reporter, describe, read_events


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


def test_a_torn_last_line_costs_itself_alone(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "a"}\n{"event": "b", "stag')
    assert [event["event"] for event in read_events(tmp_path)] == ["a"]  # while another one writes
    report, _ = reporter(tmp_path)
    with report:
        report.event("c")
    assert [event["event"] for event in read_events(tmp_path)] == ["a", "c"]
    assert [event["event"] for event in events(tmp_path)] == ["a", "c"]


def test_no_events_are_no_error(tmp_path):
    assert read_events(tmp_path) == []
    report, _ = reporter(tmp_path)
    report.__exit__(None, None, None)
    assert read_events(tmp_path) == []


def test_a_loss_is_told_and_kept(tmp_path):
    report, out = reporter(tmp_path)
    with report, report.stage("1 collect", 3, "episodes") as bar:
        bar.lost("Robot, process 7 on 10.0.0.1, died")
    assert "  1 collect: Robot, process 7 on 10.0.0.1, died" in out.getvalue()
    (lost,) = [event for event in events(tmp_path) if event["event"] == "lost"]
    assert (lost["stage"], lost["message"]) == ("1 collect", "Robot, process 7 on 10.0.0.1, died")


def test_numbers_are_short():
    assert describe({"loss": 0.123456, "n": 12}) == "loss 0.123  n 12"
