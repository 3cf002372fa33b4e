"""Leaves out tests whose material is not on this machine, and says so at the top of the output.

They are deselected, not skipped: a skip hides among results, the header line does not.
"""

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("VLAW_SHARED", ROOT / "../shared"))
os.environ.setdefault("PARITY_DIR", str(SHARED / "parity"))
os.environ.setdefault("DROID_SAMPLE_DIR", str(SHARED / "data" / "droid_sample"))


def _missing():
    """Marker -> why its tests cannot run here."""
    missing = {"gpu": "needs a CUDA device; ask with -m gpu", "robot": "moves hardware"}
    for marker, name in (("parity", "PARITY_DIR"), ("shared", "DROID_SAMPLE_DIR")):
        if not Path(os.environ[name]).is_dir():
            missing[marker] = f"{name}={os.environ[name]} is not there"
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        missing["browser"] = "no Chromium found"
    return missing


def pytest_report_header(config):
    return [f"left out: -m {marker} ({why})" for marker, why in _missing().items()]


def pytest_collection_modifyitems(config, items):
    asked = config.getoption("-m")
    left_out = {marker for marker in _missing() if marker not in asked}
    keep, drop = [], []
    for item in items:
        (drop if left_out & {mark.name for mark in item.iter_markers()} else keep).append(item)
    config.hook.pytest_deselected(items=drop)
    items[:] = keep
