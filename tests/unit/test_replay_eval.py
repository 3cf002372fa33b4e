"""Replay evaluation: what is replayed, what is measured, what is concluded, what is shown."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from configs.replay_eval import ReplayEvalConfig
from configs.robot import RobotConfig
from configs.run import RunConfig, TaskOverrides
from contracts.types import Clip, Label, Provenance, Score, StartState
from envs.fake import counting_trajectory
from models.metrics.replay import Recording, replay
from replay.images import ImageCoding
from replay.store import ReplayStore, StoreOptions
from services.judging import Networks, ReplayJudge, by_model, copy_first, copy_last, show_real
from services.replay_items import Protocol, ReplayItem, choose
from services.replay_report import numbers, page, write_replay_report
from services.replay_report_data import Episode, ReplayReport, VariantResults
from services.replay_report_numbers import (
    bootstrap,
    by_second,
    distance,
    outcomes,
    per_clip,
    table,
)
from services.replay_results import Results

PROTOCOL = Protocol(clips=6, seconds=1.0, events=3, long=1, long_seconds=4.0, futures=2, sheets=1,
                    seed=0)  # fmt: skip


class Counter:
    """A world model that shows, in every pixel, 100 x the x of the pose it is driven to."""

    version = 0

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def begin(self, start: StartState, seed: int) -> str:
        return start.parent

    def imagine(self, slots: list[str], poses: np.ndarray) -> np.ndarray:
        self.calls.append(list(slots))
        levels = np.round(100 * poses[:, 1:, 0]).astype(np.uint8)
        return np.broadcast_to(
            levels[:, :, None, None, None, None], (len(slots), 4, 3, 16, 16, 3)
        ).copy()


class Brightness:
    """A judge: P('yes') is the level of the last frame, over 255."""

    version = 0

    def __init__(self) -> None:
        self.clips: list[Clip] = []

    def score(self, clips: list[Clip]) -> list[Score]:
        self.clips += clips
        return [Score(float(clip.frames[-1].mean() / 255), 1.0) for clip in clips]


def recording(name: str, rows: int, frames: int) -> Recording:
    start = StartState(name, 0, "t", "go", np.zeros((3, 16, 16, 3), np.uint8),
                       np.zeros(7, np.float32), 0.0)  # fmt: skip
    poses = np.zeros((rows, 7), np.float32)
    poses[:, 0] = np.arange(rows) / 100
    return Recording(start, 0, poses, frames)


def test_replay_drives_with_the_recorded_poses_and_cuts_what_nobody_recorded():
    """25 frames are 7 chunks of 4: the last three are cut. 10 poses: the tenth is held."""
    model = Counter()
    long, short = replay(model, [recording("a", 40, 25), recording("b", 10, 11)])
    assert long[:, 0, 0, 0, 0].tolist() == list(range(1, 26))
    assert short[:, 2, 5, 5, 1].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9]
    assert model.calls == 3 * [["a", "b"]] + 4 * [["a"]]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ReplayStore:
    """Episodes of 21, 11 and 5 frames whose pixels are 3 x frame number; x moves by 0.03."""
    folder = tmp_path_factory.mktemp("store")
    writer = ReplayStore.create_or_open(folder, StoreOptions(coding=ImageCoding("png")))
    for seed, (frames, success) in enumerate([(21, True), (11, False), (5, None)]):
        ticks = 3 * (frames - 1)
        made = counting_trajectory(Provenance(f"e{seed}", "recorded", f"t{seed}", 0, seed), ticks)
        levels = (3 * np.arange(frames, dtype=np.uint8))[:, None, None, None, None]
        shown = np.broadcast_to(levels, (frames, 3, 16, 16, 3)).copy()
        cartesian = np.zeros((ticks + 1, 6), np.float32)
        cartesian[:, 0] = np.arange(ticks + 1) / 100
        trajectory = replace(made, frames=shown, cartesian_position=cartesian)
        label = None if success is None else Label(f"e{seed}", success, "recording")
        writer.add(trajectory, label)
    writer.close()
    return ReplayStore.open(folder)


def lengths(store: ReplayStore) -> list[tuple[str, int]]:
    return [(name, store.num_frames(name)) for name in store.ids()]


def test_clips_share_no_scored_frame_and_take_turns(store):
    items = [item for item in choose(PROTOCOL, lengths(store)) if item.kind == "clip"]
    assert len(items) == 6  # 4 of 20 frames, 2 of 10, none of 4
    assert {item.episode for item in items[:2]} == {"e0", "e1"}
    assert {item.episode for item in items[4:]} == {"e0"}
    for name, length in (("e0", 21), ("e1", 11)):
        spans = [range(i.start + 1, i.start + 6) for i in items if i.episode == name]
        scored = [frame for span in spans for frame in span]
        assert len(scored) == len(set(scored))
        assert max(scored) < length
    assert [item.pictured for item in items] == [True] + 5 * [False]


def test_events_end_with_their_episode_and_long_ones_begin_with_it(store):
    items = choose(PROTOCOL, lengths(store))
    ends = {i.episode: (i.start, i.frames) for i in items if i.kind == "event"}
    assert ends == {"e0": (15, 5), "e1": (5, 5), "e2": (0, 4)}
    assert [(i.episode, i.start, i.frames) for i in items if i.kind == "long"] == [("e0", 0, 20)]
    futures = [i for i in items if i.kind == "future"]
    assert len({i.seed for i in futures}) == 2
    assert {(i.start, i.frames) for i in futures} == {(0, 5)}


def test_the_choice_follows_from_the_seed_alone(store):
    known = lengths(store)
    assert choose(PROTOCOL, known) == choose(PROTOCOL, known[::-1])
    other = choose(replace(PROTOCOL, seed=1), known)
    assert {i.key for i in other}.isdisjoint(i.key for i in choose(PROTOCOL, known))
    with pytest.raises(ValueError, match=r"none of 3 episodes has 126 frames \(5 Hz; the longest"):
        choose(replace(PROTOCOL, seconds=25.0), known)


def test_a_perfect_model_and_the_two_copies(store):
    """Frame k has level 3k and x = 0.03 k, so Counter shows the truth. The first frame's copy errs
    by 3 j after j frames, the last one's by 3: 20 log10(255 / error)."""
    judge = ReplayJudge(store, Networks())
    items = [ReplayItem("clip", "e0", 2, 5, 0), ReplayItem("clip", "e1", 0, 5, 0)]
    for found in judge.judge(by_model(Counter()), items):
        np.testing.assert_array_equal(found["psnr"], np.full((5, 3), 100.0))
    for found in judge.judge(copy_first, items):
        expected = 20 * np.log10(255 / (3 * np.arange(1, 6)))
        np.testing.assert_allclose(found["psnr"], np.tile(expected[:, None], (1, 3)))
    for found in judge.judge(copy_last, items):
        np.testing.assert_allclose(found["psnr"], 20 * np.log10(255 / 3))


