"""pi0.5's prompt, normalisation and resize against openpi's own (PARITY_DIR/openpi_droid_*)."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file

from configs.training import TrainConfig
from learners.loop import learning_rate
from models.pi05 import tokenizer, transforms

pytestmark = pytest.mark.parity

PARITY = Path(os.environ.get("PARITY_DIR", Path(__file__).parents[2] / "../shared/parity"))
TRANSFORMS = PARITY / "openpi_droid_transforms"


@pytest.fixture(scope="module")
def droid():
    return json.loads((TRANSFORMS / "README.json").read_text())


@pytest.fixture(scope="module")
def arrays():
    return load_file(TRANSFORMS / "cases.safetensors")


def test_prompt_tokens(droid):
    real = tokenizer.SentencePieceTokenizer(TRANSFORMS / "tiny_tokenizer.model")
    assert droid["tokenize_with_state"]
    for case in droid["tokenize_with_state"]:
        state = np.array(case["state"], case["state_dtype"])
        assert tokenizer.discretise(state) == case["discretised"]
        tokens, mask = tokenizer.tokenise(real, case["prompt"], state, case["max_len"])
        assert tokens.tolist() == case["tokens"]
        assert mask.tolist() == case["mask"]


def test_pieces_of_a_prompt_without_state(droid):
    """pi0's prompt is the task and a newline: the same pieces as ours."""
    real = tokenizer.SentencePieceTokenizer(TRANSFORMS / "tiny_tokenizer.model")
    for case in droid["tokenize_without_state_pi0_style"]:
        ids = real.encode(case["prompt"].strip()) + real.encode("\n")[1:]
        assert ids + [tokenizer.PAD_ID] * (case["max_len"] - len(ids)) == case["tokens"]


def test_norm_stats_file_is_rewritten_byte_for_byte(tmp_path):
    stats = transforms.read_norm_stats(TRANSFORMS / "norm_stats.json")
    transforms.write_norm_stats(tmp_path / "n.json", stats)
    assert (tmp_path / "n.json").read_bytes() == (TRANSFORMS / "norm_stats.json").read_bytes()


def test_quantile_normalisation(arrays):
    stats = transforms.read_norm_stats(TRANSFORMS / "norm_stats.json")
    for kind in ("state", "actions"):
        part = stats.state if kind == "state" else stats.actions
        normal = part.normalise(arrays[f"norm.in.{kind}"])
        assert_allclose(normal, arrays[f"norm.out.quantile.{kind}"], atol=1e-12)
        raw = part.unnormalise(arrays[f"unnorm.in.quantile.{kind}"])
        assert_allclose(raw, arrays[f"unnorm.out.quantile.{kind}"], atol=1e-12)


def test_mean_and_deviation_are_those_of_openpis_other_normalisation(arrays):
    stats = transforms.read_norm_stats(TRANSFORMS / "norm_stats.json")
    for kind in ("state", "actions"):
        part = stats.state if kind == "state" else stats.actions
        normal = (arrays[f"norm.in.{kind}"] - part.mean) / (part.std + transforms.EPSILON)
        assert_allclose(normal, arrays[f"norm.out.zscore.{kind}"], atol=1e-12)
        padded, raw = (arrays[f"unnorm.{way}.zscore.{kind}"] for way in ("in", "out"))
        dim = len(part.mean)
        back = padded[..., :dim] * (part.std + transforms.EPSILON) + part.mean
        assert_allclose(raw[..., :dim], back, atol=1e-6)


def test_delta_actions(arrays):
    state = arrays["delta.in.state"]
    joints = state[:7]
    delta = transforms.delta_actions(arrays["delta.in.actions"], joints)
    assert_allclose(delta, arrays["delta.out.actions"], atol=1e-12)
    back = transforms.absolute_actions(arrays["delta.out.actions"], joints)
    assert_allclose(back, arrays["delta.roundtrip.actions"], atol=1e-12)


def test_learning_rate_schedules(droid):
    for name, schedule in droid["lr_schedules"].items():
        peak = schedule["fields"]["peak_lr"]
        # optax counts in float32: off by that much of the peak
        check_schedule(name, schedule["fields"], schedule["lr"], rel=1e-6, off=1e-7 * peak)


def test_learning_rate_schedule_of_openpis_torch_trainer():
    golden = json.loads((PARITY / "openpi_pi05_tiny/README.json").read_text())["expected"]
    schedule = golden["lr_schedule_default_pytorch"]
    check_schedule("pytorch", schedule, schedule["lr_at_step"], rel=1e-12, off=0.0)


def check_schedule(name, fields, table, rel, off):
    plan = TrainConfig(
        steps=10,  # openpi's schedule does not know when training ends
        warmup=fields["warmup_steps"],
        learning_rate=fields["peak_lr"],
        decay_steps=fields["decay_steps"],
        final_learning_rate=fields["decay_lr"] / fields["peak_lr"],
    )
    for step, expected in table.items():
        assert learning_rate(plan, int(step)) == pytest.approx(expected, rel=rel, abs=off), name


def test_fitted_statistics_agree_with_openpis_histogram(arrays):
    stats = transforms.read_norm_stats(TRANSFORMS / "norm_stats.json")
    for kind, expected in (("state", stats.state), ("actions", stats.actions)):
        names = [name for name in arrays if name.startswith("stats.") and name.endswith(f".{kind}")]
        width = len(expected.mean)
        rows = np.concatenate([arrays[name].reshape(-1, width) for name in sorted(names)])
        fitted = transforms.fit_statistics(rows)
        assert_allclose(fitted.mean, expected.mean, rtol=1e-9)
        assert_allclose(fitted.std, expected.std, rtol=1e-9)
        # Quantiles of a histogram: off by bins, and at 384 states by the gap between samples.
        tolerance = 0.05 * np.ptp(rows, axis=0)
        assert (np.abs(fitted.q01 - expected.q01) < tolerance).all()
        assert (np.abs(fitted.q99 - expected.q99) < tolerance).all()


def test_resize_with_pad(arrays):
    sizes = [name.removeprefix("resize.in.") for name in arrays if name.startswith("resize.in.")]
    assert sizes
    for size in sizes:
        expected = arrays[f"resize.pil.{size}"]
        resized = transforms.resize_with_pad(arrays[f"resize.in.{size}"], len(expected))
        assert_array_equal(resized, expected)


def test_resize_is_the_policys_and_not_the_models(arrays):
    """openpi has a second resize, in torch without antialias, for pictures of another size."""
    for name in arrays:
        if name.startswith("resize.torch_f32_as_u8."):
            image = arrays[f"resize.in.{name.rpartition('.')[2]}"]
            resized = transforms.resize_with_pad(image, len(arrays[name]))
            assert (resized != arrays[name]).any()
