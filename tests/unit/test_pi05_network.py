"""The pi0.5 network at tiny widths, against closed forms and a plain joint-attention reference."""

import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch.nn import functional

from configs.policy import Pi05Config
from models.pi05.network import (
    Pi05Inputs,
    action_positions,
    build_network,
    euler_times,
    prefix_positions,
    sample_time,
    time_embedding,
)

TINY = Pi05Config(
    vision_width=16,
    vision_depth=2,
    vision_heads=2,
    vision_mlp=24,
    image_size=28,
    text_width=24,
    text_mlp=32,
    expert_width=16,
    expert_mlp=24,
    depth=3,
    heads=4,
    kv_heads=2,
    head_dim=8,
    vocab_size=300,
    action_dim=8,
)


@pytest.fixture
def network():
    network = build_network(TINY, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # adaRMS starts at zero, which would hide its gates
        for value in network.parameters():
            value.add_(0.2 * torch.randn(value.shape, generator=generator))
    return network


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(3)
    return Pi05Inputs(
        torch.rand(2, 3, 3, 28, 28, generator=generator) * 2 - 1,
        torch.tensor([[True, True, False], [True, False, True]]),
        torch.randint(3, 300, (2, 9), generator=generator),
        torch.arange(9) < torch.tensor([[9], [6]]),
    )


def normal(*shape, seed=4):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain_rope(x, positions):
    """Rotate the pair (i, i + d/2) of each head by position * 10000^(-2i/d), as complex numbers."""
    half = x.shape[-1] // 2
    frequency = 10_000.0 ** (-torch.arange(half) / half)
    turn = torch.polar(torch.ones(()), positions[..., None, None] * frequency)
    pair = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat((pair.real, pair.imag), -1)


def plain_rms(norm, x, cond):
    x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    if cond is None:
        return x * (1 + norm.weight), 1.0
    scale, shift, gate = norm.dense(cond).unsqueeze(1).split(x.shape[-1], -1)
    return x * (1 + scale) + shift, gate


def joint_velocity(network, inputs, noisy, time):
    """Both experts in one sequence under openpi's block mask: no cache, no sdpa, no skipping."""
    images = network.embed_images(inputs.images).flatten(1, 2)
    text = network.vlm.language_model.embed(inputs.tokens)
    patches = images.shape[1] // inputs.images.shape[1]
    visible = torch.cat((inputs.image_mask.repeat_interleave(patches, 1), inputs.token_mask), 1)
    valid = torch.cat((visible, torch.ones(noisy.shape[:2], dtype=torch.bool)), 1)
    length = visible.shape[1]
    block = (torch.arange(valid.shape[1]) >= length).long()
    may = (block[None] <= block[:, None]) & valid[:, None] & valid[:, :, None]
    positions = (valid.cumsum(1) - 1).float()
    streams = [torch.cat((images, text), 1), network.action_in_proj(noisy)]
    conditions = [None, network.condition(time)]
    models = (network.vlm.language_model, network.paligemma_with_expert.gemma_expert.model)
    for pair in zip(*(model.layers for model in models), strict=True):
        columns, gates = [[], [], []], []
        for layer, x, cond in zip(pair, streams, conditions, strict=True):
            normed, gate = plain_rms(layer.input_layernorm, x, cond)
            gates.append(gate)
            attention = layer.self_attn
            for column, linear in zip(
                columns, (attention.q_proj, attention.k_proj, attention.v_proj), strict=True
            ):
                column.append(linear(normed).unflatten(-1, (-1, TINY.head_dim)))
        query, key, value = (torch.cat(column, 1) for column in columns)
        query, key = plain_rope(query, positions), plain_rope(key, positions)
        key, value = (x.repeat_interleave(TINY.heads // TINY.kv_heads, 2) for x in (key, value))
        score = torch.einsum("bqhd,bkhd->bhqk", query, key) / TINY.head_dim**0.5
        score = score.masked_fill(~may[:, None], -2.3819763e38)
        mixed = torch.einsum("bhqk,bkhd->bqhd", score.softmax(-1), value).flatten(2)
        halves = (mixed[:, :length], mixed[:, length:])
        for i, (layer, half) in enumerate(zip(pair, halves, strict=True)):
            x = streams[i] + layer.self_attn.o_proj(half) * gates[i]
            normed, gate = plain_rms(layer.post_attention_layernorm, x, conditions[i])
            mlp = layer.mlp
            hidden = functional.gelu(mlp.gate_proj(normed), approximate="tanh")
            streams[i] = x + mlp.down_proj(hidden * mlp.up_proj(normed)) * gate
    return network.action_out_proj(plain_rms(models[1].norm, streams[1], conditions[1])[0])


def test_cached_velocity_equals_joint_attention(network, inputs):
    noisy, time = normal(2, 5, 8), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        expected = joint_velocity(network, inputs, noisy, time)
        actual = network.velocity(network.encode(inputs), noisy, time)
    assert expected.std() > 0.1
    assert_allclose(actual, expected, atol=2e-5)


def test_cached_sampling_equals_sampling_without_a_cache(network, inputs):
    noise = normal(2, 5, 8)
    actions = noise
    with torch.no_grad():
        for time in (1.0, 0.75, 0.5, 0.25):
            actions = actions - joint_velocity(network, inputs, actions, torch.full((2,), time)) / 4
    assert_allclose(network.sample(inputs, noise, 4), actions, atol=2e-5)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_straight_flow_is_integrated_exactly(network, inputs, steps):
    velocity = torch.tensor([1.0, -2.0, 0.5, 0.0, 4.0, -0.25, 8.0, 1.5])
    with torch.no_grad():
        network.action_out_proj.weight.zero_()
        network.action_out_proj.bias.copy_(velocity)
    noise = normal(2, 5, 8)
    assert_allclose(network.sample(inputs, noise, steps), noise - velocity, atol=3e-6)


def test_loss_of_a_network_that_predicts_zero(network, inputs):
    with torch.no_grad():
        network.action_out_proj.weight.zero_()
        network.action_out_proj.bias.zero_()
    actions, noise = normal(2, 5, 8), normal(2, 5, 8, seed=5)
    loss = network(inputs, actions, noise, torch.tensor([0.2, 0.7]))
    assert_allclose(loss.detach(), (noise - actions) ** 2, rtol=1e-6)


def test_hidden_slots_and_padding_are_never_read(network, inputs):
    noise = normal(2, 5, 8)
    images, tokens = inputs.images.clone(), inputs.tokens.clone()
    images[~inputs.image_mask] = 0.123
    tokens[~inputs.token_mask] = 7
    changed = Pi05Inputs(images, inputs.image_mask, tokens, inputs.token_mask)
    assert_array_equal(network.sample(changed, noise, 3), network.sample(inputs, noise, 3))


def test_visible_images_and_tokens_are_read(network, inputs):
    noise = normal(2, 5, 8)
    tokens = inputs.tokens.clone()
    tokens[:, 5] = tokens[:, 5] % 290 + 5
    changed = Pi05Inputs(inputs.images, inputs.image_mask, tokens, inputs.token_mask)
    darker = Pi05Inputs(inputs.images * 0.5, inputs.image_mask, inputs.tokens, inputs.token_mask)
    before = network.sample(inputs, noise, 3)
    for other in (changed, darker):
        assert (network.sample(other, noise, 3) - before).abs().amax((1, 2)).min() > 1e-4


def test_a_row_does_not_see_the_rest_of_its_batch(network, inputs):
    noise = normal(2, 5, 8)
    together = network.sample(inputs, noise, 3)
    for row, length in ((0, 9), (1, 6)):
        slots = inputs.image_mask[row]
        alone = Pi05Inputs(
            inputs.images[row : row + 1, slots],
            inputs.image_mask[row : row + 1, slots],
            inputs.tokens[row : row + 1, :length],
            inputs.token_mask[row : row + 1, :length],
        )
        result = network.sample(alone, noise[row : row + 1], 3)
        assert_allclose(result[0], together[row], atol=1e-5)


def test_positions_skip_what_is_masked():
    mask = torch.tensor([[True, False, True, True, False]])
    assert prefix_positions(mask)[mask].tolist() == [0, 1, 2]
    assert action_positions(mask, 3).tolist() == [[3, 4, 5]]


def test_time_embedding_closed_form():
    embedding = time_embedding(torch.tensor([0.0, 0.001, 1.0]), 6)
    assert embedding[0].tolist() == [0, 0, 0, 1, 1, 1]
    # Periods 0.004, 0.004 * sqrt(1000), 4; a quarter of the first is 0.001, of the last is 1.
    assert embedding[1, 0].item() == pytest.approx(1, abs=1e-6)
    middle = 2 * math.pi * 0.001 / (0.004 * math.sqrt(1000))
    assert embedding[1, 1].item() == pytest.approx(math.sin(middle), abs=1e-6)
    assert embedding[1, 4].item() == pytest.approx(math.cos(middle), abs=1e-6)
    assert embedding[2, 2].item() == pytest.approx(1, abs=1e-6)
    assert embedding[2, 5].item() == pytest.approx(0, abs=1e-6)


def test_euler_times_drift_as_in_float32():
    assert euler_times(4) == [1, 0.75, 0.5, 0.25]
    assert euler_times(10)[9] == 0.09999992698431015


def test_time_sampling_moments():
    times = sample_time(200_000, torch.Generator().manual_seed(0)).double()
    assert times.mean().item() == pytest.approx(0.001 + 0.999 * 1.5 / 2.5, abs=2e-3)
    variance = 0.999**2 * 1.5 / (2.5**2 * 3.5)
    assert times.var().item() == pytest.approx(variance, abs=1e-3)


def test_every_parameter_is_trained_or_frozen(network, inputs):
    network(
        inputs, normal(2, 5, 8), normal(2, 5, 8, seed=5), torch.tensor([0.2, 0.7])
    ).sum().backward()
    dead = {name for name, value in network.named_parameters() if value.grad is None}
    last = "paligemma_with_expert.paligemma.model.language_model.layers.2."
    assert dead == {
        last + "self_attn.q_proj.weight",
        last + "self_attn.o_proj.weight",
        last + "mlp.gate_proj.weight",
        last + "mlp.up_proj.weight",
        last + "mlp.down_proj.weight",
        last + "post_attention_layernorm.weight",
        "paligemma_with_expert.paligemma.model.language_model.norm.weight",
    }
    frozen = {name for name, value in network.named_parameters() if not value.requires_grad}
    assert frozen == dead


def test_equal_seeds_give_equal_weights_and_leave_torchs_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (build_network(TINY, seed) for seed in (5, 5, 6))
    assert_array_equal(torch.get_rng_state(), state)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert_array_equal(a.detach(), b.detach())
    assert not torch.equal(first.action_in_proj.weight, other.action_in_proj.weight)


def test_a_fresh_expert_starts_as_the_identity(inputs):
    """adaRMS gates start at zero, so actions pass every layer unchanged (as openpi starts)."""
    fresh = build_network(TINY, seed=1)
    noisy = normal(2, 5, 8)
    hidden = fresh.decode(fresh.encode(inputs), noisy, torch.tensor([0.3, 0.9]))
    tokens = fresh.action_in_proj(noisy)
    expected = tokens / (tokens.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert_allclose(hidden.detach(), expected.detach(), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"image_size": 30}, "policy.pi05.image_size=30"),
        ({"heads": 3}, "policy.pi05.heads=3"),
        ({"action_dim": 7}, "policy.pi05.action_dim=7"),
        ({"exterior_view": 2}, "policy.pi05.exterior_view='2'"),
    ],
)
def test_impossible_sizes_are_refused(change, flag):
    with pytest.raises(ValueError, match=flag):
        Pi05Config(**{**vars(TINY), **change})


COMPILED = """
import json, sys, torch
from configs.policy import Pi05Config
from models.pi05.network import Pi05Inputs, build_network, euler_times
network = build_network(Pi05Config(**json.loads(sys.argv[1])), seed=1)
draw = torch.Generator().manual_seed(3)
images = torch.rand(2, 2, 3, 28, 28, generator=draw) * 2 - 1
tokens = torch.randint(3, 300, (2, 9), generator=draw)
noise = torch.randn(2, 5, 8, generator=draw)
def inputs(length):
    seen = torch.arange(9) < torch.tensor([[9], [length]])
    return Pi05Inputs(images, torch.ones(2, 2, dtype=torch.bool), tokens, seen)
graphs = []
def count(graph, _):
    graphs.append(graph)
    return graph.forward
compiled = torch.compile(network.integrate, fullgraph=True, dynamic=False, backend=count)
for length in (6, 3):  # other masks of the same shape need no other graph
    with torch.no_grad():
        ours = compiled(inputs(length), noise, euler_times(4))
        torch.testing.assert_close(ours, network.sample(inputs(length), noise, 4))
assert len(graphs) == 1, len(graphs)
"""


def test_sampling_is_one_graph_whatever_the_values():
    """In a process of its own: a compiler cannot see through the run-time type checks of tests."""
    program = [sys.executable, "-c", COMPILED, json.dumps(asdict(TINY))]
    found = subprocess.run(
        program, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]
