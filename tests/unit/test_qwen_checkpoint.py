"""Qwen3-VL folders as releases lay them out, old and new; and what each kind of damage says."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, Qwen2Tokenizer

from configs.reward import QwenRewardConfig, RewardConfig
from contracts.types import Clip
from models.qwen_reward.checkpoint import open_release
from models.qwen_reward.processor import check_template
from models.qwen_reward.reward import QwenReward
from models.qwen_reward.tiny import CHAT_TEMPLATE, write_tiny

CFG = RewardConfig(kind="qwen", num_frames=2)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("release")
    write_tiny(folder, seed=0)
    return folder


@pytest.fixture
def release(original: Path, tmp_path: Path) -> Path:
    """A folder of its own, as transformers 5 writes it."""
    return Path(shutil.copytree(original, tmp_path / "release"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def as_of_4_57(folder: Path) -> Path:
    """The same model in the layout that the 2025 releases have: shards, a file per processor, a
    JSON chat template, vocabulary and merges, rope settings by their old names."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="300KB")
    words = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    control = [token["content"] for token in words["added_tokens"]]
    Qwen2Tokenizer(
        vocab=words["model"]["vocab"],
        merges=[tuple(pair) for pair in words["model"]["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=control,
    ).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(words["model"]["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in words["model"]["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (folder / "tokenizer.json").unlink()
    settings = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").unlink()
    (folder / "preprocessor_config.json").write_text(json.dumps(settings["image_processor"]))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(settings["video_processor"]))
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))

    def old_names(config: dict[str, Any]) -> None:
        text = config["text_config"]
        rope = text.pop("rope_parameters")
        text["rope_theta"] = rope.pop("rope_theta")
        text["rope_scaling"] = rope
        config["vision_config"]["model_type"] = "qwen3_vl"

    edit(folder / "config.json", old_names)
    return folder


def score(folder: Path) -> float:
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 64, 3), dtype=np.uint8)
    model = QwenReward(replace(CFG, qwen=QwenRewardConfig(path=str(folder))), seed=0)
    return model.score([Clip(frames, (0, 5), "open the book")])[0].p_yes


def test_both_layouts_are_the_same_model(release, original):
    """Scores differ between models, so equal ones mean that every file was understood."""
    old = as_of_4_57(release)
    assert len(list(old.glob("model-*.safetensors"))) > 1
    assert score(old) == score(original)


def test_saving_carries_the_files_of_either_layout(release, tmp_path):
    old = as_of_4_57(release)
    model = QwenReward(replace(CFG, qwen=QwenRewardConfig(path=str(old))), seed=0)
    (tmp_path / "trained").mkdir()
    model.save(tmp_path / "trained")
    for name in (
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "chat_template.json",
    ):
        assert (tmp_path / "trained" / name).read_bytes() == (old / name).read_bytes()
    assert score(tmp_path / "trained") == score(old)


def untie(folder: Path) -> dict[str, torch.Tensor]:
    """The 8B release's way: ``lm_head`` of its own, here with 'yes' and 'no' exchanged."""
    weights = load_file(folder / "model.safetensors")
    table = weights["model.language_model.embed_tokens.weight"]
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    order = list(range(len(table)))
    order[vocabulary["yes"]], order[vocabulary["no"]] = vocabulary["no"], vocabulary["yes"]
    edit(folder / "config.json", lambda c: c.update(tie_word_embeddings=False))
    edit(folder / "config.json", lambda c: c["text_config"].update(tie_word_embeddings=False))
    return weights | {"lm_head.weight": table[order].contiguous()}


def test_an_untied_head_is_read_and_a_tied_one_is_not_missed(release, original):
    assert "lm_head.weight" not in load_file(original / "model.safetensors")
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 64, 3), dtype=np.uint8)
    clip = Clip(frames, (0, 5), "open the book")
    tied = QwenReward(replace(CFG, qwen=QwenRewardConfig(path=str(original))), seed=0)
    save_file(untie(release), release / "model.safetensors", {"format": "pt"})
    untied = QwenReward(replace(CFG, qwen=QwenRewardConfig(path=str(release))), seed=0)
    (before,), (after,) = tied.score([clip]), untied.score([clip])
    assert after.p_yes == pytest.approx(before.mass - before.p_yes, rel=1e-4)
    assert after.p_yes != pytest.approx(before.p_yes, rel=1e-2)


def test_pixel_limits_come_from_the_file_that_transformers_prefers(release):
    """processor_config.json, else the video processor's own file, else the image processor's."""

    def limits() -> tuple[int, int]:
        layout = open_release(release).layout
        return layout.min_pixels, layout.max_pixels

    image = release / "preprocessor_config.json"
    video = release / "video_preprocessor_config.json"
    image.write_text('{"size": {"shortest_edge": 1, "longest_edge": 2}}')
    video.write_text('{"size": {"shortest_edge": 3, "longest_edge": 4}}')
    assert limits() == (4096, 25_165_824)
    edit(release / "processor_config.json", lambda c: c.pop("video_processor"))
    assert limits() == (3, 4)
    video.unlink()
    assert limits() == (1, 2)
    for path in (image, release / "processor_config.json"):
        path.unlink()
    assert limits() == (4096, 25_165_824)


