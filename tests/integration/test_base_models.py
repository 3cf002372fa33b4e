"""The committed base models are what their command makes (docs/embedded-models.md)."""

import json
import math
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from cluster.checkpoints import BASE
from cluster.robots import DemonstrationProcess, DemonstrationRequest
from configs import schema
from contracts.seeds import fold
from learners.policy import PolicySources, train_policy
from learners.selection import real_successes
from models.build import load_policy, load_reward, load_world_model
from replay.store import ReplayStore

KINDS = ("policy", "world_model", "reward")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe():
    schema.register()
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        return schema.to_run(compose("run", overrides=["scale=pretrain", "task=all"]))


def story(kind):
    return json.loads((BASE / kind / "pretraining.json").read_text())


def test_the_base_models_are_small_enough_to_live_in_the_repository():
    sizes = [path.stat().st_size for path in BASE.rglob("*") if path.is_file()]
    assert 0 < sum(sizes) <= 5_000_000


def test_every_base_model_loads_and_tells_how_it_was_made(recipe):
    size = (recipe.robot.height, recipe.robot.width)
    load_policy(recipe.policy, BASE / "policy", 0)
    load_world_model(recipe.world_model, BASE / "world_model", 0, size)
    load_reward(recipe.reward, BASE / "reward", 0)
    for kind in KINDS:
        told = story(kind)
        assert told["command"] == "make base"
        assert told["seed"] == recipe.seed
        assert len(told["full_precision_checksum"]) == 64
        assert (
            told["steps"]
            == {
                "policy": recipe.policy,
                "world_model": recipe.world_model,
                "reward": recipe.reward,
            }[kind].train.steps
        )


@pytest.mark.long
def test_retraining_a_slice_of_the_base_policy_gives_its_first_losses(recipe, tmp_path):
    """All demonstrations again, then the first steps: the rest of the steps follow from these."""
    store = ReplayStore.create_or_open(tmp_path / "demos")
    robot = DemonstrationProcess(recipe.robot)
    for task in recipe.task:
        for k in range(recipe.demos.per_task):
            seed = fold(recipe.seed, "demo", task, k)
            request = DemonstrationRequest(f"demo-{task}-{k:04d}", task, seed, recipe.demos.noise)
            store.add(*robot.collect(request))
    told = story("policy")
    assert told["data"] == {"demonstrations": len(real_successes(store).ids)}

    seen = []
    folders = (tmp_path / "state", tmp_path / "out")
    with pytest.raises(StopIteration):
        train_policy(
            recipe.policy,
            PolicySources(real_successes(store)),
            None,
            *folders,
            lambda step, loss: seen.append(loss) or _stop_after(step, told["first_losses"]),
        )
    store.close()
    assert len(seen) == len(told["first_losses"])
    for mine, stored in zip(seen, told["first_losses"], strict=True):
        # Other processors add in another order; another batch moves the loss by 1e-2.
        assert math.isclose(mine, stored, rel_tol=2e-3)


def _stop_after(step, losses):
    if step == len(losses):
        raise StopIteration
