import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(p.parent.name for p in ROOT.glob("*/__init__.py"))
LIGHT = [
    "contracts.protocols",
    "configs.schema",
    "actors.rollout",
    "envs.mujoco.robot",
    "envs.recorded.robot",
    "envs.droid.host",
    "envs.droid.client",
    "envs.droid.backends.droid_zerorpc",
]


def test_the_floor_plan_is_complete():
    assert (
        sorted(
            [
                "actors",
                "cluster",
                "configs",
                "contracts",
                "envs",
                "learners",
                "models",
                "replay",
                "services",
            ]
        )
        == PACKAGES
    )


@pytest.mark.parametrize("name", PACKAGES)
def test_our_generic_names_are_ours(name):
    spec = util.find_spec(name)
    assert spec is not None
    assert Path(spec.origin).is_relative_to(ROOT)
    assert set(metadata.packages_distributions().get(name, [])) <= {"vlaw"}
    assert name not in sys.stdlib_module_names


@pytest.mark.parametrize("module", LIGHT)
def test_the_robots_host_needs_neither_torch_nor_ray(module):
    heavy = "{'torch', 'ray', 'diffusers', 'transformers'}"
    code = f"import sys, {module}; bad = {heavy} & set(sys.modules); assert not bad, bad"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_no_placeholder_package_is_asked_for():
    """openpi and polymetis on PyPI are empty; torchvision breaks transformers beside CPU torch."""
    wanted = [
        line
        for name in ("requirements.txt", "requirements-dev.txt")
        for line in (ROOT / name).read_text().lower().splitlines()
    ]
    names = {line.split("==")[0].strip() for line in wanted if line and not line.startswith("#")}
    assert not names & {
        "openpi",
        "polymetis",
        "torchvision",
        "torchaudio",
        "lpips",
        "torch-fidelity",
    }
