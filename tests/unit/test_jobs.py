"""Which settings may differ where a run is continued."""

import json
from dataclasses import asdict

import pytest

from cluster.jobs import ELSEWHERE, claim, with_defaults
from configs.run import RunConfig, TaskOverrides


@pytest.fixture
def config(tmp_path):
    return RunConfig(out=str(tmp_path), task={"book": TaskOverrides(rollouts=3)})


def begun(folder, settings) -> None:
    for elsewhere in ELSEWHERE:
        del settings[elsewhere]
    (folder / "stores").mkdir()
    (folder / "run.json").write_text(json.dumps({"settings": settings, "job": "loop"}))


def test_a_setting_that_older_code_did_not_know_counts_as_its_default(config, tmp_path):
    old = asdict(config)
    del old["world_model"]["validate_every"], old["robot"]
    begun(tmp_path, old)
    claim(tmp_path, config)
    config.world_model.validate_every = 7
    with pytest.raises(ValueError, match=r"world_model.validate_every was 0, now 7"):
        claim(tmp_path, config)


@pytest.mark.parametrize("content", [b"", b'{"settings": {"seed', b'{"job": "loop"}'])
def test_a_torn_run_json_is_named_and_may_be_deleted(config, tmp_path, content):
    begun(tmp_path, asdict(config))
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"run.json is damaged .*; delete it and run the same"):
        claim(tmp_path, config)
    (tmp_path / "run.json").unlink()
    claim(tmp_path, config)
    claim(tmp_path, config)


def test_a_task_more_is_another_run(config, tmp_path):
    begun(tmp_path, asdict(config))
    config.task["draw"] = TaskOverrides()
    with pytest.raises(ValueError, match=r"task.draw was None"):
        claim(tmp_path, config)


def test_what_was_written_stands_before_a_default():
    old, defaults = {"a": 5, "b": {"c": None}}, {"a": 1, "b": {"c": 2, "d": 3}, "e": {"f": 4}}
    assert with_defaults(old, defaults) == {"a": 5, "b": {"c": None, "d": 3}, "e": {"f": 4}}
