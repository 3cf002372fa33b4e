"""Instructions as hashed words, each with and without its place."""

import re
import zlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_WORD = re.compile(r"[a-z0-9]+")


def hashed_words(instructions: Sequence[str], rows: int) -> Float[Tensor, "batch rows"]:
    """Row i counts the words of instruction i per CRC-32 bucket, divided by sqrt(2 x word count).

    Every word counts twice: alone, and together with its place, since "red on green" is not "green
    on red". Case and punctuation do not matter; an empty instruction is all zeros. CRC-32 is the
    same on every machine, Python's ``hash`` is not. Two words may share a bucket.
    """
    bags = torch.zeros(len(instructions), rows)
    for bag, instruction in zip(bags, instructions, strict=True):
        words = _WORD.findall(instruction.lower())
        for place, word in enumerate(words):
            for token in (word, f"{place} {word}"):
                bag[zlib.crc32(token.encode()) % rows] += (2 * len(words)) ** -0.5
    return bags
