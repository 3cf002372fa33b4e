"""pi0.5 against tensors that openpi's own code computed (PARITY_DIR/openpi_*)."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from safetensors import safe_open
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file

from configs.policy import Pi05Config, PolicyConfig
from contracts.types import Observation, RobotState
from models.interfaces import PolicyBatch
from models.pi05 import checkpoint, transforms
from models.pi05.network import (
    Pi05Inputs,
    Pi05Network,
    action_positions,
    euler_times,
    prefix_positions,
    sample_time,
    time_embedding,
)
from models.pi05.policy import Pi05Policy

pytestmark = pytest.mark.parity

ROOT = Path(__file__).parents[2]
PARITY = Path(os.environ.get("PARITY_DIR", ROOT / "../shared/parity"))
KEYS = PARITY / "../reference/pi05_pytorch_state_dict_keys.json"
MODEL, TRANSFORMS = PARITY / "openpi_pi05_tiny", PARITY / "openpi_droid_transforms"
SLOTS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
FULL = {
    "vision_width": 1152,
    "vision_depth": 27,
    "vision_heads": 16,
    "vision_mlp": 4304,
    "text_width": 2048,
    "text_mlp": 16384,
    "expert_width": 1024,
    "expert_mlp": 4096,
    "depth": 18,
    "head_dim": 256,
    "vocab_size": 257152,
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def golden():
    return json.loads((MODEL / "README.json").read_text())


@pytest.fixture(scope="module")
def cases():
    return load_file(MODEL / "cases.safetensors")


@pytest.fixture(scope="module")
def arrays():
    return load_numpy(TRANSFORMS / "cases.safetensors")


def tiny_config(golden, **changes) -> Pi05Config:
    sizes = golden["config"]
    vision, text, expert = sizes["vision"], sizes["text"], sizes["expert"]
    named = {
        "vision_width": vision["hidden_size"],
        "vision_depth": vision["num_hidden_layers"],
        "vision_heads": vision["num_attention_heads"],
        "vision_mlp": vision["intermediate_size"],
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "text_width": text["width"],
        "text_mlp": text["mlp_dim"],
        "expert_width": expert["width"],
        "expert_mlp": expert["mlp_dim"],
        "depth": text["depth"],
        "heads": text["num_heads"],
        "kv_heads": text["num_kv_heads"],
        "head_dim": text["head_dim"],
        "vocab_size": sizes["vocab_size"],
        "action_dim": sizes["pi0"]["action_dim"],
        "max_token_len": sizes["pi0"]["max_token_len"],
    }
    return Pi05Config(**{**named, **changes})


@pytest.fixture
def network(golden):
    with torch.device("meta"):
        network = Pi05Network(tiny_config(golden))
    checkpoint.read_network(network, MODEL / "model.safetensors")
    return network


@pytest.fixture(scope="module")
def inputs(cases):
    images = torch.stack([cases[f"in.image.{slot}"] for slot in SLOTS], dim=1).numpy()
    return Pi05Inputs(
        torch.from_numpy(transforms.images_to_float(images)),
        torch.stack([cases[f"in.image_mask.{slot}"] for slot in SLOTS], dim=1),
        cases["in.tokenized_prompt"],
        cases["in.tokenized_prompt_mask"],
    )


def openpi_loss(network, inputs, cases):
    return network(inputs, cases["in.actions"], cases["in.noise"], cases["in.time"])


def close(actual, expected, atol, rtol=0.0):
    assert_allclose(actual.detach().float().numpy(), expected.numpy(), atol=atol, rtol=rtol)


def test_loss_of_every_action_coordinate(network, inputs, cases, golden):
    loss = openpi_loss(network, inputs, cases)
    close(loss, cases["out.loss"], atol=5e-5, rtol=1e-5)
    assert loss.mean().item() == pytest.approx(golden["expected"]["loss_mean"], abs=1e-5)
    first8 = golden["expected"]["loss_mean_first8"]
    assert loss[..., :8].mean().item() == pytest.approx(first8, abs=1e-5)


def test_intermediates(network, inputs, cases):
    images = network.embed_images(inputs.images[:, :1])[:, 0, ::16]
    close(images, cases["mid.siglip_proj.base_0_rgb"], atol=2e-5)
    text = network.vlm.language_model.embed(inputs.tokens)
    close(text, cases["mid.prefix_lang_embs"], atol=1e-6)
    close(time_embedding(cases["in.time"], 32), cases["mid.time_emb"], atol=1e-6)
    close(network.condition(cases["in.time"]), cases["mid.adarms_cond"], atol=1e-5)
    close(network.action_in_proj(cases["mid.x_t"]), cases["mid.suffix_embs"], atol=1e-5)
    prefix = network.encode(inputs)
    assert_array_equal(prefix.mask, cases["mid.prefix_pad_masks"])
    hidden = network.decode(prefix, cases["mid.x_t"], cases["in.time"])
    close(hidden, cases["mid.suffix_out"], atol=5e-5)
    velocity = network.velocity(prefix, cases["mid.x_t"], cases["in.time"])
    close(velocity, cases["mid.v_t"], atol=5e-5, rtol=1e-5)


def test_positions_of_prefix_and_suffix(cases):
    mask, positions = cases["mid.prefix_pad_masks"], cases["mid.position_ids"]
    length = mask.shape[1]
    assert_array_equal(prefix_positions(mask), positions[:, :length])
    assert_array_equal(action_positions(mask, 15), positions[:, length:])


def test_gradients(network, inputs, cases, golden):
    openpi_loss(network, inputs, cases).mean().backward()
    gradients = {name: value.grad for name, value in network.named_parameters()}
    saved = {name.removeprefix("grad."): x for name, x in cases.items() if name[:5] == "grad."}
    assert len(saved) == 10
    for name, expected in saved.items():
        close(gradients[name], expected, atol=1e-5, rtol=1e-3)
    norms = golden["expected"]["grad_norm_per_param"]
    norms.pop(checkpoint.EXPERT_HEAD)
    assert norms.keys() == gradients.keys()
    for name, gradient in gradients.items():
        norm = 0.0 if gradient is None else gradient.norm().item()
        assert norm == pytest.approx(norms[name] or 0.0, rel=1e-3, abs=1e-5), name
    total = torch.nn.utils.get_total_norm([g for g in gradients.values() if g is not None])
    assert total.item() == pytest.approx(golden["expected"]["global_grad_norm"], rel=1e-5)


def test_parameters_without_gradient_are_frozen(network, golden):
    frozen = {name for name, value in network.named_parameters() if not value.requires_grad}
    assert frozen == set(golden["params_without_gradient"]) - {checkpoint.EXPERT_HEAD}


@pytest.mark.parametrize(("steps", "atol"), [(4, 5e-6), (10, 1e-5)])
def test_sampled_actions(network, inputs, cases, steps, atol):
    actions = network.sample(inputs, cases["in.noise"], steps)
    close(actions, cases[f"out.actions.steps{steps}"], atol=atol)


def test_velocity_along_the_sampled_path(network, inputs, cases, golden):
    times = golden["expected"]["euler_times_10_steps"]
    assert euler_times(10) == times
    actions = cases["in.noise"]
    prefix = network.encode(inputs)
    for time, expected in zip(times, cases["out.v_t.steps10"], strict=True):
        velocity = network.velocity(prefix, actions, torch.full((2,), time))
        close(velocity, expected, atol=2e-5)
        actions = actions - velocity / 10


def test_masked_slot_may_be_left_out(network, inputs, cases):
    two = Pi05Inputs(
        inputs.images[:, :2], inputs.image_mask[:, :2], inputs.tokens, inputs.token_mask
    )
    assert not inputs.image_mask[:, 2].any()
    close(openpi_loss(network, two, cases), cases["out.loss"], atol=5e-5, rtol=1e-5)
    close(network.sample(two, cases["in.noise"], 4), cases["out.actions.steps4"], atol=5e-6)


def test_bfloat16_autocast_stays_within_openpis_own_rounding(network, inputs, cases, golden):
    atol = 3 * golden["expected"]["bf16_vs_fp32_actions_max_abs"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = openpi_loss(network, inputs, cases)
        actions = network.sample(inputs, cases["in.noise"], 10)
    assert loss.dtype == actions.dtype == torch.float32
    assert loss.mean().item() == pytest.approx(golden["expected"]["bf16_loss_mean"], rel=2e-3)
    close(actions, cases["out.bf16.actions.steps10"].float(), atol=atol)


def test_recomputed_gradients_are_the_same(network, inputs, cases, golden):
    with torch.device("meta"):
        again = Pi05Network(tiny_config(golden, recompute=True))
    checkpoint.read_network(again, MODEL / "model.safetensors")
    for model in (network, again):
        openpi_loss(model, inputs, cases).mean().backward()
    for (name, value), other in zip(network.named_parameters(), again.parameters(), strict=True):
        assert (value.grad is None) == (other.grad is None), name
        if value.grad is not None:
            assert_array_equal(value.grad, other.grad)


def test_three_adamw_steps(network, inputs, cases, golden):
    expected = golden["expected"]["train3"]
    trained = [value for value in network.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(trained, betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-10)
    for step in expected["history"]:
        optimiser.param_groups[0]["lr"] = step["lr"]
        loss = openpi_loss(network, inputs, cases).mean()
        assert loss.item() == pytest.approx(step["loss_before"], abs=5e-5)
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        assert norm.item() == pytest.approx(step["grad_norm_before_clip"], rel=1e-3)
        optimiser.step()
    after = openpi_loss(network, inputs, cases).mean().item()
    assert after == pytest.approx(expected["loss_after"], abs=5e-5)
    close(network.action_out_proj.weight, cases["out.after_train.action_out_proj.weight"], 2e-5)
    expert = network.paligemma_with_expert.gemma_expert.model
    query = expert.layers[0].self_attn.q_proj.weight
    close(query, cases["out.after_train.expert_l0_q"], 2e-5)


def test_time_distribution(golden):
    expected = golden["expected"]["time_sampling"]
    times = sample_time(100_000, torch.Generator().manual_seed(0))
    assert times.mean().item() == pytest.approx(expected["analytic_mean"], abs=3e-3)
    assert times.var().item() == pytest.approx(expected["var"], abs=1e-3)
    assert times.min().item() >= 0.001
    assert times.max().item() <= 1


def test_exported_file_is_openpis(network, tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.write_network(network, path, expert_head=True)
    with safe_open(path, "pt") as ours, safe_open(MODEL / "model.safetensors", "pt") as theirs:
        assert set(ours.keys()) == set(theirs.keys())
        assert ours.metadata() == theirs.metadata()
        for name in theirs.keys():  # noqa: SIM118
            if name == checkpoint.EXPERT_HEAD:
                assert ours.get_tensor(name).shape == theirs.get_tensor(name).shape
            else:
                assert_array_equal(ours.get_tensor(name), theirs.get_tensor(name))


def test_full_size_names_and_shapes():
    stored = {name: tuple(entry[0]) for name, entry in json.loads(KEYS.read_text()).items()}
    assert len(stored) == 813
    with torch.device("meta"):
        network = Pi05Network(Pi05Config(**FULL, tokenizer="unused"))
    names = checkpoint.check_shapes(network, KEYS, stored)
    assert len(names) == 811  # the tied and the dead head are no parameters here
    count = sum(value.numel() for value in network.parameters())
    assert count == pytest.approx(3.353e9, rel=1e-3)


def raw_droid(arrays) -> Observation:
    """openpi's observation as ours: the exterior camera twice, the wrist last."""
    exterior = arrays["droid.in.observation/exterior_image_1_left"]
    wrist = arrays["droid.in.observation/wrist_image_left"]
    zeros = np.zeros(7, np.float32)
    state = RobotState(
        arrays["droid.in.observation/joint_position"].astype(np.float32),
        zeros,
        zeros[:6],
        float(arrays["droid.in.observation/gripper_position"][0]),
        0.0,
    )
    return Observation(np.stack([exterior, exterior[::-1], wrist]), state, "pick up the red cup")


