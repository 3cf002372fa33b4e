"""What a run is expected to take and what it took: numbers worked by hand."""

import json

import pytest

from configs.estimate import RATES, EstimateConfig
from configs.policy import PolicyConfig
from configs.reward import RewardConfig
from configs.robot import RobotConfig
from configs.run import (
    ClusterConfig,
    DemoConfig,
    EvaluationConfig,
    ImaginationConfig,
    MethodConfig,
    RunConfig,
    TaskConfig,
    TaskOverrides,
)
from configs.training import TrainConfig
from configs.world_model import WorldModelConfig
from services import estimate as made
from services.estimate import EMBEDDED, FULL, Rates, built_in, estimate, given, lines, span, total
from services.report_cost import cost
from services.report_data import Amount, ReportData
from services.spent import compared, measured, spent, store_estimate
from services.stages import write_json

ROUND = Rates(
    "round numbers",
    start=10.0,
    episode_tick=0.1,
    reset=5.0,
    chunk=2.0,
    clip=0.5,
    policy_step=3.0,
    world_model_step=4.0,
    reward_step=6.0,
)


def config(**changes):
    given = {
        "task": {"book": TaskOverrides(), "draw": TaskOverrides(rollouts=4, workers=2)},
        "each_task": TaskConfig(rollouts=2, imagine=30, workers=1, max_ticks=100),
        "robot": RobotConfig(count=2, height=48, width=80),
        "method": MethodConfig(iterations=2),
        "imagination": ImaginationConfig(max_chunks=10),
        "demos": DemoConfig(per_task=3),
        "evaluation": EvaluationConfig(episodes=5),
        "policy": PolicyConfig(train=TrainConfig(steps=100)),
        "world_model": WorldModelConfig(train=TrainConfig(steps=200)),
        "reward": RewardConfig(holdout=0.5, train=TrainConfig(steps=50)),
        "cluster": ClusterConfig(worker_gpus=1, scorer_gpus=0.5, learner_gpus=1, learner_workers=4),
    }
    return RunConfig(**given | changes)


def test_every_stage_by_hand():
    costs = {c.stage: c for c in estimate(config(), ["book", "draw"], ROUND)}
    assert list(costs) == [
        "demonstrations", "evaluate base",
        "1 collect", "1 train world model", "1 train reward", "1 calibration", "1 imagine",
        "1 score", "1 truth", "1 train policy", "evaluate vlaw-1",
        "2 collect", "2 train world model", "2 imagine", "2 score", "2 truth", "2 train policy",
        "evaluate vlaw-2", "train control", "evaluate control",
    ]  # fmt: skip
    seconds = {stage: c.amount.seconds for stage, c in costs.items()}
    # 6 episodes x (100 ticks x 0.1 s + 5 s) on 2 robots, and 10 s until they work
    assert seconds["demonstrations"] == seconds["1 collect"] == 6 * 15 / 2 + 10
    assert seconds["evaluate base"] == 10 * 15 / 2 + 10
    assert seconds["1 train world model"] == 200 * 4 + 10
    assert seconds["1 train reward"] == 50 * 6 + 10
    assert seconds["1 calibration"] == 2 * 3 * 0.5 + 10  # half of 6, by two models
    assert seconds["1 imagine"] == 30 * 10 * 2 + 10  # book has one worker, draw is done before
    assert seconds["1 score"] == (6 + 60) * 0.5 + 10
    assert seconds["1 truth"] == pytest.approx(60 * 120 * 0.0015 / 2 + 10)  # 10 chunks, 2 robots
    assert seconds["2 score"] == (12 + 60) * 0.5 + 10  # D_real has grown
    assert seconds["1 train policy"] == 100 * 3 + 10
    assert seconds["train control"] == 200 * 3 + 10  # as many steps as both iterations
    gpus = {stage: c.amount.gpu_seconds / c.amount.seconds for stage, c in costs.items()}
    assert (gpus["demonstrations"], gpus["1 collect"], gpus["1 train policy"]) == (0, 1, 4)
    assert (gpus["1 imagine"], gpus["1 score"]) == (3, 0.5)
    # 41 frames: the real one at the start is stored, too, but is no more than a fortieth
    picture = 48 * 80 * 0.25
    assert costs["1 imagine"].amount.disk_bytes == 60 * 40 * 3 * picture
    assert costs["1 collect"].amount.disk_bytes == 6 * 3 * 100 * picture  # 300 ticks are 20 s


