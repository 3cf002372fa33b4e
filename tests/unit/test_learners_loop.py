"""The train loop: closed forms of schedule and average, and resume that changes nothing."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from configs.training import TrainConfig
from contracts.errors import DivergedError
from learners.loop import learning_rate, noise_generator, train
from models.interfaces import Batch, RewardBatch, WorldModelBatch


class Regression:
    """A noisy linear fit of the poses' mean; every parameter is trained but ``frozen``."""

    def __init__(self, seed: int = 0) -> None:
        self.version = -1
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1))
        self.net.register_buffer("frozen", torch.full((2,), 3.0))

    def module(self) -> nn.Module:
        return self.net

    def fit_statistics(self, batch: Batch) -> None:
        raise AssertionError("a loop fits no statistics")

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        assert isinstance(batch, WorldModelBatch)
        poses = torch.from_numpy(batch.poses).mean(dim=1)
        noise = torch.randn(len(poses), generator=generator)
        return (self.net(poses)[:, 0] - poses.sum(dim=1) - 0.1 * noise).square()

    def save(self, folder: Path) -> None:
        raise AssertionError("a loop publishes nothing")


class Scale:
    """Loss is (w - target)^2 of one parameter, or whatever ``bend`` makes of it."""

    def __init__(self, bend: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        self.version = -1
        self.net = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.net.weight)
        self.bend = bend

    def module(self) -> nn.Module:
        return self.net

    def fit_statistics(self, batch: Batch) -> None:
        raise AssertionError("a loop fits no statistics")

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        if isinstance(batch, RewardBatch):
            return self.bend(self.net.weight.sum() - torch.arange(1.0, len(batch.success) + 1))
        assert isinstance(batch, WorldModelBatch)
        targets = torch.from_numpy(batch.poses[:, 0, 0])
        return self.bend((self.net.weight.sum() - targets).square())

    def save(self, folder: Path) -> None:
        raise AssertionError("a loop publishes nothing")


def batch_of(poses: np.ndarray, weight: np.ndarray | None = None) -> WorldModelBatch:
    count = len(poses)
    weight = np.ones(count, np.float32) if weight is None else weight
    frames = np.zeros((count, 11, 3, 8, 8, 3), np.uint8)
    return WorldModelBatch(frames, poses, ["go"] * count, weight)


def sample(step: int) -> WorldModelBatch:
    rng = np.random.default_rng(step)
    return batch_of(rng.normal(size=(4, 11, 7)).astype(np.float32))


def config(**changes: float) -> TrainConfig:
    values: dict = {"steps": 10, "batch": 4, "warmup": 2, "checkpoint_every": 5, "device": "cpu"}
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


def weights(model: Regression) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.net.state_dict().items()}


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("killed_at", [5, 8, 10])
def test_resumed_training_equals_an_unbroken_one_bit_by_bit(tmp_path, ema, killed_at):
    """Killed at step 8 the run continues at checkpoint 5; the lost steps run again, alike."""
    whole = Regression()
    unbroken = train(whole, sample, config(ema=ema), tmp_path / "whole", quiet)
    first, second = Regression(), Regression(seed=1)
    with pytest.raises(KilledError):
        train(first, sample, config(ema=ema), tmp_path / "parts", kill_at(killed_at))
    resumed = train(second, sample, config(ema=ema), tmp_path / "parts", quiet)
    assert resumed.resumed_from == killed_at // 5 * 5
    assert resumed.losses == unbroken.losses
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(second)[name]), name


def test_finished_training_runs_no_step_again(tmp_path):
    trained, again = Regression(), Regression(seed=1)
    first = train(trained, sample, config(ema=0.5), tmp_path, quiet)
    second = train(again, sample, config(ema=0.5), tmp_path, kill_at(10))
    assert second.resumed_from == second.steps == 10
    assert second.losses == first.losses
    assert torch.equal(weights(trained)["0.weight"], weights(again)["0.weight"])


