"""pi0.5 against tensors that openpi's own code computed (PARITY_DIR/openpi_pi05_tiny).

Widths, depths, horizon, slots, step counts, seeds and tolerances are those of the folder.
"""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from safetensors import safe_open
from safetensors.torch import load_file

from configs.policy import Pi05Config
from models.pi05 import augmentation, checkpoint, transforms
from models.pi05.network import (
    Pi05Inputs,
    Pi05Network,
    action_positions,
    euler_times,
    prefix_positions,
    sample_time,
    time_embedding,
)

pytestmark = pytest.mark.parity

ROOT = Path(__file__).parents[2]
PARITY = Path(os.environ.get("PARITY_DIR", ROOT / "../shared/parity"))
# The list of names lies beside the folders of the task, wherever PARITY_DIR points.
SHARED = Path(os.environ.get("VLAW_SHARED", ROOT / "../shared"))
KEYS = SHARED / "reference/pi05_pytorch_state_dict_keys.json"
MODEL = PARITY / "openpi_pi05_tiny"
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
def tolerance(golden):
    """atol and rtol that the folder suggests for one kind of number."""

    def of(kind: str) -> dict[str, float]:
        entry = golden["tolerances_suggested"][kind]
        return {name: entry[name] for name in ("atol", "rtol") if name in entry}

    return of


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
def inputs(cases, golden):
    slots = golden["image_order"]
    images = torch.stack([cases[f"in.image.{slot}"] for slot in slots], dim=1).numpy()
    return Pi05Inputs(
        torch.from_numpy(transforms.images_to_float(images)),
        torch.stack([cases[f"in.image_mask.{slot}"] for slot in slots], dim=1),
        cases["in.tokenized_prompt"],
        cases["in.tokenized_prompt_mask"],
    )


def openpi_loss(network, inputs, cases):
    return network(inputs, cases["in.actions"], cases["in.noise"], cases["in.time"])


def close(actual, expected, atol, rtol=0.0):
    assert_allclose(actual.detach().float().numpy(), expected.float().numpy(), atol=atol, rtol=rtol)


def numbered(cases, pattern):
    """The number in the name of every tensor whose name matches: {10: tensor}."""
    found = {match[1]: value for name, value in cases.items() if (match := re.match(pattern, name))}
    assert found, pattern
    return {int(number): value for number, value in found.items()}


def test_loss_of_every_action_coordinate(network, inputs, cases, golden, tolerance):
    loss = openpi_loss(network, inputs, cases)
    close(loss, cases["out.loss"], **tolerance("fp32_loss_and_v_t"))
    assert loss.mean().item() == pytest.approx(golden["expected"]["loss_mean"], abs=1e-5)
    first8 = golden["expected"]["loss_mean_first8"]
    assert loss[..., :8].mean().item() == pytest.approx(first8, abs=1e-5)


def test_intermediates_of_the_prefix(network, inputs, cases, golden):
    every = int(re.search(r"every (\d+)th of", " ".join(golden["notes"]))[1])
    tokens = network.embed_images(inputs.images)
    for slot, name in enumerate(golden["image_order"]):
        expected = cases.get(f"mid.siglip_proj.{name}")
        if expected is not None:
            close(tokens[:, slot, ::every], expected, atol=2e-5)
    text = network.vlm.language_model.embed(inputs.tokens)
    close(text, cases["mid.prefix_lang_embs"], atol=1e-6, rtol=1e-6)
    assert_array_equal(network.encode(inputs).mask, cases["mid.prefix_pad_masks"])


def test_intermediates_of_the_action_tokens(network, inputs, cases, tolerance):
    given = []
    network.action_in_proj.register_forward_pre_hook(lambda _, noisy: given.append(noisy[0]))
    openpi_loss(network, inputs, cases)
    close(given[0], cases["mid.x_t"], atol=1e-6)
    width = network.time_mlp_in.in_features
    close(time_embedding(cases["in.time"], width), cases["mid.time_emb"], atol=1e-6)
    close(network.condition(cases["in.time"]), cases["mid.adarms_cond"], atol=1e-5)
    close(network.action_in_proj(cases["mid.x_t"]), cases["mid.suffix_embs"], atol=1e-5)
    prefix = network.encode(inputs)
    hidden = network.decode(prefix, cases["mid.x_t"], cases["in.time"])
    close(hidden, cases["mid.suffix_out"], **tolerance("fp32_loss_and_v_t"))
    velocity = network.velocity(prefix, cases["mid.x_t"], cases["in.time"])
    close(velocity, cases["mid.v_t"], **tolerance("fp32_loss_and_v_t"))


def test_positions_of_prefix_and_suffix(cases):
    mask, positions = cases["mid.prefix_pad_masks"], cases["mid.position_ids"]
    length, horizon = mask.shape[1], cases["in.actions"].shape[1]
    assert_array_equal(prefix_positions(mask), positions[:, :length])
    assert_array_equal(action_positions(mask, horizon), positions[:, length:])


def test_who_may_read_whom(cases):
    """openpi: q reads k if cumsum(ar)[k] <= cumsum(ar)[q] and both are there. That is what this
    network is built as: the prefix reads itself, action tokens read all."""
    prefix, suffix = cases["mid.prefix_att_masks"], cases["mid.suffix_att_masks"]
    block = torch.cat((prefix.float(), suffix.float()), dim=1).cumsum(1)
    there = torch.cat((cases["mid.prefix_pad_masks"], torch.ones_like(suffix).bool()), dim=1)
    allowed = (block[:, None] <= block[:, :, None]) & there[:, None] & there[:, :, None]
    length = prefix.shape[1]
    ours = there[:, None].expand(allowed.shape).clone()
    ours[:, :length, length:] = False
    assert_array_equal(allowed[there], ours[there])


