"""``job=study``: its tables are of what its runs did, and a stop loses no run."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import load_file

from cluster.study import is_done, place_of, write
from configs.run import EvaluationConfig, MethodConfig, RunConfig, TaskOverrides
from configs.study import StudyConfig
from contracts.statistics import wilson
from replay.store import ReplayStore

pytestmark = pytest.mark.ray


def counted(run, policy):
    """Successes by task, read from the store itself."""
    found = ReplayStore.open(run / "stores" / "evaluation")
    labels = {name: found.label(name) for name in found.ids() if f"-{policy}-" in name}
    return Counter(found.provenance(n).task for n, label in labels.items() if label.success)


def test_the_tables_are_of_what_the_runs_did(undisturbed, tmp_path):
    config = RunConfig(
        job="study",
        task={"book": TaskOverrides()},
        method=MethodConfig(iterations=1),
        evaluation=EvaluationConfig(episodes=2),
        study=StudyConfig(variants=["vlaw"], seeds=[0], redraws=100),
    )
    (tmp_path / "seed-0").mkdir()
    place_of(tmp_path, "vlaw", 0).symlink_to(undisturbed)
    text = write(config, tmp_path).read_text()
    numbers = json.loads((tmp_path / "study.json").read_text())
    assert "<title>vlaw-1: " in (tmp_path / "study.html").read_text()
    rows = {row["name"]: row for row in numbers["rows"]}
    assert list(rows) == ["base", "vlaw-1", "control"]
    for name, row in rows.items():
        n = counted(undisturbed, name)["book"]
        assert [len(grid) for grid in row["success"]["book"]] == [2]
        assert sum(map(sum, row["success"]["book"])) == n
        assert f"| {name} | {n}/2 ({wilson(n, 2).low:.0%} to" in text
    (run,) = numbers["runs"]
    report = json.loads((undisturbed / "report.json").read_text())
    assert run["imagined"] == 24
    assert run["accepted"] == report["imagined"][0]["accepted"]
    assert run["true"] == report["truths"][0]["accepted_true"]
    assert [(d["better"], d["worse"]) for d in numbers["differences"]] == [
        ("vlaw-1", "base"),
        ("vlaw-1", "control"),
    ]


def test_a_report_of_half_a_run_makes_no_run_done(undisturbed, tmp_path):
    config = RunConfig(task={"book": TaskOverrides()}, method=MethodConfig(iterations=1))
    assert is_done(config, undisturbed)
    shutil.copy(undisturbed / "report.json", tmp_path)
    shutil.copytree(undisturbed / "stages", tmp_path / "stages")
    assert is_done(config, tmp_path)
    (tmp_path / "stages" / "evaluate control.json").unlink()
    assert not is_done(config, tmp_path)


@pytest.mark.long
def test_dsrl_steers_the_base_policy_in_every_iteration(start, tiny, tmp_path):
    """The published base succeeds often enough; the second actor learns from the first one's."""
    base = ["robot.height=48", "robot.width=80", "policy.embedded.width=256"]
    base += ["policy.embedded.layers=3", "policy.checkpoint=base"]
    flags = [*base, "method=dsrl", "task=book", "each_task.rollouts=5", "method.iterations=2"]
    flags += ["evaluation.episodes=2", "evaluation.control=false", "method.steering.steps=60"]
    job = start(tmp_path, *tiny, *flags)
    assert job.end() == 0, job.output
    published = tmp_path / "checkpoints" / "policy"
    weights = [load_file(published / f"v000{k}" / "steering.safetensors") for k in (1, 2)]
    assert np.any(weights[0]["mean.weight"] != weights[1]["mean.weight"])
    rows = ReplayStore.open(tmp_path / "stores" / "real").episodes()
    versions = [row.provenance.policy_version for row in rows]
    assert sorted(versions) == [0] * 5 + [1] * 5
    assert len(counted(tmp_path, "dsrl-2")) <= 1


@pytest.mark.long
def test_a_study_goes_on_after_a_stop_and_refuses_other_settings(start, loop, events, tmp_path):
    flags = [*loop, "job=study", "study.variants=[vlaw,filtered_bc,dsrl]", "study.seeds=[3]"]
    job = start(tmp_path, *flags)
    first, second = (place_of(tmp_path, name, 3) for name in ("vlaw", "filtered_bc"))
    job.when(lambda: len(events(second, "begin")) > 1)
    job.interrupt()
    assert job.end() == 1, job.output
    assert (first / "report.json").exists()
    assert not (tmp_path / "study.json").exists()
    done = (first / "events.jsonl").read_text()

    changed = start(tmp_path, *flags, "each_task.rollouts=7")
    assert changed.end() == 1
    assert "holds a run with other settings (each_task.rollouts was 6, now 7)" in changed.output

    again = start(tmp_path, *flags)
    assert again.end() == 0, again.output
    assert (first / "events.jsonl").read_text() == done  # it was not opened again
    rows = {row["name"]: row for row in json.loads((tmp_path / "study.json").read_text())["rows"]}
    assert list(rows) == ["base", "vlaw-1", "filtered_bc-1", "dsrl-1", "control"]
    budget, same = (ReplayStore.open(run / "stores" / "real") for run in (first, second))
    assert sorted(budget.ids()) == sorted(same.ids())
    for name in budget.ids():  # the same real episodes, bit by bit
        assert (budget.trajectory(name).actions == same.trajectory(name).actions).all()
    for name, run in (("base", first), ("vlaw-1", first), ("filtered_bc-1", second)):
        assert sum(map(sum, rows[name]["success"]["book"])) == counted(run, name)["book"]