@pytest.fixture
def policy(golden, tmp_path):
    """The tiny openpi checkpoint as a folder in openpi's layout, with the fixture's tokenizer."""
    (tmp_path / "assets/droid").mkdir(parents=True)
    copies = {
        "model.safetensors": MODEL / "model.safetensors",
        "assets/droid/norm_stats.json": TRANSFORMS / "norm_stats.json",
    }
    for target, source in copies.items():
        (tmp_path / target).write_bytes(source.read_bytes())
    pi05 = tiny_config(
        golden, max_token_len=200, tokenizer=str(TRANSFORMS / "tiny_tokenizer.model")
    )
    cfg = PolicyConfig(kind="pi05", horizon=15, flow_steps=10, pi05=pi05)
    return Pi05Policy.load(cfg, tmp_path, version=3)


def test_policy_end_to_end(policy, arrays):
    seen = raw_droid(arrays)
    chunk = policy.act_from_noise([seen], [arrays["policy.in.noise"]])[0]
    assert chunk.version == 3
    assert_allclose(chunk.actions, arrays["policy.out.actions"], atol=1e-5)


def test_what_the_network_is_given(policy, arrays):
    given = []
    policy.network.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    policy.network.eval()
    seen = raw_droid(arrays)
    batch = PolicyBatch(
        seen.images[None],
        seen.state.joint_position[None],
        np.array([seen.state.gripper_position], np.float32),
        [seen.instruction],
        arrays["droid_train.in.actions"].astype(np.float32)[None],
        np.ones(1, np.float32),
    )
    loss = policy.loss(batch, torch.Generator().manual_seed(0))
    inputs, actions, noise, time = given[0]
    expected = [arrays[f"droid.out.image/{slot}"] for slot in SLOTS[:2]]
    assert_array_equal(inputs.images[0], transforms.images_to_float(np.stack(expected)))
    mask = arrays["droid.out.tokenized_prompt_mask"]
    assert_array_equal(inputs.tokens[0], arrays["droid.out.tokenized_prompt"][mask])
    assert inputs.token_mask.all()
    assert_allclose(actions[0], arrays["droid_train.out.actions"], atol=1e-6)
    assert loss.item() == pytest.approx(policy.network(inputs, actions, noise, time).mean().item())