def test_a_cap_per_frame_is_obeyed(release):
    path = release / "processor_config.json"
    edit(path, lambda c: c["video_processor"].update(cap_pixels_per_frame=True, max_video_tokens=5))
    layout = open_release(release).layout
    assert layout.most_pixels(16) == 5 * 32 * 32 * 16
    assert layout.most_pixels(10_000) == 4300 * 10_000  # 1.05 x 4096 pixels at least


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing there": (lambda f: (f / "config.json").unlink(), "holds no Qwen3-VL checkpoint"),
    "another architecture": (
        lambda f: edit(f / "config.json", lambda c: c.update(model_type="qwen2_5_vl")),
        "is a 'qwen2_5_vl' model",
    ),
    "config cut off": (
        lambda f: (f / "config.json").write_text("{"),
        r"config\.json cannot be read",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds neither"),
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:-9]
        ),
        r"model\.safetensors is truncated",
    ),
    "other widths": (
        lambda f: edit(f / "config.json", lambda c: c["text_config"].update(intermediate_size=96)),
        r"mlp\.down_proj\.weight is \(64, 128\) wide, config\.json asks for \(64, 96\)",
    ),
    "fewer layers in the config": (
        lambda f: edit(f / "config.json", lambda c: c["text_config"].update(num_hidden_layers=2)),
        r"holds model\.language_model\.layers\.2\..* and 7 more, which Qwen3-VL does not have",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer"),
    "another tokenizer": (
        lambda f: edit(f / "config.json", lambda c: c.update(video_token_id=7)),
        r"<\|video_pad\|> is token \d+ to the tokenizer, but config\.json says video_token_id=7",
    ),
    "another normalisation": (
        lambda f: edit(
            f / "processor_config.json",
            lambda c: c["video_processor"].update(image_mean=[0.48, 0.46, 0.41]),
        ),
        r"asks for image_mean=\[0\.48",
    ),
    "another patch size": (
        lambda f: edit(
            f / "processor_config.json", lambda c: c["video_processor"].update(patch_size=14)
        ),
        "asks for patch_size=14",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_damage_is_named_in_one_message(release, name):
    breaking, words = BREAKS[name]
    breaking(release)
    with pytest.raises(ValueError, match=words):
        open_release(release)


def test_numbers_that_are_not_finite_are_refused(release):
    weights = load_file(release / "model.safetensors")
    weights["model.visual.merger.linear_fc1.weight"][3, 4] = float("nan")
    save_file(weights, release / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"visual\.merger\.linear_fc1\.weight .* not finite"):
        open_release(release)


def test_weights_that_are_lacking_are_not_made_up(release):
    """transformers would draw them at random and go on."""
    weights = untie(release)
    del weights["lm_head.weight"]
    save_file(weights, release / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks lm_head\.weight"):
        open_release(release)


def test_damaged_shards_are_named(release):
    old = as_of_4_57(release)
    first, second = sorted(old.glob("model-*.safetensors"))[:2]
    names = load_file(first)
    index = old / "model.safetensors.index.json"
    lost = min(names)
    save_file({k: v for k, v in names.items() if k != lost}, first, {"format": "pt"})
    with pytest.raises(ValueError, match=f"{first.name} lacks {lost}"):
        open_release(old)
    first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"{first.name} is truncated"):
        open_release(old)
    first.unlink()
    with pytest.raises(ValueError, match=f"{first.name} is missing"):
        open_release(old)
    assert second.exists()
    index.write_text("[]")
    with pytest.raises(ValueError, match="no JSON object"):
        open_release(old)


@pytest.mark.parametrize("place", ["chat_template.jinja", "chat_template.json", "tokenizer"])
def test_a_release_that_thinks_first_is_refused(release, place):
    """Its first token is ``<think>``, so P('yes') there means nothing."""
    thinking = CHAT_TEMPLATE.replace("assistant\n", "assistant\n<think>\n")
    (release / "chat_template.jinja").unlink()
    if place == "chat_template.json":
        (release / place).write_text(json.dumps({"chat_template": thinking}))
    elif place == "tokenizer":
        path = release / "tokenizer_config.json"
        edit(path, lambda c: c.update(chat_template=thinking))
    else:
        (release / place).write_text(thinking)
    with pytest.raises(ValueError, match=r"<think>.*choose a Qwen3-VL Instruct release"):
        open_release(release)


def test_a_default_system_turn_is_noticed(release):
    tokenizer = open_release(release).tokenizer
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    (release / "chat_template.jinja").write_text(system + CHAT_TEMPLATE)
    with pytest.raises(ValueError, match="system"):
        check_template(release, tokenizer)
