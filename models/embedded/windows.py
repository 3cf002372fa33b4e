"""What the small policy sees and what it shall do, as tensors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


class Inputs(NamedTuple):
    """What the policy sees, as tensors; proprio is normalised."""

    images: UInt8[Tensor, "batch views height width 3"]
    proprio: Float[Tensor, "batch 17"]
    words: Float[Tensor, "batch words"]


class Wanted(NamedTuple):
    """What a window asks of whoever has seen its images; all normalised."""

    proprio: Float[Tensor, "batch 17"]
    words: Float[Tensor, "batch words"]
    actions: Float[Tensor, "batch horizon 8"]

    def rows(self, index: Tensor) -> "Wanted":
        return Wanted(*(column[index] for column in self))


class Windows(NamedTuple):
    """``Inputs`` and the normalised actions of flange and elbow that followed."""

    images: UInt8[Tensor, "batch views height width 3"]
    proprio: Float[Tensor, "batch 17"]
    words: Float[Tensor, "batch words"]
    actions: Float[Tensor, "batch horizon 8"]

    def rows(self, index: Tensor | slice) -> "Windows":
        return Windows(*(column[index] for column in self))

    def without_images(self) -> Wanted:
        return Wanted(self.proprio, self.words, self.actions)

    @classmethod
    def joined(cls, parts: Sequence["Windows"]) -> "Windows":
        return cls(*(torch.cat(column) for column in zip(*parts, strict=True)))
