"""Seeds derived from seeds, the same on every machine."""

import hashlib


def fold(seed: int, *parts: int | str) -> int:
    """A seed below 2**31 that is a function of ``seed`` and ``parts`` alone.

    Python's own ``hash`` changes from process to process, and adding integers makes neighbours
    collide: (seed 0, episode 1) and (seed 1, episode 0) must differ.
    """
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def in_share(share: float, *parts: int | str) -> bool:
    """Whether the hash of ``parts`` lies in the first ``share`` (0 to 1) of all hashes.

    Splits by it never move: an episode stays on its side however many others come or go. The
    share is right on average, not for every small set.
    """
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