def test_gradients(network, inputs, cases, golden, tolerance):
    openpi_loss(network, inputs, cases).mean().backward()
    gradients = {name: value.grad for name, value in network.named_parameters()}
    saved = {name.removeprefix("grad."): x for name, x in cases.items() if name[:5] == "grad."}
    assert saved
    for name, expected in saved.items():
        close(gradients[name], expected, **tolerance("grads"))
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


def test_sampled_actions(network, inputs, cases, tolerance):
    for steps, expected in numbered(cases, r"out\.actions\.steps(\d+)$").items():
        actions = network.sample(inputs, cases["in.noise"], steps)
        close(actions, expected, **tolerance(f"fp32_actions_{steps}_steps"))


def test_velocity_along_the_sampled_path(network, inputs, cases, golden, tolerance):
    for steps, path in numbered(cases, r"out\.v_t\.steps(\d+)$").items():
        times = golden["expected"][f"euler_times_{steps}_steps"]
        assert euler_times(steps) == times
        actions = cases["in.noise"]
        prefix = network.encode(inputs)
        for time, expected in zip(times, path, strict=True):
            velocity = network.velocity(prefix, actions, torch.full((len(actions),), time))
            close(velocity, expected, **tolerance("fp32_loss_and_v_t"))
            actions = actions - velocity / steps


def test_masked_slots_may_be_left_out(network, inputs, cases, tolerance):
    seen = inputs.image_mask.any(0)
    assert not seen.all()
    fewer = Pi05Inputs(
        inputs.images[:, seen], inputs.image_mask[:, seen], inputs.tokens, inputs.token_mask
    )
    close(openpi_loss(network, fewer, cases), cases["out.loss"], **tolerance("fp32_loss_and_v_t"))
    for steps, expected in numbered(cases, r"out\.actions\.steps(\d+)$").items():
        actions = network.sample(fewer, cases["in.noise"], steps)
        close(actions, expected, **tolerance(f"fp32_actions_{steps}_steps"))


def test_bfloat16_autocast_stays_within_openpis_own_rounding(network, inputs, cases, golden):
    """openpi rounds at other places: both are as far from float32 as bfloat16 rounding goes."""
    expected, single = cases["out.bf16.loss"].float(), cases["out.loss"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = openpi_loss(network, inputs, cases)
    assert loss.dtype == torch.float32
    close(loss, expected, atol=3 * (expected - single).abs().max().item())
    assert loss.mean().item() == pytest.approx(golden["expected"]["bf16_loss_mean"], rel=2e-3)
    atol = 3 * golden["expected"]["bf16_vs_fp32_actions_max_abs"]
    for steps, actions in numbered(cases, r"out\.bf16\.actions\.steps(\d+)$").items():
        with torch.autocast("cpu", torch.bfloat16):
            close(network.sample(inputs, cases["in.noise"], steps), actions, atol=atol)


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
    expert = network.paligemma_with_expert.gemma_expert.model
    for name, weight in (
        ("action_out_proj.weight", network.action_out_proj.weight),
        ("expert_l0_q", expert.layers[0].self_attn.q_proj.weight),
    ):
        difference = (weight.detach() - cases[f"out.after_train.{name}"]).abs()
        assert (difference < 2e-5).float().mean() > 0.99
        # Adam moves a weight with a gradient of rounding noise by lr, whatever the noise's sign.
        assert difference.max() <= 2 * sum(step["lr"] for step in expected["history"])


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


def test_loss_and_images_with_openpis_augmentation(network, inputs, cases, golden):
    """openpi draws once per camera for the whole batch, in the order of its slots."""
    (name,) = [n for n in golden["expected"] if n.startswith("loss_mean_with_augmentation_seed")]
    torch.manual_seed(int(re.search(r"seed(\d+)", name)[1]))
    size, batch = inputs.images.shape[-1], len(inputs.images)
    images = []
    for slot, title in enumerate(golden["image_order"]):
        image = inputs.images[:, slot] / 2 + 0.5
        if "wrist" not in title:
            margin = size - int(size * augmentation.CROP)
            top, left = (torch.randint(0, margin + 1, (1,)) for _ in range(2))
            # A third of a pixel inside the drawn bin, so that the fraction rounds to the draw.
            corner = [((draw + 1 / 3) / (margin + 1)).expand(batch) for draw in (top, left)]
            angle = (torch.rand(1) * 2 - 1) * augmentation.MAX_ANGLE
            geometry = augmentation.Geometry(*corner, angle.expand(batch))
            image = augmentation.crop_and_rotate(image, geometry)
        ranges = (augmentation.BRIGHTNESS, augmentation.CONTRAST, augmentation.SATURATION)
        factors = [(1 - r + torch.rand(1) * 2 * r).expand(batch) for r in ranges]
        image = augmentation.jitter(image, augmentation.Colour(*factors))
        expected = cases.get(f"aug.image.{title}")
        if expected is not None:
            close(image[:1] * 255, expected, atol=0.6)
        images.append(image * 2 - 1)
    seen = Pi05Inputs(
        torch.stack(images, dim=1), inputs.image_mask, inputs.tokens, inputs.token_mask
    )
    loss = openpi_loss(network, seen, cases).mean().item()
    assert loss == pytest.approx(golden["expected"][name], abs=5e-5)
