"""The study's numbers by hand, and what its variants change."""

import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from cluster.jobs import differences
from configs.run import EvaluationConfig, MethodConfig, RunConfig, TaskConfig, TaskOverrides
from configs.study import VARIANTS, StudyConfig, variant
from contracts.statistics import wilson
from services.study import Row, Spent, difference, mean_interval, to_markdown
from services.study_page import study_page

REDRAWS = 2000


def row(name, **tasks):
    return Row(name, {task: np.array(grid, bool) for task, grid in tasks.items()})


def config(**changes):
    given = {
        "job": "study",
        "task": {"book": TaskOverrides(), "draw": TaskOverrides(imagine=7)},
        "each_task": TaskConfig(rollouts=4, imagine=30),
        "evaluation": EvaluationConfig(episodes=5),
    }
    return RunConfig(**given | changes)


def test_the_mean_weighs_tasks_alike_and_seeds_are_pooled():
    one = row("base", book=[[1, 1, 0, 1], [1, 1, 1, 1]], draw=[[0, 0, 0, 0], [0, 1, 0, 0]])
    assert one.counts("book") == (7, 8)
    assert one.interval("draw") == wilson(1, 8)
    assert one.mean == (7 / 8 + 1 / 8) / 2


def test_pairs_of_starts_make_the_difference_certain():
    """Each policy alone varies from start to start; the gap between them never does."""
    rng = np.random.default_rng(0)
    worse = rng.random((3, 40)) < 0.5
    better = row("better", book=np.ones((3, 40)) * worse, draw=np.ones((3, 40)))
    base = row("base", book=worse, draw=np.zeros((3, 40)))
    gap = difference(better, base, REDRAWS)
    assert gap.value == 0.5
    assert (gap.interval.low, gap.interval.high) == (0.5, 0.5)
    assert gap.conclusion == "better is better"
    alone = mean_interval(base, REDRAWS)
    assert alone.low < base.mean - 0.02 < base.mean + 0.02 < alone.high


def test_the_bootstrap_agrees_with_theory_where_there_is_one():
    """One task, one seed: the mean of n independent starts, 1.96 standard errors to each side."""
    success = np.arange(400)[None] % 4 == 0
    found = mean_interval(row("base", book=success), 4000)
    half = 1.96 * (0.25 * 0.75 / 400) ** 0.5
    assert found.low == pytest.approx(0.25 - half, abs=0.006)
    assert found.high == pytest.approx(0.25 + half, abs=0.006)


def test_seeds_that_disagree_widen_the_interval():
    agree = row("a", book=np.tile(np.arange(50) % 2, (3, 1)))
    apart = row("b", book=[[0] * 50, [0, 1] * 25, [1] * 50])
    narrow, wide = (mean_interval(one, REDRAWS) for one in (agree, apart))
    assert agree.mean == apart.mean == 0.5
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_chance_is_not_called_a_difference():
    rng = np.random.default_rng(1)
    first, second = (row(name, book=rng.random((3, 50)) < 0.5) for name in "ab")
    assert difference(first, second, REDRAWS).conclusion == "not shown either way"
    assert difference(second, first, REDRAWS).value == -difference(first, second, REDRAWS).value


def test_rows_that_cannot_be_compared_are_refused():
    base = row("base", book=[[1, 0]])
    for other in (row("b", book=[[1, 0, 1]]), row("b", draw=[[1, 0]]), row("b", book=[[1], [0]])):
        with pytest.raises(ValueError, match="same tasks, seeds and starts"):
            difference(other, base, REDRAWS)
    with pytest.raises(ValueError, match="equally many"):
        row("b", book=[[1, 0]], draw=[[1]])


def test_the_tables_say_everything():
    rows = [row("base", book=[[1, 0]]), row("vlaw-1", book=[[1, 1]])]
    gap = difference(rows[1], rows[0], REDRAWS)
    costs = [Spent("vlaw", 0, 600.0, 30, 60.0, 12, 10, 4), Spent("bc", 0, 60.0, 0, 0.0, 0, 0, 0)]
    text = to_markdown(rows, [gap], costs)
    assert "| base | 1/2 (9% to 91%) | 50.0% |" in text
    assert "| vlaw-1 - base | +50.0 | +0.0 to +100.0 | not shown either way |" in text
    assert "| vlaw | 0 | 10 | 30 | 1800 | 12 | 5.0 | 4/10 (17% to 69%) |" in text
    assert "| bc | 0 | 1 | 0 | 0 | 0 | - | - |" in text


def changed(name, seed=7, **changes):
    """The settings in which a run of the study differs from the plain loop."""
    plain = config(**changes)
    flags = differences(asdict(replace(plain, job="loop")), asdict(variant(plain, name, seed)))
    return {flag: now for flag, _, now in flags}


