"""Ctrl-World's loss and sampler against closed forms; no stored data."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.ctrl_world.diffusion import (
    HISTORY,
    Conditions,
    Sampler,
    TrainingDraws,
    karras_sigmas,
    sample,
    sampling_steps,
    training_input,
    training_loss,
)

SHAPE = (4, 11, 4, 24, 16)


def make(seed: int) -> tuple[Tensor, Tensor, TrainingDraws]:
    """Clean latents of unit variance, a context of ones, and draws."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(SHAPE, generator=generator)
    return latents, torch.ones(4, 11, 8), TrainingDraws.sample(SHAPE, generator)


def at_sigma(draws: TrainingDraws, sigma: float) -> TrainingDraws:
    return replace(draws, level=torch.full((4,), (math.log(sigma) - 0.7) / 1.6))


def zero(sample: Tensor, time: Tensor, context: Tensor, ids: Tensor) -> Tensor:
    return torch.zeros_like(sample[:, :, :4])


@pytest.mark.parametrize("sigma", [0.02, 0.5, 2.0, 80.0])
def test_silent_network_has_loss_one_at_every_noise_level(sigma: float) -> None:
    """(eps - sigma z)^2 / (sigma^2 + 1) has mean one for unit z and eps."""
    latents, context, draws = make(0)
    loss = training_loss(zero, latents, context, at_sigma(draws, sigma))
    assert loss.tolist() == pytest.approx([1.0] * 4, abs=0.06)  # 4 sd of a mean of 7680 squares


@pytest.mark.parametrize("sigma", [0.02, 2.0, 80.0])
def test_the_true_velocity_has_no_loss(sigma: float) -> None:
    latents, context, draws = make(1)
    truth = (draws.noise - sigma * latents) / math.sqrt(sigma**2 + 1)
    loss = training_loss(lambda *_: truth, latents, context, at_sigma(draws, sigma))
    assert loss.max() < 1e-8
    wrong = training_loss(lambda *_: -truth, latents, context, at_sigma(draws, sigma))
    assert wrong.tolist() == pytest.approx([4.0] * 4, rel=0.06)  # (2 v)^2, v of unit variance


def test_loss_ignores_what_is_said_about_history() -> None:
    latents, context, draws = make(2)

    def only_history(sample: Tensor, *_: Tensor) -> Tensor:
        answer = torch.zeros_like(sample[:, :, :4])
        answer[:, :HISTORY] = 1e6
        return answer

    expected = training_loss(zero, latents, context, draws)
    assert torch.equal(training_loss(only_history, latents, context, draws), expected)


def test_each_loss_belongs_to_its_own_sample() -> None:
    latents, context, draws = make(3)
    before = training_loss(zero, latents, context, draws)
    latents[2] += 1
    changed = training_loss(zero, latents, context, draws) != before
    assert changed.tolist() == [False, False, True, False]


def test_noise_levels_that_the_network_is_told_and_given() -> None:
    """sigma = e at level 3/16: told 1/4, inputs of unit variance, condition over 0.18215."""
    latents, context, draws = make(4)
    draws = replace(at_sigma(draws, math.e), condition_level=torch.zeros(4))
    draws = replace(draws, keep=torch.tensor([0.04, 0.06, 0.0, 1.0]))
    step = training_input(latents, context, draws)
    assert step.time.tolist() == pytest.approx([0.25] * 4, abs=1e-6)
    assert step.sample[:, :, :4].std().item() == pytest.approx(1, abs=0.02)
    for frame in range(11):
        torch.testing.assert_close(step.sample[:, frame, 4:] * 0.18215, latents[:, HISTORY])
    assert step.context.mean((1, 2)).tolist() == [0, 1, 0, 1]  # one in twenty loses its context
    assert step.ids[0].tolist() == [7, 127, 0]


def test_training_noise_is_log_normal() -> None:
    shape = (20_000, 11, 4, 1, 1)
    draws = TrainingDraws.sample(shape, torch.Generator().manual_seed(0))
    step = training_input(torch.zeros(shape), torch.zeros(20_000, 11, 1), draws)
    log_sigma = step.time * 4
    assert log_sigma.mean().item() == pytest.approx(0.7, abs=0.05)
    assert log_sigma.std().item() == pytest.approx(1.6, abs=0.05)
    level = 0.3 * draws.history_level  # of history, whose clean latents are zero here
    expected = level * draws.history_noise[:, :, 0, 0, 0] / (1 + level**2).sqrt()
    torch.testing.assert_close(step.sample[:, :HISTORY, 0, 0, 0], expected)