def test_a_result_does_not_depend_on_its_company(store):
    judge = ReplayJudge(store, Networks(reward=Brightness(), reward_frames=4))
    items = choose(replace(PROTOCOL, futures=0), lengths(store))
    together = judge.judge(by_model(Counter()), items)
    for item, found in zip(items, together, strict=True):
        (alone,) = judge.judge(by_model(Counter()), [item])
        assert alone.keys() == found.keys()
        for name, value in alone.items():
            np.testing.assert_array_equal(value, found[name])


def test_the_judge_sees_the_episode_with_its_end_replaced(store):
    """e1 has frames 0..10, the last five are replayed; 6 of 11 frames: 0, 2, 4, 6, 8, 10."""
    reward = Brightness()
    judge = ReplayJudge(store, Networks(reward=reward, reward_frames=6))
    (found,) = judge.judge(copy_first, [ReplayItem("event", "e1", 5, 5, 0)])
    judge.judge(by_model(Counter()), [ReplayItem("event", "e1", 5, 5, 0)])
    copied, shown = reward.clips
    assert copied.frame_index == (0, 2, 4, 6, 8, 10)
    assert copied.frames[:, 0, 0, 0, 0].tolist() == [0, 6, 12, 15, 15, 15]
    assert shown.frames[:, 0, 0, 0, 0].tolist() == [0, 6, 12, 18, 24, 30]
    assert float(found["p_yes"]) == pytest.approx(15 / 255)


def test_pictures_are_the_known_frame_and_evenly_spaced_ones(store):
    (found,) = ReplayJudge(store, Networks()).judge(
        show_real, [ReplayItem("long", "e0", 0, 20, 0, pictured=True)]
    )
    assert found["pictures"][:, 0, 0, 0, 0].tolist() == [6 * k for k in range(11)]


