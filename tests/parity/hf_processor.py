"""Run by another interpreter, one that has torchvision: what transformers' own processor makes.

``python hf_processor.py (<checkpoint folder> <input.npz> <output.npz>)...``. An input holds, of
clip k, ``frames_k`` (uint8, frames x height x width x 3), ``index_k`` and ``question_k``.
"""

import sys
from pathlib import Path

import numpy as np
import torch


def declare_missing_operators() -> None:
    """PyPI's torchvision is built for CUDA. Beside a CPU torch its C++ part cannot load, and its
    import fails at two operators that nothing here uses: they are declared, without a body."""
    package = next(
        (Path(p) / "torchvision" for p in sys.path if (Path(p) / "torchvision").is_dir()), None
    )
    assert package is not None, "no torchvision beside this interpreter"
    try:
        torch.ops.load_library(str(next(package.glob("_C*.so"))))
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        KEPT.append(library)


KEPT: list[torch.library.Library] = []  # an operator goes when its library is collected


def prepare(folder: str, given: str, wanted: str) -> None:
    """Write what the processor of ``folder`` makes of the clips in ``given``."""
    from transformers import AutoProcessor  # noqa: PLC0415 - after the operators
    from transformers.video_utils import VideoMetadata  # noqa: PLC0415

    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    clips = np.load(given)
    texts, videos, facts = [], [], []
    for k in range(sum(name.startswith("frames_") for name in clips.files)):
        content = [{"type": "video"}, {"type": "text", "text": str(clips[f"question_{k}"])}]
        turn = [{"role": "user", "content": content}]
        texts.append(
            processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        )
        videos.append(torch.from_numpy(clips[f"frames_{k}"]).permute(0, 3, 1, 2))
        index = clips[f"index_{k}"].tolist()
        facts.append(VideoMetadata(total_num_frames=index[-1] + 1, fps=5, frames_indices=index))
    batch = processor(
        text=texts,
        videos=videos,
        video_metadata=facts,
        do_sample_frames=False,
        padding=True,
        return_tensors="pt",
    )
    np.savez(wanted, **{name: value.numpy() for name, value in batch.items()})


if __name__ == "__main__":
    declare_missing_operators()
    arguments = sys.argv[1:]
    for start in range(0, len(arguments), 3):
        prepare(*arguments[start : start + 3])