SEEDED = {"seed": 7} | {f"{part}.train.seed": 7 for part in ("policy", "reward", "world_model")}
ALONE = {"evaluation.control": False}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("vlaw", {}),
        ("filtered_bc", ALONE | {"method.kind": "filtered_bc"}),
        (
            "vlaw_true_judge",
            ALONE | {"method.judge": "physics", "evaluation.truth": "all"},
        ),
        (
            "all_real",
            ALONE
            | {"method.kind": "filtered_bc", "task.book.rollouts": 34, "task.draw.rollouts": 11},
        ),
        ("vlaw_later_starts", ALONE | {"imagination.later_starts": 0.5}),
        ("vlaw_short_turns", ALONE | {"method.iterations": 4, "each_task.rollouts": 2}),
        ("vlaw_half", ALONE | {"each_task.imagine": 15, "task.draw.imagine": 3}),
        ("vlaw_imagined_only", ALONE | {"method.real_share": 0.0}),
    ],
)
def test_a_variant_changes_this_and_nothing_else(name, more):
    assert changed(name) == SEEDED | more


def test_every_variant_of_a_seed_has_the_same_real_budget_and_starts():
    for name in set(VARIANTS) - {"all_real"}:
        one = variant(config(), name, 3)
        iterations = one.method.iterations
        assert [iterations * one.for_task(task).rollouts for task in one.task] == [8, 8]
        assert (one.evaluation.seed, one.evaluation.episodes) == (1_000_000, 5)


def test_short_turns_halve_a_task_s_own_number_of_rollouts():
    own = config(task={"book": TaskOverrides(rollouts=9), "draw": TaskOverrides()})
    one = variant(own, "vlaw_short_turns", 0)
    assert [one.for_task(task).rollouts for task in ("book", "draw")] == [4, 2]
    assert [one.for_task(task).imagine for task in ("book", "draw")] == [30, 30]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation": EvaluationConfig(episodes=0)}, r"evaluation\.episodes=50"),
        ({"method": MethodConfig(update_policy=False)}, r"method\.update_policy=true"),
    ],
)
def test_what_cannot_be_studied_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ["vlaw", "magic"]}, r"study\.variants"),
        ({"seeds": []}, r"study\.seeds=\[\] must name one or more"),
        ({"seeds": [1, 1]}, "each once"),
        ({"redraws": 3}, r"study\.redraws"),
    ],
)
def test_impossible_numbers_of_a_study_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        StudyConfig(**changes)


def test_the_page_shows_every_rate_once_and_where_its_interval_lies():
    """A mark at share s lies at left + s x (end - left), whatever the page around it."""
    rows = [
        row("base", book=[[1, 0, 0, 0]], draw=[[0, 0, 0, 0]]),
        row("vlaw-1", book=[[1, 1, 1, 0]], draw=[[1, 0, 0, 0]]),
        row("bc-1", book=[[1, 1, 0, 0]], draw=[[0, 0, 0, 0]]),
        row("control", book=[[1, 0, 0, 0]], draw=[[0, 1, 0, 0]]),
    ]
    means = {one.name: mean_interval(one, REDRAWS) for one in rows}
    gaps = [difference(rows[1], rows[0], REDRAWS), difference(rows[1], rows[2], REDRAWS)]
    page = study_page(rows, means, gaps, [Spent("vlaw", 0, 60.0, 10, 30.0, 5, 5, 2)])
    assert "<title>Study: book, draw</title>" in page
    assert "Starts per task and policy: 4" in page
    circle = {
        words: (float(x), tone)
        for x, tone, words in re.findall(
            r'<circle cx="([\d.]+)"[^>]*class="t(\d) fill"><title>([^<]+)</title>', page
        )
    }
    assert circle["base: 12.5%"][1] == circle["vlaw-1: 50.0%"][1] == "0"
    assert circle["bc-1: 25.0%"][1] == "2"
    assert circle["control: 25.0%"][1] == "1"
    assert circle["vlaw-1: 50.0%"][0] - circle["base: 12.5%"][0] == pytest.approx(
        3 * (circle["bc-1: 25.0%"][0] - circle["base: 12.5%"][0]), abs=0.3
    )
    assert circle["vlaw-1: 3 of 4"][0] > circle["vlaw-1: 1 of 4"][0]
    assert "<td>vlaw-1 - base</td><td>+37.5</td>" in page
    assert "<td>vlaw-1</td><td>3/4 (30% to 95%)</td>" in page
    assert "<td>2/5 (12% to 77%)</td>" in page


def test_a_base_that_all_seeds_share_is_counted_once():
    """The same policy from the same starts tells nothing new with another seed."""
    shared = row("base", book=[[1, 0, 1, 1]] * 3, draw=[[0, 0, 0, 1]] * 3)
    assert shared.counts("book") == (3, 4)
    assert shared.interval("draw") == wilson(1, 4)
    by_chance = row("vlaw-1", book=[[1, 0, 1, 1]] * 2, draw=[[0, 0, 0, 1], [0, 0, 1, 1]])
    assert by_chance.counts("book") == (6, 8)