def test_results_are_found_again_under_their_settings(tmp_path):
    item = ReplayItem("clip", "e0", 0, 5, 0)
    results = Results(tmp_path, "+online / 2", {"weights": "a"})
    results.save(item, {"psnr": np.arange(3.0), "p_yes": np.asarray(0.25)})
    again = Results(tmp_path, "+online / 2", {"weights": "a"})
    assert item in again
    np.testing.assert_array_equal(again.load(item)["psnr"], [0, 1, 2])
    assert float(again.load(item)["p_yes"]) == 0.25
    assert item not in Results(tmp_path, "+online / 2", {"weights": "b"})
    assert replace(item, start=1) not in again
    next(tmp_path.rglob("*.npz")).write_bytes(b"torn")
    with pytest.raises(ValueError, match="is damaged"):
        again.load(item)


def test_bootstrap_draws_whole_episodes():
    """Two episodes of values 0 and 1: the mean of a draw is 0, 1/2 or 1 with 1/4, 1/2, 1/4."""
    found = bootstrap(np.repeat([0.0, 1.0], 50), 50 * ["a"] + 50 * ["b"])
    assert (found.low, found.high) == (0.0, 1.0)
    one = bootstrap(np.arange(9.0), 9 * ["a"])
    assert math.isnan(one.low)


def test_bootstrap_covers_as_the_normal_interval_does():
    values = np.random.default_rng(3).normal(size=400)
    found = bootstrap(values, [str(k) for k in range(400)])
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def made(name: str, error: float, p_yes: list[float], model: bool = True) -> VariantResults:
    """Clips of 7 frames with PSNR 20 - error - frame number (wrist 3 lower), events by P('yes')."""
    items, found = [], []
    for k in range(40):
        items.append(ReplayItem("clip", f"e{k % 4}", k, 7, 0, pictured=k == 0))
        psnr = 20 - error - np.arange(7.0)[:, None] - np.array([0.0, 0.0, 3.0])
        rng = np.random.default_rng(k)
        features = rng.normal(size=(3, 8)) + error
        found.append({"psnr": psnr, "ssim": psnr / 100, "fvd": features,
                      "pictures": np.full((6, 3, 16, 16, 3), 80, np.uint8)})  # fmt: skip
    for k, p in enumerate(p_yes):
        items.append(ReplayItem("event", f"e{k}", 0, 7, 0))
        found.append({"psnr": np.ones((7, 3)), "ssim": np.ones((7, 3)), "p_yes": np.asarray(p)})
    return VariantResults(name, model, "c0ffee", "", "no policy", items, found)


@pytest.fixture
def report() -> ReplayReport:
    """Labels: success, success, failure, failure, none."""
    labels = [Label(f"e{k}", k < 2, "human") for k in range(4)]
    episodes = {f"e{k}": Episode("pick", "pick <it>", 30, label) for k, label in enumerate(labels)}
    episodes["e4"] = Episode("place", "place", 30, None)
    variants = [
        made("real", 0.0, [0.9, 0.1, 0.1, 0.1, 0.95], model=False),
        made("copy first", 2.0, [0.1, 0.1, 0.1, 0.1, 0.1], model=False),
        made("copy last", 1.0, [0.9, 0.1, 0.1, 0.1, 0.9], model=False),
        made("base", 1.5, [0.9, 0.2, 0.9, 0.3, 0.2]),
    ]
    config = {"seconds": 1.4}
    missing = {"LPIPS": "no weights: set x=<file>"}
    given = {"title": "t", "created": "now", "source": "/s", "config": config}
    return ReplayReport(
        **given, models={"base": "b"}, variants=variants, episodes=episodes, num_episodes=9,
        alpha=0.8, judge="judge", weights={"FVD": "i3d.pt"}, unavailable=missing,
    )  # fmt: skip


def test_table_by_view_and_against_the_copy(report):
    rows = {(row.variant, row.view): row for row in table(report)}
    assert rows["base", "exterior_1"].psnr.value == pytest.approx(20 - 1.5 - 3)
    assert rows["base", "wrist"].psnr.value == pytest.approx(20 - 1.5 - 6)
    assert rows["base", "all"].psnr.value == pytest.approx(20 - 1.5 - 4)
    assert rows["base", "all"].gain.value == pytest.approx(0.5)
    assert (rows["base", "all"].clips, rows["base", "all"].episodes) == (40, 4)
    assert rows["base", "all"].lpips is None
    assert rows["base", "all"].fid is None


