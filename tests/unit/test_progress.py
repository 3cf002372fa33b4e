import io
import json

import pytest
from rich.console import Console

from contracts import metrics
from contracts.metrics import NoMeter
from services import progress
from services.progress import Reporter, describe, read_events


def reporter(folder, terminal=False, meter=None, sinks=()):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    return Reporter(folder, console, meter, sinks), out


class Ledger(NoMeter):
    """Keeps the newest value of every gauge and the sum of every counter."""

    def __init__(self):
        self.values = {}

    def set(self, metric, value, **tags):
        super().set(metric, value, **tags)
        self.values[metric.name, *tags.values()] = value

    def count(self, metric, amount=1, **tags):
        super().count(metric, amount, **tags)
        key = (metric.name, *tags.values())
        self.values[key] = self.values.get(key, 0) + amount


class Diary:
    """A sink."""

    def __init__(self):
        self.lines, self.stages, self.closed = [], {}, False

    def scalars(self, step, numbers):
        self.lines.append((step, dict(numbers)))

    def stage(self, name, numbers):
        self.stages[name] = dict(numbers)

    def close(self):
        self.closed = True


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
    ledger = Ledger()
    report, out = reporter(tmp_path, meter=ledger)
    with report, report.stage("1 collect", 3, "episodes") as bar:
        bar.lost("Robot, process 7 on 10.0.0.1, died")
    assert ledger.values["vlaw_retries_total", "1 collect"] == 1
    assert "  1 collect: Robot, process 7 on 10.0.0.1, died" in out.getvalue()
    (lost,) = [event for event in events(tmp_path) if event["event"] == "lost"]
    assert (lost["stage"], lost["message"]) == ("1 collect", "Robot, process 7 on 10.0.0.1, died")


def test_numbers_are_short():
    assert describe({"loss": 0.123456, "n": 12}) == "loss 0.123  n 12"


def test_what_was_there_before_says_nothing_about_the_rate(tmp_path):
    report, _ = reporter(tmp_path)
    with report, report.stage("imagine", 100) as bar:
        bar.begin_with(90)
        assert (bar.done, bar.rate, bar.first) == (90, 0, None)
        bar.at(96)
        assert bar.rate == pytest.approx(6 / bar.seconds, rel=0.2)
    last = events(tmp_path)[-1]
    assert (last["done"], last["new"], last["first"][0]) == (96, 6, 6)
    assert 0 < last["first"][1] <= last["seconds"]


def test_gpu_seconds_follow_from_what_a_stage_holds(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("services.progress.time.monotonic", lambda: now[0])
    ledger = Ledger()
    report, _ = reporter(tmp_path, meter=ledger)
    with report, report.within("1 imagine"), report.stage("1 imagine", 4) as bar:
        now[0] = 5.0
        bar.hold(4)  # five seconds until its processes were there
        now[0] = 15.0
        bar.at(1)
        bar.hold(2)
        now[0] = 18.0
    assert events(tmp_path)[-2]["gpu_seconds"] == 4 * 10 + 2 * 3
    stage = events(tmp_path)[-1]
    assert (stage["event"], stage["gpu_seconds"], stage["seconds"]) == ("stage", 46, 18)
    assert ledger.values["vlaw_gpu_seconds_total", "1 imagine"] == 46


def test_metrics_show_stage_progress_and_learner(tmp_path):
    ledger = Ledger()
    report, _ = reporter(tmp_path, meter=ledger)
    with report, report.within("1 train policy"):
        with report.stage("1 train policy", 80, "steps", "policy") as bar:
            bar.at(7, loss=0.25)
            assert ledger.values[metrics.STAGE.name, "1 train policy"] == 1
            assert ledger.values[metrics.STAGE_DONE.name, "1 train policy"] == 7
            assert ledger.values[metrics.STAGE_UNITS.name, "1 train policy"] == 80
        assert ledger.values[metrics.LEARNER_STEP.name, "policy"] == 7
        assert ledger.values[metrics.LEARNER_LOSS.name, "policy"] == 0.25
    assert ledger.values[metrics.STAGE.name, "1 train policy"] == 0


def test_sinks_get_every_step_and_what_a_stage_ended_with(tmp_path):
    diary = Diary()
    report, _ = reporter(tmp_path, sinks=[diary])
    with report:
        with report.within("1 train policy") as note, report.stage("1 train policy", 3) as bar:
            for step in (1, 2, 3):
                bar.at(step, loss=1 / step)
            bar.at(3)
            note({"losses": [1.0, 0.5, 0.3], "data": {"real successes": 4}, "checksum": "ab"})
        with pytest.raises(RuntimeError), report.within("1 imagine"):
            raise RuntimeError
    assert diary.lines == [(k, {"1-train-policy/loss": 1 / k}) for k in (1, 2, 3)]
    assert diary.stages["1 train policy"].keys() == {
        "seconds",
        "gpu_seconds",
        "data/real-successes",
    }
    assert diary.stages["1 train policy"]["data/real-successes"] == 4
    assert diary.closed
    assert [e["outcome"] for e in events(tmp_path) if e["event"] == "stage"] == ["done", "failed"]


def test_a_stage_says_how_much_the_folder_holds(tmp_path):
    report, _ = reporter(tmp_path)
    with report, report.within("1 collect"):
        (tmp_path / "stores").mkdir()
        (tmp_path / "stores" / "film").write_bytes(bytes(5000))
    last = events(tmp_path)[-1]
    assert 5000 <= last["disk_bytes"] < 5600  # and events.jsonl


def test_who_waits_for_the_end_of_a_stage_is_called_after_a_good_end_only(tmp_path):
    report, _ = reporter(tmp_path)
    ended = []
    report.after_stage.append(lambda: ended.append(report.ended[-1][0]))
    with report:
        with report.within("base"):
            assert report.stage_name == "base"
        with pytest.raises(RuntimeError), report.within("1 collect"):
            raise RuntimeError
    assert ended == ["base"]
