"""LoRA: a closed form of the adapted weight, exact merging, and what is left trainable."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn

from models.lora import add_lora, has_lora, merged_state


def model(seed: int = 0) -> nn.ModuleDict:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.ModuleDict(
            {"up": nn.Linear(6, 4), "down": nn.Linear(4, 3), "norm": nn.LayerNorm(3)}
        )


def run(module: nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
    return module["norm"](module["down"](torch.tanh(module["up"](x))))


def stir(module: nn.Module) -> None:
    """Give B values, as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if "lora_B" in name:
                value.normal_(generator=generator)


X = torch.linspace(-1, 1, 12).reshape(2, 6)


def test_a_fresh_adapter_changes_no_output_and_only_adapters_train():
    plain, adapted = model(), add_lora(model(), 2, 4, ["up"], seed=1)
    assert_array_equal(run(adapted, X).detach(), run(plain, X).detach())
    trained = {name for name, value in adapted.named_parameters() if value.requires_grad}
    assert trained == {"up.lora_A.default.weight", "up.lora_B.default.weight"}
    assert has_lora(adapted)
    assert not has_lora(plain)


def test_merged_weight_is_w_plus_alpha_over_rank_times_b_a():
    plain, adapted = model(), add_lora(model(), 2, 3, ["up", "down"], seed=1)
    stir(adapted)
    merged = merged_state(adapted)
    assert list(merged) == list(plain.state_dict())
    weights = {name: value.detach().numpy() for name, value in adapted.named_parameters()}
    for layer in ("up", "down"):
        a, b = (weights[f"{layer}.lora_{letter}.default.weight"] for letter in "AB")
        expected = plain.state_dict()[f"{layer}.weight"].numpy() + 1.5 * b @ a
        np.testing.assert_allclose(merged[f"{layer}.weight"], expected, rtol=1e-6)
    assert_array_equal(merged["norm.weight"], plain.state_dict()["norm.weight"])
    assert not np.allclose(run(adapted, X).detach(), run(plain, X).detach())
    expected = run(adapted, X).detach()
    plain.load_state_dict(merged)
    torch.testing.assert_close(run(plain, X).detach(), expected)


def test_merging_twice_gives_the_same_and_leaves_the_module_alone():
    adapted = add_lora(model(), 2, 3, ["up"], seed=1)
    stir(adapted)
    before = run(adapted, X).detach()
    first, second = merged_state(adapted), merged_state(adapted)
    for name, value in first.items():
        assert_array_equal(value, second[name])
    assert_array_equal(run(adapted, X).detach(), before)


def test_equal_seeds_draw_equal_adapters_and_torchs_own_state_is_kept():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = (add_lora(model(), 2, 1, ["up"], seed=s) for s in (1, 1, 2))
    assert torch.rand(1) == expected
    name = "up.lora_A.default.weight"
    draws = [dict(m.named_parameters())[name].detach() for m in (first, again, other)]
    assert_array_equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_state_of_a_module_without_adapters_is_its_own():
    plain = model()
    for name, value in plain.state_dict().items():
        assert_array_equal(merged_state(plain)[name], value)


@pytest.mark.parametrize("target", ["sideways", "norm"])
def test_a_target_that_is_no_linear_layer_is_named(target):
    with pytest.raises(ValueError, match=f"lora_targets: '{target}' names no linear layer"):
        add_lora(model(), 2, 1, ["up", target], seed=0)


def test_rank_zero_is_refused():
    with pytest.raises(ValueError, match="lora_rank=0"):
        add_lora(model(), 0, 1, ["up"], seed=0)