def test_seconds_hold_five_frames_and_what_is_left(report):
    """Frames 0..4 are the first second, 5 and 6 the begun second one."""
    found = by_second(report.variant("base"), "psnr", "exterior_2")
    np.testing.assert_allclose(found, [18.5 - 2, 18.5 - 5.5])
    np.testing.assert_allclose(per_clip(report.variant("base"), "psnr", "wrist"), 12.5)


def test_distance_with_its_floor_at_equal_n(report):
    """Shifting 8 features by 1.5 and changing nothing else is 8 x 1.5^2 = 18 apart."""
    found = distance(report, report.variant("base"), "fvd", "wrist")
    assert found.value == pytest.approx(18.0, abs=1e-6)
    assert (found.n, found.half_n) == (40, 20)
    assert 0 < found.floor < found.half
    assert abs(found.half - 18.0) > 0.1  # the halves share no clip, so their noise differs
    few = replace(report, variants=[
        replace(v, items=v.items[:15], found=v.found[:15]) for v in report.variants
    ])  # fmt: skip
    none = distance(few, few.variant("base"), "fvd", "wrist")
    assert math.isnan(none.value)
    assert none.reason == "15 samples, needs 16 or more"


def test_success_against_labels_and_against_the_same_judge(report):
    """Labels: base shows success e0 rightly, misses e1, invents e2. The judge on the real ends
    sees e0 and e4: of these base shows e0, and it invents e2."""
    rows = {(o.variant, o.truth, o.task): o for o in outcomes(report)}
    label = rows["base", "label", ""].counts
    assert (label.true_positive, label.false_negative) == (1, 1)
    assert (label.false_positive, label.true_negative) == (1, 1)
    assert rows["base", "label", ""].unlabelled == 1
    judge = rows["base", "judge", ""].counts
    assert (judge.true_positive, judge.false_negative) == (1, 1)
    assert (judge.false_positive, judge.true_negative) == (1, 2)
    assert rows["base", "judge", ""].optimism.value == pytest.approx(1 / 3)
    assert rows["base", "judge", ""].pessimism.value == pytest.approx(1 / 2)
    # Wilson, 1 of 2, by hand: (0.5 + 0.9604 -+ 1.96 sqrt(0.125 + 0.2401)) / 2.9207
    pessimism = rows["base", "judge", ""].pessimism.interval
    assert (pessimism.low, pessimism.high) == pytest.approx((0.0945, 0.9055), abs=1e-3)
    assert ("real", "judge", "") not in rows
    assert rows["real", "label", ""].counts.true_positive == 1
    assert rows["base", "judge", "place"].counts.false_negative == 1


def test_the_page_shows_all_and_says_what_it_lacks(report, tmp_path):
    path = write_replay_report(report, tmp_path)
    html = path.read_text()
    assert "unavailable: no weights: set x=&lt;file&gt;" in html
    assert "pick &lt;it&gt;" in html
    assert "<it>" not in html
    assert "base: none, no policy" in html
    assert html.count("data:image/jpeg") == 6  # three views of the cameras and of the one model
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert write_replay_report(report, tmp_path).read_text() == html
    told = json.loads((tmp_path / "replay.json").read_text())
    assert told == json.loads(json.dumps(numbers(report)))
    (row,) = [r for r in told["table"] if (r["variant"], r["view"]) == ("base", "all")]
    assert row["psnr"]["value"] == pytest.approx(14.5)
    assert len(told["items"]) == 4 * 45


def test_pictures_that_do_not_fit_are_counted(report):
    assert "6 rows of pictures are left out" in page(report, media_bytes=10)


def test_what_cannot_be_replayed_is_refused_before_anything_starts():
    with pytest.raises(ValueError, match="job=replay_eval needs real episodes"):
        RunConfig(job="replay_eval", task={"book": TaskOverrides()})
    recorded = RobotConfig(kind="recorded", path="/x")
    with pytest.raises(ValueError, match=r"replay_eval.models.a.checkpoint=base is an embedded"):
        RunConfig(job="replay_eval", robot=recorded,
                  world_model=replace(RunConfig(robot=recorded).world_model, kind="ctrl_world",
                                      checkpoint="scratch"),
                  replay_eval=ReplayEvalConfig(models={"a": "base"}))  # fmt: skip
    with pytest.raises(ValueError, match="'real' is a row of its own"):
        ReplayEvalConfig(models={"real": "base"})
    with pytest.raises(ValueError, match=r"must be \{name: checkpoint folder"):
        ReplayEvalConfig(models=["a"])
    with pytest.raises(ValueError, match="shows no spread"):
        ReplayEvalConfig(futures=1)
