"""What a user sees where nothing is started: a plan, or one line of complaint."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from cluster.jobs import run_job
from configs import schema

ROOT = Path(__file__).resolve().parents[2]
schema.register()


@pytest.fixture
def command(tmp_path):
    """Run ``ray_job.py`` to its end: (exit status, lines of output)."""

    def run(*arguments: str) -> tuple[int, list[str]]:
        done = subprocess.run(
            [sys.executable, ROOT / "ray_job.py", *arguments],
            cwd=tmp_path,
            env=os.environ | {"COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return done.returncode, (done.stdout + done.stderr).splitlines()

    return run


@pytest.fixture
def complaint(tmp_path):
    """What ``run_job`` refuses to do, in this process; ``ray_job.py`` prints it after "error: "."""

    def run(*arguments: str) -> str:
        with initialize_config_dir(str(ROOT / "configs"), version_base=None):
            config = schema.to_run(compose("run", overrides=list(arguments)))
        with pytest.raises(ValueError) as refused:  # noqa: PT011 - the caller checks the message
            run_job(config, tmp_path)
        return str(refused.value)

    return run


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_dry_run_tells_processes_and_durations_and_leaves_nothing(command, tmp_path):
    status, lines = command(
        "dry_run=true", f"out={tmp_path / 'run'}", "task=[book,draw]", "task.draw.workers=3"
    )
    assert status == 0
    text = "\n".join(lines)
    for process in (
        "3 x robot", "1 x policy server", "1 x world model learner", "1 x reward learner",
        "1 x policy learner", "1 x imagination book", "3 x imagination draw", "1 x reward scorer",
    ):  # fmt: skip
        assert process in text
    for estimate in ("real rollouts  about", "imagination    about", "total          about"):
        assert estimate in text
    assert files(tmp_path) == {}


def test_a_misspelt_key_is_named(command, tmp_path):
    status, lines = command("polciy.train.steps=3", f"out={tmp_path / 'run'}")
    assert status == 1
    assert "polciy" in lines[0]
    assert not any("Traceback" in line for line in lines)
    assert files(tmp_path) == {}


def test_a_value_out_of_range_is_one_line(command, tmp_path):
    status, lines = command("each_task.alpha=1.5", f"out={tmp_path / 'run'}")
    assert (status, lines) == (1, ["error: each_task.alpha=1.5 must lie inside (0, 1)"])
    assert files(tmp_path) == {}


def test_a_folder_that_cannot_be_written_is_one_line(command, tmp_path, loop):
    """Below a file, because permission bits do not bind root."""
    (tmp_path / "file").write_text("mine")
    status, lines = command(*loop, f"out={tmp_path / 'file' / 'run'}")
    assert (status, len(lines)) == (1, 1), "\n".join(lines)
    assert lines[0].startswith(f"error: out={tmp_path / 'file' / 'run'}: cannot write there (Not a")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["policy.checkpoint=/nowhere"], "policy.checkpoint=/nowhere: there is no folder"),
        (["reward.checkpoint=/nowhere"], "reward.checkpoint=/nowhere: there is no folder"),
        (["policy.embedded.width=64"], "{policy}: width is 32 in the folder, 64 in the config"),
        (["job=report"], "job=report: {out} holds no run (no run.json)"),
        (
            ["task=recorded", "robot=recorded", "robot.path=/nowhere"],
            "/nowhere holds no recordings",
        ),
    ],
)
def test_what_is_not_there_is_named_and_no_folder_made(
    complaint, tmp_path, loop, bases, arguments, message
):
    """A folder would be in the way of the mended command: other settings."""
    given = [a for a in loop if not (a == "task=book" and "task=recorded" in arguments)]
    said = complaint(*given, *arguments, f"out={tmp_path / 'run'}")
    assert said.startswith(message.format(out=tmp_path / "run", policy=bases / "policy"))
    assert files(tmp_path) == {}


def test_a_torn_checkpoint_is_named(complaint, tmp_path, loop, bases):
    torn = tmp_path / "torn"
    torn.mkdir()
    for file in (bases / "policy").iterdir():
        (torn / file.name).write_bytes(file.read_bytes()[:2000])
    said = complaint(*loop, f"policy.checkpoint={torn}", f"out={tmp_path / 'run'}")
    assert said.startswith(f"policy.checkpoint: {torn} is damaged")
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
def test_another_runs_checkpoint_with_a_flipped_bit_is_named(
    complaint, tmp_path, loop, undisturbed
):
    other = tmp_path / "other"
    other.mkdir()
    for file in (undisturbed / "checkpoints" / "policy" / "v0001").iterdir():
        content = bytearray(file.read_bytes())
        if file.suffix == ".safetensors":
            content[-1] ^= 1
        (other / file.name).write_bytes(content)
    said = complaint(*loop, f"policy.checkpoint={other}", f"out={tmp_path / 'run'}")
    assert said.startswith(f"{other} is damaged: its checksum is ")
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
def test_a_folder_with_other_settings_is_left_alone(complaint, loop, undisturbed):
    """Settings that change the outcome; test_stop_and_continue changes those that do not."""
    before = files(undisturbed)
    said = complaint(*loop, "each_task.alpha=0.2", f"out={undisturbed}")
    assert said.startswith(f"{undisturbed} holds a run with other settings ")
    assert "(each_task.alpha was 0.1, now 0.2)" in said
    assert files(undisturbed) == before
