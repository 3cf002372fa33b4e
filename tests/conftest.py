"""Leaves out tests whose material is not on this machine, and says so at the top of the output.

They are deselected, not skipped: a skip hides among results, the header line does not.
"""

import os
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("VLAW_SHARED", ROOT / "../shared"))
os.environ.setdefault("PARITY_DIR", str(SHARED / "parity"))
os.environ.setdefault("HF_PROCESSOR_PYTHON", str(ROOT / "../env/hf/bin/python"))
os.environ.setdefault("LEROBOT_PYTHON", str(ROOT / "../env/lerobot/bin/python"))
os.environ.setdefault("DROID_SAMPLE_DIR", str(SHARED / "data" / "droid_sample"))

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vlaw"
os.environ.setdefault("OPENPI_CLIENT_DIR", str(CACHE / "openpi-client-0.1.2"))
NO_CLIENT = pytest.StashKey[str]()  # why openpi-client is not there


def _fetch_openpi_client():
    """Install it once per machine, and away from the environment of the tests: it pins numpy<2.

    Returns why it is not there, or nothing.
    """
    folder = Path(os.environ["OPENPI_CLIENT_DIR"])
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--retries=1", "--timeout=10"]
        wanted = ["--no-deps", f"--target={partial}", "openpi-client==0.1.2"]
        done = subprocess.run([*pip, *wanted], capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(partial, ignore_errors=True)
            return f"openpi-client cannot be installed: {done.stderr.strip().splitlines()[-1:]}"
        try:
            partial.rename(folder)
        except OSError:  # another process of this test run was faster
            shutil.rmtree(partial)
    return ""


@cache
def _can_mount():
    with TemporaryDirectory() as folder:
        tried = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
        if not shutil.which("mount"):
            return False
        if subprocess.run(tried, capture_output=True, check=False).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


# Two processes take file after file: the longest first, so that none is left over at the end.
LONGEST = (
    "test_stop_and_continue", "test_recorded", "test_pool", "test_remote_policy", "test_losses",
    "test_latents", "test_data_parallel", "test_replay_eval", "test_ray_train", "test_base_models",
    "test_submitted_job",
)  # fmt: skip


def _turn(item):
    """Long files, other files that start Ray, all others."""
    name = item.path.stem
    if name in LONGEST:
        return LONGEST.index(name)
    return len(LONGEST) + ("integration" not in item.path.parts)


def _missing():
    """Marker -> why its tests cannot run here."""
    missing = {
        "gpu": "needs a CUDA device; ask with -m gpu",
        "robot": "moves hardware",
        "long": "minutes each: make test-long",
    }
    for marker, name in (
        ("parity", "PARITY_DIR"),
        ("shared", "DROID_SAMPLE_DIR"),
        ("hf_processor", "HF_PROCESSOR_PYTHON"),
        ("lerobot", "LEROBOT_PYTHON"),
    ):
        if not Path(os.environ[name]).exists():
            missing[marker] = f"{name}={os.environ[name]} is not there"
    if not find_spec("zerorpc"):
        missing["zerorpc"] = "zerorpc is not installed"
    if not _can_mount():
        missing["tmpfs"] = "only root may mount a small file system"
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        missing["browser"] = "no Chromium found"
    if not all(map(shutil.which, ("prometheus", "promtool"))):
        missing["prometheus"] = "no Prometheus found"
    return missing


def pytest_report_header(config):
    return [f"left out: -m {marker} ({why})" for marker, why in _missing().items()]


def pytest_collection_modifyitems(config, items):
    asked = config.getoption("-m")
    left_out = {marker for marker in _missing() if marker not in asked}
    if any(item.get_closest_marker("openpi_client") for item in items):
        config.stash[NO_CLIENT] = _fetch_openpi_client()
        left_out |= {"openpi_client"} if config.stash[NO_CLIENT] else set()
    keep, drop = [], []
    for item in items:
        (drop if left_out & {mark.name for mark in item.iter_markers()} else keep).append(item)
    config.hook.pytest_deselected(items=drop)
    items[:] = sorted(keep, key=_turn)  # stable: tests of one file stay in their order


def pytest_report_collectionfinish(config):
    why = config.stash.get(NO_CLIENT, "")
    return f"left out: -m openpi_client ({why})" if why else []