def test_workers_of_the_slowest_task_count():
    both = {"book": TaskOverrides(workers=3), "draw": TaskOverrides(workers=2)}
    costs = {c.stage: c for c in estimate(config(task=both), ["book", "draw"], ROUND)}
    assert costs["1 imagine"].amount.seconds == 15 * 10 * 2 + 10  # draw: 30 by 2 workers


def test_the_baseline_imagines_nothing_and_recordings_are_not_played():
    names = [
        c.stage
        for c in estimate(config(method=MethodConfig(kind="filtered_bc")), ["book", "draw"], ROUND)
    ]
    assert not [name for name in names if "imagine" in name or "world" in name]
    recorded = config(robot=RobotConfig(kind="recorded", path="/data"), task={})
    names = [c.stage for c in estimate(recorded, ["pour"], ROUND)]
    assert not [name for name in names if "collect" in name or "evaluate" in name]
    assert "1 imagine" in names


def test_the_lines_add_up():
    costs = estimate(config(), ["book", "draw"], ROUND)
    text = "\n".join(lines(config(), costs, ROUND))
    assert "12 real episodes, 120 imagined trajectories" in text
    whole = total(c.amount for c in costs)
    assert f"total          about {span(whole.seconds)}, " in text
    assert f"{whole.gpu_seconds / 3600:.1f} GPU-hours" in text
    assert [span(s) for s in (59.0, 90.0, 5400.0)] == ["59 s", "1.5 min", "1.5 h"]


def test_given_rates_stand_before_others():
    own = config(estimate=EstimateConfig(rates={"chunk": 7, "reset": 1.5}))
    rates = given(own, ROUND)
    assert (rates.chunk, rates.reset, rates.policy_step) == (7, 1.5, 3)
    assert rates.source == "chunk, reset as given; the others round numbers"
    assert given(config(), ROUND) is ROUND
    assert built_in(config()) is EMBEDDED
    assert built_in(config(robot=RobotConfig(kind="recorded", path="/d"), task={})) is FULL
    assert set(RATES) == set(Rates.__dataclass_fields__) - {"source"}


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"chnk": 1}, r"estimate.rates='chnk' is not one of .* Did you mean estimate.rates=chunk"),
        ({"chunk": -1}, r"estimate.rates.chunk=-1 must be a number >= 0"),
        ({"chunk": "fast"}, r"estimate.rates.chunk='fast' must be a number"),
        (3, r"estimate.rates=3 must be"),
    ],
)
def test_a_rate_that_makes_no_sense_is_named(rates, message):
    with pytest.raises(ValueError, match=message):
        EstimateConfig(rates=rates)


def end(stage, seconds, new, first=None, **more):
    return {"event": "end", "stage": stage, "done": new, "new": new, "seconds": seconds} | {
        "first": first, "outcome": "done", **more,
    }  # fmt: skip


def stage(name, seconds, disk, gpu=0.0):
    return {"event": "stage", "stage": name, "seconds": seconds, "gpu_seconds": gpu} | {
        "disk_bytes": disk
    }


