"""What starts often, or on a machine without torch, must not import it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LISTED = "import sys; print(sorted({'torch', 'diffusers', 'transformers'} & sys.modules.keys()))"


@pytest.mark.parametrize(
    ("module", "found"),
    [
        # A robot's process holds a handle of the policy server: Ray imports its module there.
        ("cluster.robots, cluster.handles, services.serving", []),
        ("cluster.work, cluster.step_board, services.replay", []),
        ("cluster.jobs", ["torch"]),  # the driver: published models' libraries cost it 5 s
    ],
)
def test_heavy_libraries_stay_out(module, found):
    code = f"import {module}; {LISTED}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(found)
