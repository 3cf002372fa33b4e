"""A raw DROID observation through our policy, against openpi's (PARITY_DIR/openpi_*)."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file

from configs.policy import Pi05Config, PolicyConfig
from contracts.types import Observation, RobotState
from models.interfaces import PolicyBatch
from models.pi05 import transforms
from models.pi05.policy import Pi05Policy

pytestmark = pytest.mark.parity

PARITY = Path(os.environ.get("PARITY_DIR", Path(__file__).parents[2] / "../shared/parity"))
MODEL, TRANSFORMS = PARITY / "openpi_pi05_tiny", PARITY / "openpi_droid_transforms"
TOKENIZER = TRANSFORMS / "tiny_tokenizer.model"


@pytest.fixture(scope="module")
def golden():
    return json.loads((MODEL / "README.json").read_text())


@pytest.fixture(scope="module")
def arrays():
    return load_file(TRANSFORMS / "cases.safetensors")


@pytest.fixture(scope="module")
def slots():
    """Slot name by what it shows."""
    shown = json.loads((TRANSFORMS / "README.json").read_text())["image_slots"]
    return {what: name for name, what in shown.items()}


def load_policy(golden, arrays, folder, **changes) -> Pi05Policy:
    """The tiny openpi checkpoint as a folder in openpi's layout, with the fixture's tokenizer."""
    (folder / "assets/droid").mkdir(parents=True)
    copies = {
        "model.safetensors": MODEL / "model.safetensors",
        "assets/droid/norm_stats.json": TRANSFORMS / "norm_stats.json",
    }
    for target, source in copies.items():
        (folder / target).write_bytes(source.read_bytes())
    sizes = golden["config"]
    vision, text, expert = sizes["vision"], sizes["text"], sizes["expert"]
    horizon, dim = arrays["policy.in.noise"].shape
    pi05 = Pi05Config(
        vision_width=vision["hidden_size"],
        vision_depth=vision["num_hidden_layers"],
        vision_heads=vision["num_attention_heads"],
        vision_mlp=vision["intermediate_size"],
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        text_width=text["width"],
        text_mlp=text["mlp_dim"],
        expert_width=expert["width"],
        expert_mlp=expert["mlp_dim"],
        depth=text["depth"],
        heads=text["num_heads"],
        kv_heads=text["num_kv_heads"],
        head_dim=text["head_dim"],
        vocab_size=sizes["vocab_size"],
        action_dim=dim,
        max_token_len=len(arrays["droid.out.tokenized_prompt"]),
        tokenizer=str(TOKENIZER),
    )
    cfg = PolicyConfig(
        kind="pi05", horizon=horizon, execute=1, flow_steps=10, pi05=replace(pi05, **changes)
    )
    return Pi05Policy.load(cfg, folder, version=3)


@pytest.fixture
def policy(golden, arrays, tmp_path):
    return load_policy(golden, arrays, tmp_path)


@pytest.fixture(scope="module")
def seen(arrays) -> Observation:
    """openpi's observation as ours: the exterior camera, something unseen, the wrist."""
    prefix = "droid.in.observation/"
    exterior, wrist = (
        arrays[prefix + name] for name in ("exterior_image_1_left", "wrist_image_left")
    )
    tokens = arrays["droid.out.tokenized_prompt"][arrays["droid.out.tokenized_prompt_mask"]]
    text = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER)).decode(tokens.tolist())
    zeros = np.zeros(7, np.float32)
    joints = arrays[prefix + "joint_position"].astype(np.float32)
    gripper = float(arrays[prefix + "gripper_position"][0])
    instruction = re.search(r"Task: (.*), State:", text)[1]
    state = RobotState(joints, zeros, zeros[:6], gripper, 0.0)
    return Observation(np.stack([exterior, exterior[::-1], wrist]), state, instruction)


def test_actions_end_to_end(policy, arrays, seen):
    chunk = policy.act_from_noise([seen], [arrays["policy.in.noise"]])[0]
    assert chunk.version == 3
    assert_allclose(chunk.actions, arrays["policy.out.actions"], atol=1e-5)


def test_joint_positions_end_to_end(golden, arrays, seen, tmp_path):
    """openpi answers with joint positions, we with the velocities that lead there."""
    policy = load_policy(golden, arrays, tmp_path, action_space="joint_position")
    actions = policy.act_from_noise([seen], [arrays["policy.in.noise"]])[0].actions
    reached = seen.state.joint_position + np.cumsum(0.2 * actions[:, :7].astype(float), axis=0)
    expected = arrays["policy_jointpos.out.actions"]
    assert_allclose(reached, expected[:, :7], atol=1e-5)
    assert_allclose(actions[:, 7], expected[:, 7], atol=1e-5)


def test_what_the_network_is_given(policy, arrays, seen, slots):
    given = []
    policy.network.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    policy.network.eval()
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
    shown = [slots["exterior"], slots["wrist"]]
    expected = np.stack([arrays[f"droid.out.image/{slot}"] for slot in shown])
    assert_array_equal(inputs.images[0], transforms.images_to_float(expected))
    assert [bool(arrays[f"droid.out.image_mask/{slot}"].all()) for slot in shown] == [True, True]
    hidden = slots["zeros, mask False"]
    assert not arrays[f"droid.out.image_mask/{hidden}"].any()
    assert not arrays[f"droid.out.image/{hidden}"].any()
    mask = arrays["droid.out.tokenized_prompt_mask"]
    assert_array_equal(inputs.tokens[0], arrays["droid.out.tokenized_prompt"][mask])
    assert inputs.token_mask.all()
    assert_allclose(actions[0], arrays["droid_train.out.actions"], atol=1e-6)
    assert loss.item() == pytest.approx(policy.network(inputs, actions, noise, time).mean().item())


@pytest.mark.parametrize("name", ["droid.out.state", "droid_train.out.state"])
def test_normalised_state(arrays, name):
    stats = transforms.read_norm_stats(TRANSFORMS / "norm_stats.json").state
    prefix = "droid.in.observation/"
    raw = np.concatenate([arrays[prefix + "joint_position"], arrays[prefix + "gripper_position"]])
    padded = transforms.pad_last(stats.normalise(raw), len(arrays[name]))
    assert_allclose(padded, arrays[name], atol=1e-12)
