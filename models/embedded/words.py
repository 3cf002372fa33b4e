"""Instructions as hashed bags of words."""

import re
import zlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_WORD = re.compile(r"[a-z0-9]+")


def bag_of_words(instructions: Sequence[str], rows: int) -> Float[Tensor, "batch rows"]:
    """Row i counts the words of instruction i per CRC-32 bucket, divided by sqrt(word count).

    Case and punctuation do not matter; an empty instruction is all zeros. CRC-32 is the same on
    every machine, Python's ``hash`` is not. Two words may share a bucket.
    """
    bags = torch.zeros(len(instructions), rows)
    for bag, instruction in zip(bags, instructions, strict=True):
        words = _WORD.findall(instruction.lower())
        for word in words:
            bag[zlib.crc32(word.encode()) % rows] += len(words) ** -0.5
    return bags
