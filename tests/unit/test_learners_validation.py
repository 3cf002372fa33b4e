"""Validation while training: what is kept, when it stops, and resume that changes nothing."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from configs.training import TrainConfig
from contracts.errors import DivergedError
from learners.loop import TrainResult, train
from learners.validation import Validation
from models.interfaces import Batch, WorldModelBatch


class Walker:
    """One weight that AdamW moves by about the learning rate per step, towards +infinity."""

    def __init__(self) -> None:
        self.version = -1
        self.net = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.net.weight)

    @property
    def at(self) -> float:
        return self.net.weight.item()

    def module(self) -> nn.Module:
        return self.net

    def fit_statistics(self, batch: Batch) -> None:
        raise AssertionError("a loop fits no statistics")

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        assert isinstance(batch, WorldModelBatch)
        noise = torch.rand(len(batch.weight), generator=generator)
        return -self.net.weight.sum() * (1 + noise)

    def save(self, folder: Path) -> None:
        raise AssertionError("a loop publishes nothing")


def sample(step: int) -> WorldModelBatch:
    frames = np.zeros((2, 11, 3, 8, 8, 3), np.uint8)
    poses = np.zeros((2, 11, 7), np.float32)
    return WorldModelBatch(frames, poses, ["go"] * 2, np.ones(2, np.float32))


def config(**changes: float) -> TrainConfig:
    values: dict = {"steps": 12, "batch": 2, "warmup": 0, "checkpoint_every": 5, "device": "cpu"}
    values |= {"learning_rate": 0.1, "final_learning_rate": 1.0, "weight_decay": 0.0}
    return TrainConfig(**(values | changes))


def quiet(step: int, loss: float) -> None:
    """Nobody watches."""


class KilledError(Exception):
    """The process was killed."""


def kill_at(last: int) -> Callable[[int, float], None]:
    def on_step(step: int, loss: float) -> None:
        if step == last:
            raise KilledError

    return on_step


def distance_to(model: Walker, goal: float) -> Callable[[], float]:
    return lambda: abs(model.at - goal)


def run(folder: Path, model: Walker, on_step=quiet, ema: float = 0.0, **how) -> TrainResult:
    """The weight is 0.1 k after k steps (AdamW with a constant sign of the gradient), so it is
    nearest to 0.42 after 4 steps."""
    validation = Validation(**({"every": 2, "measure": distance_to(model, 0.42)} | how))
    return train(model, sample, config(ema=ema), folder, on_step, validation)


def test_measures_at_every_second_step_and_keeps_the_best(tmp_path):
    model = Walker()
    result = run(tmp_path, model)
    expected = [(k, abs(0.1 * k - 0.42)) for k in (2, 4, 6, 8, 10, 12)]
    assert [step for step, _ in result.validation] == [step for step, _ in expected]
    np.testing.assert_allclose(
        [value for _, value in result.validation], [v for _, v in expected], atol=1e-4
    )
    assert result.kept_step == 4
    assert model.at == pytest.approx(0.4, abs=1e-4)
    assert result.steps == 12


def test_the_last_weights_are_kept_on_request(tmp_path):
    model = Walker()
    assert run(tmp_path, model, keep="last").kept_step == 12
    assert model.at == pytest.approx(1.2, abs=1e-3)


def test_the_last_step_is_measured_even_between_two_measurements(tmp_path):
    model = Walker()
    result = run(tmp_path, model, every=5, measure=distance_to(model, 9.0))
    assert [step for step, _ in result.validation] == [5, 10, 12]
    assert result.kept_step == 12


@pytest.mark.parametrize(("patience", "steps"), [(1, 6), (3, 10), (4, 12), (0, 12)])
def test_patience_counts_measurements_without_a_new_best(tmp_path, patience, steps):
    model = Walker()
    result = run(tmp_path, model, patience=patience)
    assert result.steps == steps
    assert result.kept_step == 4
    assert model.at == pytest.approx(0.4, abs=1e-4)


def test_a_new_best_gives_patience_anew(tmp_path):
    """Best at 2 (0.2), worse at 4, better at 6, then worse: patience 2 ends it at step 10."""
    model = Walker()
    answers: Iterator[float] = iter([5.0, 6.0, 4.0, 4.0, 4.5, 9.0])
    result = run(tmp_path, model, patience=2, measure=lambda: next(answers))
    assert result.validation == ((2, 5.0), (4, 6.0), (6, 4.0), (8, 4.0), (10, 4.5))
    assert result.kept_step == 6


@pytest.mark.parametrize("ema", [0.0, 0.5])
@pytest.mark.parametrize("killed_at", [3, 4, 5, 7, 9, 10])
def test_resumed_equals_unbroken(tmp_path, killed_at, ema):
    """Whenever it dies: before, at or after the best step, between checkpoints, at the end."""
    whole, first, second = Walker(), Walker(), Walker()
    unbroken = run(tmp_path / "whole", whole, ema=ema, patience=3)
    with pytest.raises(KilledError):
        run(tmp_path / "parts", first, kill_at(killed_at), ema=ema, patience=3)
    resumed = run(tmp_path / "parts", second, ema=ema, patience=3)
    assert resumed.losses == unbroken.losses
    assert resumed.validation == unbroken.validation
    assert resumed.kept_step == unbroken.kept_step
    assert second.at == whole.at


def test_a_finished_training_is_not_trained_on(tmp_path):
    run(tmp_path, Walker(), patience=1)
    again = Walker()
    result = run(tmp_path, again, patience=1)
    assert (result.resumed_from, result.steps, result.kept_step) == (6, 6, 4)
    assert again.at == pytest.approx(0.4, abs=1e-4)


def test_the_average_is_measured_and_kept(tmp_path):
    """With decay 1/2 the average of w = 0.1 k, from w = 0, is a(k) = a(k-1)/2 + 0.05 k."""
    model, average, expected = Walker(), 0.0, []
    for k in range(1, 13):
        average = average / 2 + 0.05 * k
        if k % 2 == 0:
            expected.append(abs(average - 0.42))
    result = run(tmp_path, model, ema=0.5)
    np.testing.assert_allclose([value for _, value in result.validation], expected, atol=1e-4)
    assert result.kept_step == 2 * (1 + int(np.argmin(expected)))
    assert abs(model.at - 0.42) == pytest.approx(min(expected), abs=1e-4)


def test_measuring_changes_no_loss_and_sees_eval_mode(tmp_path):
    model = Walker()
    modes = []

    def measure() -> float:
        modes.append((model.net.training, torch.is_grad_enabled()))
        return 1.0

    measured = run(tmp_path / "a", model, measure=measure, ema=0.5)
    plain = train(Walker(), sample, config(ema=0.5), tmp_path / "b", quiet)
    assert measured.losses == plain.losses
    assert set(modes) == {(False, False)}
    assert plain.validation == ()
    assert plain.kept_step == 12


def test_the_torn_newest_checkpoint_costs_no_best(tmp_path):
    """Step 10 is damaged: the run goes back to step 5, whose best is step 4."""
    model, again = Walker(), Walker()
    whole = run(tmp_path / "whole", Walker())
    with pytest.raises(KilledError):
        run(tmp_path / "parts", model, kill_at(11))
    newest = max((tmp_path / "parts").glob("step-*"))
    assert newest.name == "step-00000010"
    (newest / "weights.safetensors").write_bytes(b"torn")
    resumed = run(tmp_path / "parts", again)
    assert resumed.resumed_from == 5
    assert resumed.validation == whole.validation
    assert again.at == pytest.approx(0.4, abs=1e-4)


def test_a_lost_best_is_told(tmp_path):
    run(tmp_path, Walker(), patience=1)
    shutil.rmtree(tmp_path / "step-00000004")
    with pytest.raises(ValueError, match="step-00000004, the best weights of this training, is mi"):
        run(tmp_path, Walker(), patience=1)


def test_other_patience_is_another_training(tmp_path):
    with pytest.raises(KilledError):
        run(tmp_path, Walker(), kill_at(5), patience=1)
    with pytest.raises(ValueError, match="validation: "):
        run(tmp_path, Walker(), patience=2)


def test_a_measurement_that_is_no_number_ends_it(tmp_path):
    with pytest.raises(DivergedError, match="the validation is nan at training step 2"):
        run(tmp_path, Walker(), measure=lambda: float("nan"))


def test_the_state_tells_the_curve(tmp_path):
    """What a person sees who looks into the folder of a training under way."""
    with pytest.raises(KilledError):
        run(tmp_path, Walker(), kill_at(5))
    facts = json.loads((tmp_path / "step-00000005" / "state.json").read_text())
    assert [step for step, _ in facts["validation"]] == [2, 4]
