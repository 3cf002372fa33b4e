"""pi0.5's prompt: the task and the discretised state as text, and that text as token ids."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from jaxtyping import Bool, Float, Int64

from configs.policy import Pi05Config

STATE_BINS = 256
PAD_ID, BOS_ID, FIRST_BYTE_ID = 0, 2, 3
LARGEST_BYTE_VOCAB = 4096

log = logging.getLogger(__name__)


class SentencePieceTokenizer:
    """PaliGemma's tokenizer, from a file the user supplies. Adds BOS, no EOS."""

    name = "sentencepiece"  # stored with a checkpoint: weights mean nothing under another one

    def __init__(self, path: Path) -> None:
        """Raises ValueError when there is no such file."""
        if not path.is_file():
            raise ValueError(
                f"policy.pi05.tokenizer={path} is no file: download paligemma_tokenizer.model"
                " from gs://big_vision and give its path"
            )
        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text, add_bos=True)


class ByteStandInTokenizer:
    """One id per UTF-8 byte. For tiny models trained here; no published checkpoint knows it."""

    name = "byte-stand-in"

    def __init__(self, vocab_size: int) -> None:
        """Raises ValueError for a vocabulary too small for bytes, or of a published model."""
        if not FIRST_BYTE_ID + 256 <= vocab_size <= LARGEST_BYTE_VOCAB:
            raise ValueError(
                f"policy.pi05.vocab_size={vocab_size} with an empty policy.pi05.tokenizer: the byte"
                f" stand-in needs {FIRST_BYTE_ID + 256}..{LARGEST_BYTE_VOCAB} ids; a published"
                " model needs policy.pi05.tokenizer=<paligemma_tokenizer.model>"
            )

    def encode(self, text: str) -> list[int]:
        return [BOS_ID, *(FIRST_BYTE_ID + byte for byte in text.encode())]


Tokenizer = SentencePieceTokenizer | ByteStandInTokenizer


def build_tokenizer(cfg: Pi05Config) -> Tokenizer:
    if cfg.tokenizer:
        return SentencePieceTokenizer(Path(cfg.tokenizer))
    return ByteStandInTokenizer(cfg.vocab_size)


def discretise(state: Float[np.ndarray, " dim"]) -> list[int]:
    """Bin of each normalised coordinate: 0..255 over [-1, 1), 255 above and -1 below (openpi)."""
    edges = np.linspace(-1, 1, STATE_BINS + 1)[:-1]
    return (np.digitize(state, edges) - 1).tolist()


def prompt_text(instruction: str, state: Float[np.ndarray, " dim"]) -> str:
    """The prompt openpi trained on. ``state`` is normalised and not padded."""
    task = instruction.strip().replace("_", " ").replace("\n", " ")
    numbers = " ".join(str(number) for number in discretise(state))
    return f"Task: {task}, State: {numbers};\nAction: "


def tokenise(
    tokenizer: Tokenizer,
    instruction: str,
    state: Float[np.ndarray, " dim"],
    max_length: int,
) -> tuple[Int64[np.ndarray, " length"], Bool[np.ndarray, " length"]]:
    """Ids and mask, padded or cut at the end to ``max_length`` as openpi does.

    A cut prompt has lost "Action: " and perhaps its state, which is logged.
    """
    ids = tokenizer.encode(prompt_text(instruction, state))
    if len(ids) > max_length:
        log.warning("prompt of %d tokens cut to %d: %r", len(ids), max_length, instruction)
        ids = ids[:max_length]
    tokens = np.full(max_length, PAD_ID, np.int64)
    tokens[: len(ids)] = ids
    return tokens, np.arange(max_length) < len(ids)


def tokenise_batch(
    tokenizer: Tokenizer,
    instructions: Sequence[str],
    states: Float[np.ndarray, "batch dim"],
    max_length: int,
) -> tuple[Int64[np.ndarray, "batch length"], Bool[np.ndarray, "batch length"]]:
    """``tokenise`` each row, without the padding columns that no row uses (an exact saving)."""
    rows = [
        tokenise(tokenizer, instruction, state, max_length)
        for instruction, state in zip(instructions, states, strict=True)
    ]
    tokens, mask = (np.stack(column) for column in zip(*rows, strict=True))
    longest = int(mask.sum(1).max())
    return tokens[:, :longest], mask[:, :longest]
