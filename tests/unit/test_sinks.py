"""Names and numbers for TensorBoard and W&B; the libraries themselves are optional."""

import math

import pytest

from configs.run import RunConfig, TaskOverrides
from services.sinks import check_sinks, iteration_of, numbers_in, open_sinks


@pytest.mark.parametrize(
    ("stage", "tag", "iteration"),
    [
        ("1 train world model", "train-world-model", 1),
        ("12 imagine", "imagine", 12),
        ("evaluate vlaw-2", "evaluate-vlaw", 2),
        ("train control", "train-control", 0),
    ],
)
def test_the_iteration_is_the_step_of_a_stages_numbers(stage, tag, iteration):
    assert iteration_of(stage) == (tag, iteration)


def test_numbers_keep_their_path_and_lists_stay_out():
    result = {
        "draw": {"successes": 3, "n": 5},
        "losses": [3.0, 2.0, 1.0],
        "numbers": {"adapter mm at 4 ticks": 1.5, "adapter": "fitted"},
        "missing": math.nan,
        "kept": True,
    }
    assert numbers_in([result]) == {
        "draw/successes": 3,
        "draw/n": 5,
        "numbers/adapter-mm-at-4-ticks": 1.5,
        "kept": 1,
    }
    assert numbers_in(None) == {}


def test_none_by_default_and_a_misspelt_one_is_named(tmp_path):
    assert open_sinks(RunConfig(task={"book": TaskOverrides()}).sinks, tmp_path, {}) == []
    with pytest.raises(ValueError, match="sinks='tensorbord' is not one of tensorboard, wandb"):
        RunConfig(task={"book": TaskOverrides()}, sinks=["tensorbord"])


def test_a_missing_package_is_named_with_the_way_to_it(monkeypatch):
    monkeypatch.setattr("services.sinks.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"sinks=\[wandb\] needs the package wandb: install it"):
        check_sinks(["wandb"])
    check_sinks([])
