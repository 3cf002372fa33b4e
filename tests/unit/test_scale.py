"""Watching and scaling a run through its folder."""

import json
import os
import time

import pytest
from rich.console import Console

from cluster.scale import main
from services.board import Board, ask, read_shown
from services.stages import write_json

ROW = {"wanted": 2, "working": 1, "waiting": 7, "done": 3, "trajectories_per_hour": 1234.5}


@pytest.fixture
def run(tmp_path):
    write_json(tmp_path / "run.json", {"settings": {"task": {"draw": {}, "stack": {}}}})
    return tmp_path


def scale(run, *arguments: str) -> str:
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        main([*arguments, f"out={run}"], run, console)
        return console.export_text()


def test_what_is_asked_for_reaches_the_stage_at_its_next_look(run):
    board = Board(run)
    assert board.wishes() == {}
    scale(run, "draw=6")
    assert board.wishes() == {"draw": 6}
    scale(run, "stack=auto")
    assert board.wishes() == {"draw": 6, "stack": "auto"}
    assert "draw=6, stack=auto" in scale(run, "status")
    scale(run, "draw=default")
    assert board.wishes() == {"stack": "auto"}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("drwa=3", "Did you mean task=draw"),
        ("draw=0", "draw=0 must be a number of at least 1, auto, or default"),
        ("draw=many", "draw=many must be a number"),
        ("stat", "usage: python -m cluster.scale"),
    ],
)
def test_nonsense_is_refused_and_nothing_is_asked_for(run, word, message):
    with pytest.raises(ValueError, match=message):
        scale(run, word)
    assert not (run / "workers.json").exists()


def test_one_wrong_word_asks_for_nothing(run):
    with pytest.raises(ValueError, match="stack=x"):
        scale(run, "draw=3", "stack=x")
    assert not (run / "workers.json").exists()


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        scale(tmp_path, "status")


def test_the_table_shows_the_stage_and_says_when_it_went_silent(run):
    assert "nothing was imagined yet" in scale(run, "status")
    board = Board(run)
    board.show(2, {"draw": ROW})
    text = scale(run, "status")
    assert "iteration 2 goes on" in text
    assert "1.23e+03" in text
    long_ago = time.time() - 3600
    os.utime(run / "imagination.json", (long_ago, long_ago))
    assert "last seen 3600 s ago" in scale(run, "status")
    board.end(2, {"draw": ROW})
    assert "has ended" in scale(run, "status")


def test_numbers_are_written_once_a_second_at_most(run):
    board = Board(run)
    board.show(1, {"draw": ROW})
    board.show(1, {"draw": ROW | {"done": 4}})
    shown = read_shown(run)
    assert shown is not None
    assert shown[0]["tasks"]["draw"]["done"] == 3
    board.end(1, {"draw": ROW | {"done": 4}})
    assert json.loads((run / "imagination.json").read_text())["tasks"]["draw"]["done"] == 4


def test_a_damaged_wish_is_named(run):
    ask(run, {"draw": 2})
    (run / "workers.json").write_text('{"draw": "lots"}')
    with pytest.raises(ValueError, match="draw=lots must be"):
        Board(run).wishes()
