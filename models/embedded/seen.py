"""What acts in the small policy, trained on what its frozen encoders have seen once."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.embedded.augment import random_light
from models.embedded.policy import LIGHT, EmbeddedPolicy, centred
from models.embedded.windows import Windows
from models.interfaces import Batch, PolicyBatch, Rows

LIGHTS = 4  # in which every window is seen
_BLOCK = 1024  # windows that are looked at together


class SeenPolicy:
    """A policy with frozen encoders, trained by ``Rows`` of windows that it has looked at before.

    A training looks at each window many times and the answer differs by the light alone, so the
    encoders, most of a step's work, look ``LIGHTS`` times at each and then no more.
    ``shown`` are appearances of the same windows, which take turns in the lights.
    """

    def __init__(self, policy: EmbeddedPolicy, shown: Sequence[Windows], seed: int) -> None:
        self.version = policy.version
        self._policy = policy
        generator = torch.Generator().manual_seed(seed)
        turns = [shown[k % len(shown)] for k in range(LIGHTS)]
        self._seen = torch.stack([_look(policy, windows, generator) for windows in turns])
        self._wanted = shown[0].without_images()

    def __len__(self) -> int:
        return len(self._wanted.actions)

    def module(self) -> nn.Module:
        return self._policy.module()

    def fit_statistics(self, batch: Batch) -> None:
        raise NotImplementedError("frozen encoders have learned with the statistics they have")

    def loss(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, " batch"]:
        """That of ``EmbeddedPolicy``, each window in one of its lights."""
        if not isinstance(batch, Rows):
            raise ValueError(f"seen windows are trained on by Rows, got {type(batch).__name__}")
        light = torch.randint(LIGHTS, (len(batch.index),), generator=generator)
        index = batch.index.to(self._seen.device)
        seen = self._seen[light.to(index.device), index]
        return self._policy.loss_seen(seen, self._wanted.rows(index), generator)

    def save(self, folder: Path) -> None:
        self._policy.save(folder)


def see_once(
    policy: EmbeddedPolicy, batches: Iterable[PolicyBatch], seed: int
) -> SeenPolicy | None:
    """All windows of ``batches`` in their order; None where the encoders learn, too."""
    if not policy.frozen:
        return None
    return SeenPolicy(policy, [Windows.joined([policy.prepare(b) for b in batches])], seed)


@torch.no_grad()
def _look(policy: EmbeddedPolicy, windows: Windows, generator: torch.Generator) -> Tensor:
    parts = []
    for start in range(0, len(windows.actions), _BLOCK):
        part = windows.rows(slice(start, start + _BLOCK))
        images = random_light(centred(part.images), LIGHT, generator)
        parts.append(policy.look(images, part.proprio, part.words))
    return torch.cat(parts)
