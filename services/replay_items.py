"""Which parts of which episodes are replayed: a function of the seed and the episodes alone."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice, zip_longest
from typing import Literal

import numpy as np

from contracts.constants import FRAME_HZ
from contracts.seeds import fold
from services.stages import fingerprint

Kind = Literal["clip", "event", "long", "future"]


@dataclass(frozen=True, slots=True)
class ReplayItem:
    """``frames`` frames of an episode after its frame ``start``, which the world model is shown.

    A "future" is what a policy makes of the same start with the item's seed.
    """

    kind: Kind
    episode: str
    start: int
    frames: int
    seed: int
    pictured: bool = False

    @property
    def key(self) -> str:
        """Names its stored result: equal keys, equal results."""
        return f"{self.kind}-{fingerprint(asdict(self))}"


@dataclass(frozen=True, slots=True)
class Protocol:
    """How many of each kind, and how long."""

    clips: int
    seconds: float
    events: int
    long: int
    long_seconds: float
    futures: int
    sheets: int
    seed: int

    @property
    def frames(self) -> int:
        return round(self.seconds * FRAME_HZ)


Lengths = Sequence[tuple[str, int]]  # episode id, number of 5 Hz frames


def choose(protocol: Protocol, episodes: Lengths) -> list[ReplayItem]:
    """Clips of Table 1, then ends of episodes to judge, long replays, futures of one start.

    Raises:
        ValueError: no episode is long enough for one clip.
    """
    ordered = sorted(episodes, key=lambda one: fold(protocol.seed, "order", one[0]))
    found = list(islice(_clips(protocol, ordered), protocol.clips))
    if not found:
        longest = max((length for _, length in ordered), default=0)
        raise ValueError(
            f"none of {len(ordered)} episodes has {protocol.frames + 1} frames (5 Hz; the longest "
            f"has {longest}): lower replay_eval.seconds={protocol.seconds:g}, or give longer ones"
        )
    futures = [
        ReplayItem("future", found[0].episode, 0, protocol.frames, seed, pictured=True)
        for seed in (fold(protocol.seed, "future", k) for k in range(protocol.futures))
    ]
    return [*found, *_events(protocol, ordered), *_long(protocol, ordered), *futures]


def _clips(protocol: Protocol, ordered: Lengths) -> Iterator[ReplayItem]:
    """One clip of every episode, then a second one, and so on; those of an episode share no frame
    that is scored."""
    columns = [_starts(protocol, name, length) for name, length in ordered]
    starts = chain.from_iterable(zip_longest(*columns))
    names = (name for _ in range(max(map(len, columns), default=0)) for name, _ in ordered)
    known = [(name, start) for name, start in zip(names, starts, strict=True) if start is not None]
    for number, (name, start) in enumerate(known):
        yield _item(protocol, "clip", name, (start, protocol.frames), number < protocol.sheets)


def _starts(protocol: Protocol, name: str, length: int) -> list[int]:
    count = (length - 1) // protocol.frames
    rng = np.random.default_rng(fold(protocol.seed, "clips", name))
    offset = int(rng.integers(length - count * protocol.frames)) if count else 0
    return [offset + protocol.frames * int(k) for k in rng.permutation(count)]


def _events(protocol: Protocol, ordered: Lengths) -> Iterator[ReplayItem]:
    """The end of an episode, where its success shows; of a short one, all behind the first."""
    for name, length in [one for one in ordered if one[1] > 1][: protocol.events]:
        frames = min(protocol.frames, length - 1)
        yield _item(protocol, "event", name, (length - 1 - frames, frames))


def _long(protocol: Protocol, ordered: Lengths) -> Iterator[ReplayItem]:
    """The longest episodes from their first frame."""
    wanted = round(protocol.long_seconds * FRAME_HZ)
    longest = sorted((one for one in ordered if one[1] > 1), key=lambda one: -one[1])
    for name, length in longest[: protocol.long]:
        yield _item(protocol, "long", name, (0, min(wanted, length - 1)), pictured=True)


def _item(
    protocol: Protocol, kind: Kind, name: str, span: tuple[int, int], pictured: bool = False
) -> ReplayItem:
    seed = fold(protocol.seed, kind, name, span[0])
    return ReplayItem(kind, name, *span, seed, pictured)
