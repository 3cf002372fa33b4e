"""What travels to a cluster, and which paths a submitted job refuses."""

import json
import shutil
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from cluster import submitted
from configs import schema

ROOT = Path(__file__).resolve().parents[2]
schema.register()


def upload(repository: Path, target: Path) -> dict[str, int]:
    """What ``ray job submit --working-dir <repository>`` would send: file -> bytes, packed."""
    excludes = get_runtime_env_default_excludes()
    create_package(str(repository), target, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(target) as package:
        return {i.filename: i.compress_size for i in package.infolist() if not i.is_dir()}


def test_the_upload_is_every_file_of_the_program_and_nothing_else(tmp_path):
    sent = upload(ROOT, tmp_path / "package.zip")
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    program = wheel["targets"]["wheel"]["only-include"]
    listed = subprocess.run(
        ["git", "ls-files", "--", *program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(listed.stdout.split()) <= set(sent)  # what git does not know yet may be there, too
    assert {name.split("/")[0] for name in sent} == set(program)
    assert not [name for name in sent if "__pycache__" in name]


def test_the_upload_is_small(tmp_path):
    """About 5.3 MB are the embedded base models; Ray refuses 512 MiB."""
    sent = upload(ROOT, tmp_path / "package.zip")
    weights = sum(size for name, size in sent.items() if name.startswith("models/embedded/base/"))
    assert weights < 8e6
    assert sum(sent.values()) - weights < 2e6


@pytest.fixture
def repository(tmp_path):
    """The program's folders with one file each, and what lies about beside them."""
    folder = tmp_path / "repository"
    for package in ("models/checkpoints", "models/outputs", "services/.venv", "configs/runs"):
        (folder / package).mkdir(parents=True)
        (folder / package / "kept.py").write_text("")
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "huge.so").write_bytes(bytes(1000))
    for name in (".venv", "env"):
        (folder / name).symlink_to(tmp_path / "venv")
    for junk in ("outputs/run", "my_runs", "checkpoints", ".git", "tests", "actors/__pycache__"):
        (folder / junk).mkdir(parents=True)
        (folder / junk / "junk.bin").write_bytes(bytes(1000))
    for file in (".rayignore", ".gitignore"):
        shutil.copy(ROOT / file, folder / file)
    return folder


def test_patterns_are_anchored_and_links_are_not_followed(repository, tmp_path):
    """A package's own folder ``checkpoints`` travels, that of the repository does not. A folder
    .venv inside a package is no part of the program: Ray leaves out that name everywhere."""
    sent = upload(repository, tmp_path / "package.zip")
    assert set(sent) == {
        "models/checkpoints/kept.py", "models/outputs/kept.py", "configs/runs/kept.py",
    }  # fmt: skip


def composed(*arguments: str):
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        return schema.to_run(compose("run", overrides=list(arguments)))


@pytest.fixture
def in_a_job(monkeypatch, tmp_path):
    """Ray's variable, in the copy of the repository that it made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        "RAY_JOB_CONFIG_JSON_ENV_VAR",
        json.dumps({"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}, "metadata": {}}),
    )


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        ([], "out=outputs/run"),
        (["out=mine"], "out=mine"),
        (["job=report", "out=mine"], "out=mine"),
        (["job=export", "out=/shared/run", "export.to=data"], "export.to=data"),
        (["out=/shared/run", "policy.checkpoint=weights"], "policy.checkpoint=weights"),
        (["out=/shared/run", "demos.path=../demos"], "demos.path=../demos"),
        (
            ["out=/shared/run", "policy=pi05", "policy.checkpoint=/m", "policy.pi05.tokenizer=t"],
            "policy.pi05.tokenizer=t",
        ),
        (
            ["job=replay_eval", "out=/r", "replay_eval.run=/a", "replay_eval.models={one: b}"],
            "replay_eval.models.one=b",
        ),
        (["out=/shared/r", "replay_eval.run=old"], "replay_eval.run=old"),
        (["dry_run=true", "reward.checkpoint=r"], "reward.checkpoint=r"),
    ],
)
def test_a_relative_path_is_refused_in_a_job_and_named(in_a_job, arguments, flag):
    with pytest.raises(ValueError, match="absolute path on storage that every node mounts") as said:
        submitted.check_paths(composed(*arguments))
    assert str(said.value).startswith(f"{flag}: a submitted job ")


@pytest.mark.parametrize(
    "arguments",
    [["out=/shared/run"], ["dry_run=true"], ["job=sizes"], ["out=/r", "policy.checkpoint=here"]],
)
def test_what_a_job_can_find_is_not_refused(in_a_job, tmp_path, arguments):
    (tmp_path / "here").mkdir()
    submitted.check_paths(composed(*arguments))


def test_outside_a_job_relative_paths_are_fine(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert submitted.runtime_env() is None
    submitted.check_paths(composed("out=mine", "policy.checkpoint=weights"))