def test_fifty_noise_levels() -> None:
    """Figures that upstream's scheduler printed (reference/ctrl_world.md, section 4)."""
    sigmas = karras_sigmas(50).tolist()
    assert len(sigmas) == 51
    assert sigmas[:4] == pytest.approx([700, 620.33, 548.56, 484.03], abs=0.01)
    assert sigmas[-5:] == pytest.approx([0.0138, 0.0077, 0.0040, 0.0020, 0], abs=1e-4)


def given(batch: int, generator: torch.Generator) -> Conditions:
    return Conditions(
        torch.randn(batch, 6, 4, 24, 16, generator=generator),
        torch.randn(batch, 4, 24, 16, generator=generator),
        torch.randn(batch, 11, 8, generator=generator),
    )


def test_an_oracle_is_sampled_exactly() -> None:
    """The velocity that points at ``target`` from any state leads there in any number of steps."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(1, 5, 4, 24, 16, generator=generator)
    noise = torch.randn(1, 5, 4, 24, 16, generator=generator)

    def oracle(sample: Tensor, time: Tensor, *_: Tensor) -> Tensor:
        sigma = (4 * time).exp()[:, None, None, None, None]
        state = sample[:, HISTORY:, :4] * (sigma**2 + 1).sqrt()
        v = (state - (sigma**2 + 1) * target) / (sigma * (sigma**2 + 1).sqrt())
        return torch.cat([torch.zeros_like(sample[:, :HISTORY, :4]), v], dim=1)

    for guidance in (1.0, 2.0):
        got = sample(oracle, given(1, generator), noise, Sampler(8, guidance))
        torch.testing.assert_close(got, target, atol=2e-3, rtol=0)  # 700 * float32 epsilon * steps


def from_context(sample: Tensor, time: Tensor, context: Tensor, ids: Tensor) -> Tensor:
    """Predicts its context's mean everywhere, so a half without context predicts zero."""
    return context.mean((1, 2))[:, None, None, None, None].expand_as(sample[:, :, :4])


def test_guidance_grows_from_one_at_the_known_frame() -> None:
    """One step from unit noise: x' = x + (x - D) / s * (0 - s) = D, affine in v frame by frame."""
    generator = torch.Generator().manual_seed(0)
    ones = replace(given(1, generator), context=torch.ones(1, 11, 8))
    got = sample(from_context, ones, torch.zeros(1, 5, 4, 24, 16), Sampler(1, 3.0))
    v = -got.mean((0, 2, 3, 4)) * math.sqrt(1 + 1 / 700**2)  # D = -s / sqrt(s^2 + 1) v
    assert v.tolist() == pytest.approx([1, 1.5, 2, 2.5, 3], rel=1e-5)


def test_guidance_one_asks_only_the_conditional_network() -> None:
    generator = torch.Generator().manual_seed(0)
    ones = replace(given(2, generator), context=torch.ones(2, 11, 8))
    noise = torch.randn(2, 5, 4, 24, 16, generator=generator)
    contexts = []

    def watched(sample: Tensor, time: Tensor, context: Tensor, ids: Tensor) -> Tensor:
        contexts.append(context)
        return from_context(sample, time, context, ids)

    sample(watched, ones, noise, Sampler(3, 1.0))
    assert [len(context) for context in contexts] == [2, 2, 2]
    contexts.clear()
    sample(watched, ones, noise, Sampler(3, 2.0))
    assert [context.mean((1, 2)).tolist() for context in contexts] == [[0, 0, 1, 1]] * 3


def test_history_and_current_frame_reach_the_network_clean() -> None:
    generator = torch.Generator().manual_seed(0)
    conditions = given(1, generator)
    noise = torch.randn(1, 5, 4, 24, 16, generator=generator)
    seen = []

    def watched(sample: Tensor, time: Tensor, context: Tensor, ids: Tensor) -> Tensor:
        seen.append((sample, ids))
        return torch.zeros_like(sample[:, :, :4])

    list(sampling_steps(watched, conditions, noise, Sampler(2, 1.0)))
    for sample_, ids in seen:
        assert torch.equal(sample_[:, :HISTORY, :4], conditions.history)
        torch.testing.assert_close(sample_[:, 10, 4:] * 0.18215, conditions.current)
        assert ids.tolist() == [pytest.approx([7, 127, 0.02])]
    # the first input is the noise itself: 700.0007 noise / sqrt(700^2 + 1)
    torch.testing.assert_close(seen[0][0][:, HISTORY:, :4], noise)
