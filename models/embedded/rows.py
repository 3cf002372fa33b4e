"""Rows that never depend on their batch: noise by key, and forwards in groups of a fixed size."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

GROUP = 8


def noise_of(key: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 noise that depends on ``key`` alone (non-negative integers).

    numpy's PCG64 takes the whole key; torch's CPU generator keeps 32 bits of a seed, so seeds that
    differ above them would share their noise.
    """
    noise = np.random.default_rng(list(key)).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(noise)


def in_groups(compute: Callable[..., Tensor], *rows: Tensor, size: int = GROUP) -> Tensor:
    """``compute(*rows)`` in groups of ``size`` rows, the last one filled up by repetition.

    Matrix kernels choose their order of summation by the batch's shape, so a row's last bits would
    depend on how many rows it travels with, and in a closed loop last bits grow into other
    trajectories. One shape for all calls keeps a row bitwise equal in every batch, as long as the
    kernels treat all places of a group alike: MKL does for all layers here but those of very few
    outputs, which need ``size=1``.
    """
    count = len(rows[0])
    out = []
    for start in range(0, count, size):
        take = [min(start + offset, count - 1) for offset in range(size)]
        out.append(compute(*(row[take] for row in rows)))
    return torch.cat(out)[:count]
