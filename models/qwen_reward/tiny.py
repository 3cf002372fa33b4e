"""A tiny random Qwen3-VL checkpoint in the release's layout, made without a model hub."""

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from models.qwen_reward.preprocess import QUESTION, PatchLayout

CONTROL_TOKENS = [  # the release's strings that a video chat needs
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# What the release renders for turns of video, image and text; our own wording of it.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% for part in message.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
HIDDEN = 64
HEAD_DIM = 16
VISION_DEPTH = 2
# The last vision level enters after language layer 2; a third layer has to read it, or the
# level's merger never sees a gradient.
LAYERS = 3
# The release's 0.02 is too small for a width of 64: training would not start within 60 steps.
INIT_STD = 0.08


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE whose merges make words of the prompt, 'yes' and 'no' one token each."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    corpus = ["yes", "no", "user\n", "assistant\n", "<1.2 seconds>", QUESTION] * 4
    words.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=CONTROL_TOKENS,
        model_max_length=8192,
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """Qwen3-VL with every part of the 4B release, at widths that train on one CPU core."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 8192,
        "initializer_range": INIT_STD,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [4, 2, 2],  # sums to half of head_dim
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": VISION_DEPTH,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": HIDDEN,
        "num_position_embeddings": 64,  # a square
        "deepstack_visual_indexes": list(range(VISION_DEPTH)),
        "initializer_range": INIT_STD,
    }
    ids = tokenizer.get_added_vocab()
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def processor_settings() -> dict[str, dict[str, object]]:
    """The processor of the 4B release, as transformers 5 writes it into one file."""
    cut = PatchLayout()
    common = {
        "patch_size": cut.patch,
        "temporal_patch_size": cut.temporal,
        "merge_size": cut.merge,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    still = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
    moving = {"shortest_edge": cut.min_pixels, "longest_edge": cut.max_pixels}
    return {
        "image_processor": common
        | {"image_processor_type": "Qwen2VLImageProcessor", "size": still},
        "video_processor": common
        | {"video_processor_type": "Qwen3VLVideoProcessor", "size": moving},
    }


def write_tiny(folder: Path, seed: int) -> None:
    """Write weights, tokenizer and processor files; Auto classes load them as they do the release.

    Equal seeds give equal files; the global random state is left as it was.
    """
    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(build_config(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"processor_class": "Qwen3VLProcessor"} | processor_settings()
    (folder / "processor_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
