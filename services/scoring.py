"""Reward scoring for any number of callers, in batches, on one model."""

import math
from collections.abc import Callable, Iterable, Sequence

from contracts.metrics import REWARD_BATCH_SIZE, Meter, NoMeter
from contracts.protocols import RewardModel
from contracts.types import Clip, Score, Verdict
from services.batching import MicroBatcher

MIN_MASS = 0.9


class RewardScorer:
    """Scores clips with the model that ``load`` returns. Keeps nothing: a restart loses nothing."""

    def __init__(
        self,
        load: Callable[[], RewardModel],
        max_batch: int,
        max_wait_s: float,
        meter: Meter | None = None,
    ) -> None:
        self._model, self._meter = load(), meter or NoMeter()
        self._batcher = MicroBatcher[Clip, Score](self._score, max_batch, max_wait_s)

    async def score(self, clip: Clip) -> Score:
        """P('yes') of one clip. Raises whatever the model raised for its batch."""
        return await self._batcher.submit(clip)

    def _score(self, clips: Sequence[Clip]) -> list[Score]:
        self._meter.observe(REWARD_BATCH_SIZE, float(len(clips)))
        return self._model.score(clips)

    async def version(self) -> int:
        return self._model.version

    async def close(self) -> None:
        await self._batcher.close()


def verdict(trajectory_id: str, reward_version: int, outcome: Score | BaseException) -> Verdict:
    """What to store for one trajectory, given its score or what went wrong.

    An error becomes a verdict without a score: neither a success nor a failure, and scored again
    by the next attempt.
    """
    if isinstance(outcome, BaseException):
        error = f"{type(outcome).__name__}: {outcome}"
        return Verdict(trajectory_id, float("nan"), float("nan"), reward_version, error)
    return Verdict(trajectory_id, outcome.p_yes, outcome.mass, reward_version)


def mass_warning(what: str, masses: Iterable[float]) -> str:
    """Says that P('yes') + P('no') of ``what`` is below 0.9 on average; "" if it is not.

    Below that the model often says something else, so P('yes') > alpha cannot be trusted. The NaN
    of a scoring error is left out.
    """
    known = [mass for mass in masses if not math.isnan(mass)]
    mean = sum(known) / len(known) if known else 1.0
    if mean >= MIN_MASS:
        return ""
    return (
        f"{what}: P('yes') + P('no') is {mean:.3f} on average over {len(known)} clips, below "
        f"{MIN_MASS}: the model answers with other words. Fine-tune it before its scores are used."
    )
