"""The one writer of a run's stores: counts, names, and a restart that loses nothing."""

import math

import pytest

from contracts.types import Label, Provenance, Verdict
from envs.fake import counting_trajectory
from services.replay import ReplayService, StoreCounts


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
