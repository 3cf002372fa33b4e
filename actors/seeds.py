"""Seeds of single decisions, derived from the seed of an episode."""

import numpy as np


def fold(seed: int, index: int) -> int:
    """A 63-bit seed that depends on both numbers, for chunk ``index`` of an episode.

    Raises:
        ValueError: a number is negative.
    """
    if min(seed, index) < 0:
        raise ValueError(f"seed={seed} and index={index} must be at least 0")
    words = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    return int(words[0] >> 1)