@pytest.mark.parametrize("damage", ["truncate", "flip", "missing", "no facts", "half facts"])
def test_torn_newest_checkpoint_falls_back_to_the_one_before(tmp_path, damage, caplog):
    whole = Regression()
    unbroken = train(whole, sample, config(), tmp_path, quiet)
    newest = tmp_path / "step-00000010"
    victim = newest / ("state.json" if "facts" in damage else "optimizer.pt")
    content = victim.read_bytes()
    if damage in {"truncate", "half facts"}:
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        victim.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    else:
        victim.unlink()
    again = Regression(seed=1)
    resumed = train(again, sample, config(), tmp_path, quiet)
    assert resumed.resumed_from == 5
    assert resumed.losses == unbroken.losses
    assert torch.equal(weights(whole)["0.weight"], weights(again)["0.weight"])
    assert "step-00000010" in caplog.text


def test_interrupted_write_is_ignored_and_two_checkpoints_are_kept(tmp_path):
    (tmp_path / ".partial-step-00000099").mkdir()
    result = train(Regression(), sample, config(checkpoint_every=2), tmp_path, quiet)
    assert result.resumed_from == 0
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000008", "step-00000010"]


def test_state_of_another_training_is_refused_by_name(tmp_path):
    train(Regression(), sample, config(), tmp_path, quiet)
    with pytest.raises(ValueError, match=r"learning_rate: 0.0003 -> 0.01.*delete that folder"):
        train(Regression(), sample, config(learning_rate=0.01), tmp_path, quiet)
    same = train(Regression(), sample, config(checkpoint_every=1), tmp_path, quiet)
    assert same.resumed_from == 10


def test_learning_rate_is_linear_then_a_cosine():
    """Peak 1e-3 after 4 steps of warm-up; the cosine's middle of steps 4..12 is step 8."""
    plan = TrainConfig(steps=13, warmup=4, learning_rate=1e-3, final_learning_rate=0.1)
    rates = [learning_rate(plan, step) for step in range(13)]
    assert rates[:5] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3])
    assert rates[8] == pytest.approx(5.5e-4)
    assert rates[6] == pytest.approx(1e-4 + 9e-4 * (2 + math.sqrt(2)) / 4)
    assert rates[12] == pytest.approx(1e-4)
    assert learning_rate(TrainConfig(steps=1, warmup=0, learning_rate=0.5), 0) == 0.5


def test_average_has_its_closed_form(tmp_path):
    """average_n = d^n w_0 + (1 - d) sum_k d^(n - k) w_k, with w_0 = 0 here."""
    seen: list[float] = []
    raw = Scale()
    poses = np.ones((1, 11, 7), np.float32)
    plan = config(steps=6, learning_rate=0.1, weight_decay=0.0)
    record = lambda step, loss: seen.append(raw.net.weight.item())  # noqa: E731
    train(raw, lambda step: batch_of(poses), plan, tmp_path / "raw", record)
    smooth = Scale()
    plan = config(steps=6, learning_rate=0.1, weight_decay=0.0, ema=0.75)
    train(smooth, lambda step: batch_of(poses), plan, tmp_path / "ema", quiet)
    expected = sum(0.25 * 0.75 ** (6 - k) * w for k, w in enumerate(seen, start=1))
    assert smooth.net.weight.item() == pytest.approx(expected, rel=1e-5)
    assert raw.net.weight.item() != pytest.approx(expected, rel=1e-2)


def test_loss_is_the_mean_of_weight_times_loss(tmp_path):
    """w = 0 and targets 1, 2, 3 lose 1, 4, 9; weights 1, 0.5, 2 give (1 + 2 + 18) / 3 = 7."""
    poses = np.zeros((3, 11, 7), np.float32)
    poses[:, 0, 0] = 1, 2, 3
    batch = batch_of(poses, np.array([1, 0.5, 2], np.float32))
    result = train(Scale(), lambda step: batch, config(steps=1), tmp_path / "a", quiet)
    assert result.losses == (7.0,)
    clips = RewardBatch([], np.array([True, False, True]))
    squared = Scale(torch.square)
    result = train(squared, lambda step: clips, config(steps=1), tmp_path / "b", quiet)
    assert result.losses == (pytest.approx(14 / 3),)


def test_first_step_of_adamw_moves_by_the_learning_rate(tmp_path):
    """Without decay Adam's first step is lr x sign(gradient), whatever the gradient's size."""
    model = Scale()
    poses = np.full((1, 11, 7), 5.0, np.float32)
    plan = config(steps=1, warmup=0, learning_rate=0.25, weight_decay=0.0)
    train(model, lambda step: batch_of(poses), plan, tmp_path, quiet)
    assert model.net.weight.item() == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("beta2", [0.5, 0.95])
