"""Our torchvision-free preparation of clips against transformers' own Qwen3-VL processor, bit by
bit; ``HF_PROCESSOR_PYTHON`` names an interpreter that can run that.

``hf_processor.json`` holds hashes of what it made (transformers 5.23.0, torchvision 0.28.0, torch
2.13.0) of these clips, for machines without such an interpreter.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from configs.reward import QwenRewardConfig, RewardConfig
from contracts.types import Clip
from models.qwen_reward.preprocess import QUESTION
from models.qwen_reward.reward import QwenReward
from models.qwen_reward.tiny import CHAT_TEMPLATE, write_tiny
from replay.store import clip_indices

WORKER = Path(__file__).with_name("hf_processor.py")
HASHES = json.loads(Path(__file__).with_name("hf_processor.json").read_text(encoding="utf-8"))
LONG = "stack the red block on top of the blue block and then move the arm away"
MIXED = [(24, 40), (48, 80), (192, 320), (180, 320), (33, 97)]  # smaller than a token, ..., odd
LARGE = [(360, 640), (1080, 1920)]


@dataclass(frozen=True)
class Case:
    """A batch of clips of these sizes, for a release whose files were changed so."""

    sizes: list[tuple[int, int]]
    num_frames: int
    change: Callable[[Path], object] = lambda folder: None

    def clips(self) -> list[Clip]:
        return [
            Clip(
                picture(*size, self.num_frames, seed=k)[:, None].repeat(3, axis=1),
                clip_indices(53, self.num_frames),
                LONG if k % 2 else "open the book",
            )
            for k, size in enumerate(self.sizes)
        ]


def replaced(old: str, new: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "processor_config.json"
        before = path.read_text()
        assert old in before
        path.write_text(before.replace(old, new))

    return change


def layout_of_2025(folder: Path) -> None:
    """A file per processor, with limits of its own; the chat template as JSON."""
    for name in ("processor_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    common = {
        "processor_class": "Qwen3VLProcessor",
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    files = {
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "size": {"shortest_edge": 65_536, "longest_edge": 16_777_216},
        },
        "video_preprocessor_config.json": {
            "video_processor_type": "Qwen3VLVideoProcessor",
            "size": {"shortest_edge": 4096, "longest_edge": 200_000},
        },
    }
    for name, settings in files.items():
        (folder / name).write_text(json.dumps(common | settings))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))


CAP = '"cap_pixels_per_frame": true, "max_video_tokens": 20, "patch_size"'
CASES = {
    "16 frames": Case(MIXED, 16),
    "an odd number of frames": Case(MIXED, 5),
    "shrunk by the release's limit": Case(LARGE, 4),
    "a lower limit": Case(MIXED[1:4], 8, replaced("25165824", "60000")),
    "a higher floor": Case(MIXED[1:4], 8, replaced("4096,", "90000,")),
    "a cap per frame": Case(MIXED[1:4], 8, replaced('"patch_size"', CAP)),
    "the layout of 2025": Case(MIXED[2:4], 8, layout_of_2025),
}


def picture(height: int, width: int, frames: int, seed: int) -> np.ndarray:
    """Smooth colours, a hard edge and noise."""
    rng = np.random.default_rng(seed)
    x, y = np.linspace(0, 200, width)[None, :, None], np.linspace(0, 50, height)[:, None, None]
    base = x + y + rng.uniform(0, 5, (frames, height, width, 3))
    base[:, height // 3 : height // 2, width // 4 : width // 2] = 255 * rng.integers(0, 2, 3)
    return base.round().astype(np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every case's release, and beside it what transformers made of the case: one process."""
    found, arguments = {}, []
    for name, case in CASES.items():
        folder = found[name] = tmp_path_factory.mktemp("release")
        write_tiny(folder, seed=0)
        case.change(folder)
        values: dict[str, np.ndarray] = {}
        for k, clip in enumerate(case.clips()):
            values[f"frames_{k}"] = clip.frames[:, 0]
            values[f"index_{k}"] = np.array(clip.frame_index)
            values[f"question_{k}"] = np.array(QUESTION.format(instruction=clip.instruction))
        np.savez(folder / "given.npz", allow_pickle=False, **values)
        arguments += [folder, folder / "given.npz", folder / "made.npz"]
    command = [os.environ["HF_PROCESSOR_PYTHON"], WORKER, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return found


def ours(case: Case, folder: Path) -> dict[str, np.ndarray]:
    qwen = QwenRewardConfig(path=str(folder))
    model = QwenReward(RewardConfig(kind="qwen", num_frames=case.num_frames, qwen=qwen), seed=0)
    return {key: value.numpy() for key, value in model.inputs(case.clips(), 0).items()}


def hashes(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    return {
        name: f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()[:24]}"
        for name, value in sorted(arrays.items())
    }


@pytest.mark.hf_processor
@pytest.mark.parametrize("name", CASES)
def test_every_input_is_prepared_bit_by_bit_alike(folders, name):
    """Prompts, paddings, timestamps, grids and every pixel."""
    found, expected = ours(CASES[name], folders[name]), dict(np.load(folders[name] / "made.npz"))
    assert set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key, strict=True)
    assert hashes(expected) == HASHES[name]


@pytest.mark.parametrize("name", CASES)
def test_every_input_has_the_hash_of_what_transformers_made(tmp_path, name):
    write_tiny(tmp_path, seed=0)
    CASES[name].change(tmp_path)
    assert hashes(ours(CASES[name], tmp_path)) == HASHES[name]
