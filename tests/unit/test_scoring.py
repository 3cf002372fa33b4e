"""Batched scoring: order kept, batches filled, and an error is not a verdict of failure."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from contracts.types import Clip, Score
from services.batching import MicroBatcher
from services.scoring import RewardScorer, mass_warning, verdict


def clip(value: int) -> Clip:
    return Clip(np.full((2, 3, 4, 4, 3), value, np.uint8), (0, 1), "wipe")


@dataclass
class Brightness:
    """P('yes') is the first pixel / 255; a pixel of 13 breaks the whole batch."""

    version: int = 4
    batches: list[int] = field(default_factory=list)

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        self.batches.append(len(clips))
        values = [int(c.frames[0, 0, 0, 0, 0]) for c in clips]
        if 13 in values:
            raise RuntimeError("out of memory")
        return [Score(value / 255, 1.0) for value in values]


async def score_all(scorer: RewardScorer, values: Sequence[int]) -> list[Score | BaseException]:
    answers = await asyncio.gather(*(scorer.score(clip(v)) for v in values), return_exceptions=True)
    await scorer.close()
    return answers


def test_every_caller_gets_its_own_score_and_batches_are_full():
    model = Brightness()
    values = [17 * i % 251 + 1 if 17 * i % 251 + 1 != 13 else 14 for i in range(70)]
    scores = asyncio.run(score_all(RewardScorer(lambda: model, 32, 0.05), values))
    assert [round(s.p_yes * 255) for s in scores if isinstance(s, Score)] == values
    assert model.batches == [32, 32, 6]


def test_lone_request_is_not_kept_waiting_for_a_full_batch():
    async def one() -> list[Score | BaseException]:
        async with asyncio.timeout(10):
            return await score_all(RewardScorer(Brightness, 32, 0.001), [51])

    assert asyncio.run(one()) == [Score(0.2, 1.0)]


def test_error_reaches_its_batch_only_and_the_scorer_lives_on():
    model = Brightness()
    answers = asyncio.run(score_all(RewardScorer(lambda: model, 2, 0.05), [1, 13, 2, 3]))
    assert [type(a) for a in answers] == [RuntimeError, RuntimeError, Score, Score]
    assert model.batches == [2, 2]


def test_error_is_no_failure():
    good, bad = Score(0.9, 1.0), RuntimeError("out of memory")
    stored = [verdict(name, 4, outcome) for name, outcome in (("a", good), ("b", bad))]
    assert stored[0].accepted(0.8)
    assert stored[0].reward_version == 4
    assert stored[1].error == "RuntimeError: out of memory"
    assert math.isnan(stored[1].p_yes)
    assert not stored[1].accepted(0.0)


def test_closing_cancels_what_waits_and_refuses_more():
    async def scenario() -> list[str]:
        batcher = MicroBatcher[int, int](list, 8, 60.0)
        waiting = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.01)
        await batcher.close()
        await asyncio.wait([waiting], timeout=5)
        with pytest.raises(RuntimeError, match="closed"):
            await batcher.submit(2)
        return ["cancelled"] if waiting.cancelled() else ["left behind"]

    assert asyncio.run(scenario()) == ["cancelled"]


def test_wrong_number_of_replies_is_an_error_for_all():
    async def scenario() -> list[object]:
        batcher = MicroBatcher[int, int](lambda requests: requests[1:], 2, 0.05)
        answers = await asyncio.gather(batcher.submit(1), batcher.submit(2), return_exceptions=True)
        await batcher.close()
        return [str(a) for a in answers]

    assert asyncio.run(scenario()) == ["2 requests got 1 replies"] * 2


def test_one_callers_cancellation_spares_its_neighbours():
    async def scenario() -> int:
        batcher = MicroBatcher[int, int](lambda requests: [10 * r for r in requests], 2, 5.0)
        gone = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.01)
        gone.cancel()
        answer = await batcher.submit(2)
        await batcher.close()
        return answer

    assert asyncio.run(scenario()) == 20


def test_answers_with_other_words_are_pointed_out():
    """Means of .75 and 1.0 are .875, below .9; an error has no mass and does not count."""
    found = mass_warning("v1 on real clips", [0.75, 1.0, math.nan])
    assert found.startswith("v1 on real clips: P('yes') + P('no') is 0.875 on average over 2 clips")
    assert mass_warning("v1", [0.8, 1.0]) == ""
    assert mass_warning("v1", []) == mass_warning("v1", [math.nan]) == ""


def test_two_way_value_is_a_share_of_the_mass():
    assert Score(0.3, 0.4).two_way == pytest.approx(0.75)
    assert math.isnan(Score(0.0, 0.0).two_way)