def test_second_step_of_adamw_has_its_closed_form(tmp_path, beta2):
    """Gradients 2 (w - 5) are -10 and 2 (w_1 - 5); moments are those of the Adam paper."""
    model = Scale()
    poses = np.full((1, 11, 7), 5.0, np.float32)
    plan = config(
        steps=2,
        warmup=0,
        learning_rate=0.25,
        final_learning_rate=1.0,
        weight_decay=0.0,
        clip_norm=1e9,
        beta2=beta2,
    )
    train(model, lambda step: batch_of(poses), plan, tmp_path, quiet)
    first, second = -10.0, 2 * (0.25 - 5.0)
    mean = (0.9 * 0.1 * first + 0.1 * second) / (1 - 0.9**2)
    square = (beta2 * (1 - beta2) * first**2 + (1 - beta2) * second**2) / (1 - beta2**2)
    assert model.net.weight.item() == pytest.approx(0.25 - 0.25 * mean / square**0.5, rel=1e-5)


def test_cosine_that_outlasts_the_training():
    """With decay_steps=12 and 4 steps of warm-up the middle is step 8, whenever training ends."""
    plan = TrainConfig(
        steps=3, warmup=4, learning_rate=1e-3, final_learning_rate=0.1, decay_steps=12
    )
    rates = [learning_rate(plan, step) for step in (3, 8, 12, 50)]
    assert rates == pytest.approx([8e-4, 5.5e-4, 1e-4, 1e-4])


def half_frozen(value: float) -> Regression:
    model = Regression()
    first = model.net[0]
    assert isinstance(first, nn.Linear)
    first.requires_grad_(False)
    first.bias.fill_(value)
    return model


def test_frozen_weights_are_not_stored_and_must_be_the_same(tmp_path):
    train(half_frozen(1.0), sample, config(), tmp_path, quiet)
    stored = load_file(tmp_path / "step-00000010/weights.safetensors")
    assert set(stored) == {"2.weight", "2.bias", "frozen"}
    assert train(half_frozen(1.0), sample, config(), tmp_path, quiet).resumed_from == 10
    with pytest.raises(ValueError, match=r"frozen weights: .*delete that folder"):
        train(half_frozen(1.5), sample, config(), tmp_path, quiet)


def test_state_of_another_model_is_refused(tmp_path):
    train(Regression(), sample, config(), tmp_path, quiet)
    with pytest.raises(ValueError, match=r"is of another model: 0\.bias, 0\.weight"):
        train(Scale(), sample, config(), tmp_path, quiet)


def test_diverged_training_names_the_step_and_keeps_its_checkpoints(tmp_path):
    def poisoned(step: int) -> WorldModelBatch:
        poses = np.ones((2, 11, 7), np.float32)
        poses[:, 0, 0] = np.nan if step == 7 else 1
        return batch_of(poses)

    with pytest.raises(DivergedError, match=r"loss is nan at training step 7;.*learning_rate"):
        train(Scale(), poisoned, config(), tmp_path, quiet)
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-00000005"]


def test_infinite_gradient_of_a_finite_loss_is_caught(tmp_path):
    """sqrt at 0 is finite and has an infinite slope."""
    model = Scale(lambda x: torch.sqrt(x.abs()))
    poses = np.zeros((1, 11, 7), np.float32)
    with pytest.raises(DivergedError, match=r"gradient norm is .* at training step 0"):
        train(model, lambda step: batch_of(poses), config(), tmp_path, quiet)


def test_model_without_parameters_to_train_is_refused(tmp_path):
    model = Scale()
    model.net.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing can be trained"):
        train(model, sample, config(), tmp_path, quiet)


def test_noise_differs_by_seed_step_and_process():
    draws = {
        torch.randn(1, generator=noise_generator(*key)).item()
        for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    }
    assert len(draws) == 4


def test_deleting_the_state_folder_begins_anew(tmp_path):
    first = train(Regression(), sample, config(), tmp_path / "s", quiet)
    shutil.rmtree(tmp_path / "s")
    again = train(Regression(), sample, config(), tmp_path / "s", quiet)
    assert again.resumed_from == 0
    assert again.losses == first.losses
