"""Seeds derived from seeds, the same on every machine."""

import hashlib


def fold(seed: int, *parts: int | str) -> int:
    """A seed below 2**31 that is a function of ``seed`` and ``parts`` alone.

    Python's own ``hash`` changes from process to process, and adding integers makes neighbours
    collide: (seed 0, episode 1) and (seed 1, episode 0) must differ.
    """
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