@pytest.fixture
def run(tmp_path):
    """One iteration on 2 robots; its policy training was cut short and continued."""
    settings = {
        "robot": {"count": 2},
        "task": {"book": {"max_ticks": None}, "draw": {"max_ticks": 200}},
        "each_task": {"max_ticks": 0},
        "imagination": {"max_chunks": 10},
    }
    write_json(tmp_path / "run.json", {"settings": settings})
    results = {
        "1 collect": {"book": {"n": 4, "successes": 1, "ticks": 300}, "skipped": {}},
        "evaluate base": {"draw": {"n": 2, "successes": 2, "ticks": 100}},
        "1 imagine": {
            "trajectories": 20, "seconds": 999.0, "net_frames": 400, "workers": {"book": 2},
            "policy_s": 50.0, "world_model_s": 100.0, "host_s": 50.0,
        },
    }  # fmt: skip
    for name, result in results.items():
        write_json(tmp_path / "stages" / f"{name}.json", {"stage": name, "result": result})
    found = [
        end("1 collect", 40.0, 4, first=[1, 25.0]),  # 5 s each; they began after 20 s
        end("evaluate base", 30.0, 2),  # too few to tell how long the start took
        stage("1 collect", 41.0, 1000.0, 40.0),
        end("1 imagine", 300.0, 20),
        stage("1 imagine", 301.0, 5000.0, 900.0),
        end("1 train policy", 50.0, 20, first=[1, 31.0]),  # 1 s each, from 30 s on
        stage("1 train policy", 50.0, 5100.0, 200.0),
        end("1 train policy", 100.0, 60, first=[2, 42.0]),  # 1 s each, from 40 s on
        stage("1 train policy", 102.0, 6100.0, 400.0),
    ]
    text = "\n".join(json.dumps(event) for event in found)
    (tmp_path / "events.jsonl").write_text(text + '\n{"event": "stage", "sta')  # killed here
    for store, size in (("real", 800), ("imagined", 3000)):
        (tmp_path / "stores" / store).mkdir(parents=True)
        (tmp_path / "stores" / store / "file").write_bytes(bytes(size))
    return tmp_path


def test_rates_of_the_last_run_by_hand(run):
    rates = measured(run, ROUND)
    assert rates.policy_step == pytest.approx((20 + 60) / 80)
    assert rates.start == pytest.approx((20 + 30 + 40) / 3)
    assert rates.chunk == pytest.approx(200 / (400 / 4))  # busy seconds; 4 frames are one chunk
    assert rates.chunk_share == pytest.approx(100 / 200)
    assert rates.episode_tick == pytest.approx((20 + 30) * 2 / 400)
    assert rates.episode_share == pytest.approx(400 / (4 * 150 + 2 * 200))  # book's own is 150
    assert (rates.reset, rates.real_bytes, rates.imagined_bytes) == (0, 200, 150)
    assert (rates.clip, rates.world_model_step) == (0.5, 4)  # not there: as before
    assert rates.source.startswith(f"measured in {run}; ")
    assert rates.source.endswith("world_model_step, reward_step: round numbers")
    assert "clip" in rates.source


def test_where_nothing_was_measured_the_message_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"estimate.run=.* holds no run"):
        measured(tmp_path, ROUND)
    write_json(tmp_path / "run.json", {"settings": {}})
    with pytest.raises(ValueError, match="no stage of that run has ended yet"):
        measured(tmp_path, ROUND)


def test_what_a_stage_took_adds_up_over_its_attempts(run):
    took = spent(run)
    assert took["1 collect"] == Amount(41.0, 40.0, 1000.0)
    assert took["1 imagine"] == Amount(301.0, 900.0, 4000.0)
    assert took["1 train policy"] == Amount(152.0, 600.0, 1100.0)


def test_older_folders_know_bars_only(tmp_path):
    (tmp_path / "events.jsonl").write_text(json.dumps(end("1 collect", 40.0, 4)) + "\n")
    assert spent(tmp_path) == {"1 collect": Amount(40.0, 0.0, 0.0)}


def test_a_continued_run_keeps_its_first_estimate_and_the_report_compares(run):
    expected = {"1 collect": Amount(82.0, 0.0, 2000.0), "2 collect": Amount(1.0, 0.0, 0.0)}
    store_estimate(run, expected, "first")
    store_estimate(run, {"1 collect": Amount(1.0, 1.0, 1.0)}, "second")
    rows = {row.stage: row for row in compared(run)}
    assert rows["1 collect"].expected == expected["1 collect"]
    assert rows["1 imagine"].expected is None
    assert rows["2 collect"].spent is None
    assert list(rows)[-1] == "2 collect"
    page = cost(ReportData("t", "c", {}, costs=list(rows.values())))
    assert "<td>1 collect</td><td>1 min 22 s</td><td>41.0 s</td><td>0.50</td>" in page
    assert page.count("<td>0.50</td>") == 2  # and the sum over stages that have both


def test_a_stage_belongs_to_the_first_kind_that_fits():
    kinds = {c.stage: c.kind for c in estimate(config(), ["book", "draw"], ROUND)}
    assert kinds["evaluate base"] == "evaluation"
    assert kinds["train control"] == "training"
    assert kinds["1 collect"] == "real rollouts"
    assert set(kinds.values()) <= set(made.KINDS.values())
