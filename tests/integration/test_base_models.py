"""The committed base models are what their command makes (docs/embedded-models.md)."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from cluster.checkpoints import BASE
from configs import schema
from models.build import load_policy, load_reward, load_world_model
from models.embedded.policy import EmbeddedPolicy

KINDS = ("policy", "world_model", "reward")
ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "base"
TINY = (
    "task=[book]", "guided=4", "each_task.rollouts=22", "demos.per_task=2", "evaluation.episodes=1",
    "robot.height=24", "robot.width=40",
    "policy.embedded.width=16", "policy.embedded.layers=1", "policy.embedded.points=4",
    "world_model.embedded.channels=[16,32]", "reward.embedded.width=8",
    *(f"{kind}.train.{key}" for kind in KINDS for key in ("steps=3", "batch=4", "warmup=1")),
)  # fmt: skip


@pytest.fixture(scope="module")
def recipe():
    schema.register()
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        return schema.to_run(compose("run", overrides=["scale=pretrain", "task=all"]))


@pytest.fixture
def tool(monkeypatch):
    """The modules of tools/base, which is a folder to run and no package."""
    monkeypatch.syspath_prepend(str(TOOL))
    return importlib.import_module("networks"), importlib.import_module("scripted")


def story(kind):
    return json.loads((BASE / kind / "pretraining.json").read_text())


def test_the_base_models_are_small_enough_to_live_in_the_repository():
    sizes = [path.stat().st_size for path in BASE.rglob("*") if path.is_file()]
    assert 0 < sum(sizes) <= 10_000_000


def test_every_base_model_loads_and_tells_how_it_was_made(recipe):
    size = (recipe.robot.height, recipe.robot.width)
    load_policy(recipe.policy, BASE / "policy", 0)
    load_world_model(recipe.world_model, BASE / "world_model", 0, size)
    load_reward(recipe.reward, BASE / "reward", 0)
    for kind in KINDS:
        told = story(kind)
        assert told["command"] == "make base"
        assert told["seed"] == recipe.seed
        assert told["device"]
        assert min(told["data"].values()) > 0


@pytest.mark.long
def test_the_demonstrations_and_the_encoder_give_the_first_losses_of_the_base_policy(
    recipe, tool, tmp_path
):
    """All demonstrations again, then the head's first steps: the rest follows from these."""
    networks, scripted = tool
    wanted = [one for one in scripted.requests(recipe, 0) if one.kind == "demo"]
    played, told = scripted.record(wanted, tmp_path), story("policy")
    clean = played.successes("demo")
    assert told["data"]["demonstrations"] == len(clean)
    policy = EmbeddedPolicy(recipe.policy, recipe.policy.train.seed)
    policy.see_like(EmbeddedPolicy.load(recipe.policy, BASE / "policy", 0))
    size = (recipe.robot.height, recipe.robot.width)
    model = load_world_model(recipe.world_model, BASE / "world_model", 0, size)
    dreamed = networks.Dreamed(played, clean, model)
    head = networks.head_of(policy, recipe.policy, dreamed, clean)
    seen = []

    def on_step(step, loss):
        seen.append(loss)
        if step == len(told["first_losses"]):
            raise StopIteration

    with pytest.raises(StopIteration):
        head.train(tmp_path / "state", on_step)
    # Other processors add in another order; another batch moves the loss by 1e-2.
    for mine, stored in zip(seen, told["first_losses"], strict=True):
        assert math.isclose(mine, stored, rel_tol=2e-3)


@pytest.mark.long
def test_the_command_makes_and_measures_three_models(tmp_path):
    out = tmp_path / "base"
    for what in ("play", "world_model", "reward", "policy", "measure"):
        command = [sys.executable, str(TOOL), what, f"out={out}", *TINY]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads((out / "measured.json").read_text())
    assert measured["policy"]["book"].startswith(("0/1", "1/1"))
    assert measured["reward"]["episodes"] == 20
    assert set(measured["world model"]) == {"1 sampler steps", "3 sampler steps"}
    for kind in KINDS:
        assert json.loads((out / kind / "pretraining.json").read_text())["command"] == "make base"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["polcy"], "choose all, play, policy, world_model, reward, measure or keep"),
        (["policy", "polcy.x=1"], "error: Could not override 'polcy.x'"),
        (["policy", "out=nowhere"], "error: nowhere/play holds no episodes.pickle: play the"),
        (["keep", "out=nowhere"], "error: nowhere has no finished policy, world_model, reward"),
    ],
)
def test_mistakes_are_named(tmp_path, arguments, said):
    done = subprocess.run(
        [sys.executable, str(TOOL), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
