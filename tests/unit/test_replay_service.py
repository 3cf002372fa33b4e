"""The one writer of a run's stores: counts, names, and a restart that loses nothing."""

import math
from dataclasses import replace

import pytest

from contracts.metrics import NoMeter
from contracts.types import Label, Provenance, Verdict
from envs.fake import counting_trajectory
from services.replay import ReplayService, StoreCounts, outcome


def named(name: str, origin: str = "real"):
    return counting_trajectory(Provenance(name, origin, "wipe", 1, seed=0), ticks=12)


def test_counts_survive_a_restart_and_repeats_change_nothing(tmp_path):
    folders = {name: str(tmp_path / name) for name in ("real", "imagined")}
    service = ReplayService(folders)
    for name, success in (("a", True), ("b", False), ("c", True)):
        assert service.add("real", named(name), Label(name, success, "simulator"))
    assert service.add("imagined", named("a", "imagined"), None)  # ids are per store
    assert not service.add("real", named("a"), Label("a", False, "simulator"))
    service.close()
    again = ReplayService(folders)
    counts = again.counts()
    real = counts["real"]
    assert real == StoreCounts(3, 3, 2, real.bytes_on_disk)
    assert (counts["imagined"].trajectories, counts["imagined"].labelled) == (1, 0)
    assert real.bytes_on_disk == sum(
        file.stat().st_size for file in (tmp_path / "real").rglob("*") if file.is_file()
    )
    assert again.ids("real") == ["a", "b", "c"]
    again.close()


def test_clip_and_verdict_come_back(tmp_path):
    service = ReplayService({"imagined": tmp_path})
    service.add("imagined", named("a", "imagined"), None)
    clip = service.clip("imagined", "a", 3)
    assert clip.frame_index == (0, 2, 4)
    assert clip.instruction == "do wipe"
    assert service.trajectory("imagined", "a").num_ticks == 12
    service.add_verdicts("imagined", [Verdict("a", math.nan, math.nan, 1, "lost")])
    service.add_verdicts("imagined", [Verdict("a", 0.9, 1.0, 2)])
    assert service.verdicts("imagined")["a"].p_yes == 0.9
    assert service.verdicts("imagined", 1)["a"].error == "lost"
    service.close()


def test_unknown_store_is_named(tmp_path):
    service = ReplayService({"real": tmp_path})
    with pytest.raises(ValueError, match="no store 'dreams'; there are real"):
        service.ids("dreams")
    service.close()


class Ledger(NoMeter):
    def __init__(self):
        self.values = {}

    def set(self, metric, value, **tags):
        super().set(metric, value, **tags)
        self.values[metric.name, *tags.values()] = value

    def count(self, metric, amount=1, **tags):
        super().count(metric, amount, **tags)
        key = (metric.name, *(tags[tag] for tag in metric.tags))
        self.values[key] = self.values.get(key, 0) + amount


def test_metrics_count_each_real_episode_once_and_measure_stores_now_and_then(tmp_path):
    ledger, now = Ledger(), [0.0]
    folders = {name: tmp_path / name for name in ("real", "imagined")}
    service = ReplayService(folders, None, ledger, lambda: now[0])
    empty = ledger.values["vlaw_store_bytes", "real"]
    for name, success in (("a", True), ("b", False), ("b", False)):
        service.add("real", named(name), Label(name, success, "simulator"))
    service.add("real", named("c"), None)
    service.add("imagined", named("a", "imagined"), None)
    counted = {key[1:]: n for key, n in ledger.values.items() if key[0] == "vlaw_episodes_total"}
    assert counted == {
        ("real", "wipe", "success"): 1,
        ("real", "wipe", "failure"): 1,
        ("real", "wipe", "unlabelled"): 1,
    }
    assert ledger.values["vlaw_store_trajectories", "real"] == 3
    assert ledger.values["vlaw_store_trajectories", "imagined"] == 1
    assert ledger.values["vlaw_store_bytes", "real"] == empty
    now[0] = 10.0
    service.add("real", named("d"), None)
    assert ledger.values["vlaw_store_bytes", "real"] == service.counts()["real"].bytes_on_disk
    service.close()


def test_an_aborted_episode_is_neither_success_nor_failure():
    played = named("a")
    aborted = replace(played, ending="aborted:policy")
    assert outcome(aborted, Label("a", True, "simulator")) == "aborted"
    assert outcome(played, Label("a", True, "simulator")) == "success"
    assert outcome(played, None) == "unlabelled"
