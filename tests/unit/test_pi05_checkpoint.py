"""pi0.5 weights on disk: every spelling that openpi, lerobot and transformers write."""

import pytest
import torch
from numpy.testing import assert_array_equal
from safetensors.torch import load_file, save_file

from configs.policy import Pi05Config
from models.pi05.checkpoint import network_names, read_network, write_network
from models.pi05.network import Pi05Network, build_network

TINY = Pi05Config(
    vision_width=8,
    vision_depth=1,
    vision_heads=2,
    vision_mlp=8,
    image_size=28,
    text_width=16,
    text_mlp=16,
    expert_width=8,
    expert_mlp=8,
    depth=2,
    heads=2,
    head_dim=4,
    vocab_size=300,
)
EMBED = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
HEAD = "paligemma_with_expert.paligemma.lm_head.weight"
EXPERT_HEAD = "paligemma_with_expert.gemma_expert.lm_head.weight"
VISION = "paligemma_with_expert.paligemma.model.vision_tower."


@pytest.fixture
def network():
    return build_network(TINY, seed=1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def read(path) -> Pi05Network:
    with torch.device("meta"):
        network = Pi05Network(TINY)
    read_network(network, path)
    return network


def same(first, second):
    assert first.state_dict().keys() == second.state_dict().keys()
    for name, value in first.state_dict().items():
        assert_array_equal(value, second.state_dict()[name], err_msg=name)


@pytest.mark.parametrize("expert_head", [False, True])
def test_round_trip_is_bitwise(network, path, expert_head):
    write_network(network, path, expert_head)
    same(read(path), network)
    stored = load_file(path)
    assert (EXPERT_HEAD in stored) == expert_head
    assert EMBED not in stored
    assert_array_equal(stored[HEAD], network.state_dict()[EMBED])
    frozen = [value.requires_grad for value in network.parameters()]
    assert [value.requires_grad for value in read(path).parameters()] == frozen


def lerobot(weights):
    """Both tied tensors, the head stale, behind ``model.``; the expert's head too."""
    weights[HEAD] = torch.zeros_like(weights[EMBED])
    weights[EXPERT_HEAD] = torch.ones(2)
    return {f"model.{name}": value for name, value in weights.items()}


def recent_transformers(weights):
    return {name.replace("vision_model.", ""): value for name, value in weights.items()}


def plain(weights):
    return weights


@pytest.mark.parametrize("spelling", [lerobot, recent_transformers, plain])
def test_other_spellings_load_the_same_weights(network, path, spelling):
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    save_file(spelling(weights), path)
    same(read(path), network)


def test_stored_bfloat16_becomes_float32(network, path):
    weights = {name: value.bfloat16() for name, value in network.state_dict().items()}
    save_file(weights, path)
    loaded = read(path).state_dict()
    for name, value in weights.items():
        assert loaded[name].dtype == torch.float32
        assert_array_equal(loaded[name], value.float())


def test_the_error_lists_every_wrong_tensor(network, path):
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    weights["action_inn_proj.bias"] = weights.pop("action_in_proj.bias")
    weights["time_mlp_in.weight"] = torch.zeros(3, 5)
    del weights[VISION + "vision_model.post_layernorm.bias"]
    save_file(weights, path)
    with pytest.raises(ValueError, match="does not fit") as caught:
        read(path)
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert lines == [
        "missing action_in_proj.bias",
        f"missing {VISION}vision_model.post_layernorm.bias",
        "unknown action_inn_proj.bias",
        "time_mlp_in.weight is (3, 5), the config says (8, 8)",
    ]


def test_a_missing_embedding_is_an_error(network, path):
    weights = dict(network.state_dict())
    del weights[EMBED]
    save_file(weights, path)
    with pytest.raises(ValueError, match=f"missing {EMBED}"):
        read(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_named(network, path, value):
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    weights["time_mlp_in.bias"][3] = value
    save_file(weights, path)
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 tensors: time_mlp_in\.bias"):
        read(path)


@pytest.mark.parametrize("kept", [0, 5, 5000, -4])
def test_a_file_cut_short_is_refused(network, path, kept):
    write_network(network, path, expert_head=False)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="is no whole safetensors file"):
        read(path)


def test_two_spellings_of_one_parameter_are_refused():
    with pytest.raises(ValueError, match="stored twice"):
        network_names(["action_in_proj.bias", "model.action_in_proj.bias"])


def test_a_missing_file_is_named(path):
    with pytest.raises(ValueError, match=r"no pi0\.5 weights at"):
        read(path)
