import json

import pytest

from services.stages import Stages, fingerprint, read_json, write_json


def test_a_finished_stage_never_runs_again(tmp_path):
    events = []
    for _ in range(2):
        result = Stages(tmp_path).run("1/collect", lambda: events.append("work") or {"n": 4})
        assert result == {"n": 4}
    assert events == ["work"]


def test_a_stage_that_raised_runs_again(tmp_path):
    stages = Stages(tmp_path)
    with pytest.raises(ZeroDivisionError):
        stages.run("train", lambda: 1 / 0)
    assert stages.result("train") is None
    assert stages.run("train", lambda: "done") == "done"


def test_a_half_written_file_never_replaces_a_whole_one(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / "train.json").write_text('{"stage": "tr')
    with pytest.raises(ValueError, match=r"train.json is damaged.*delete it"):
        Stages(tmp_path).result("train")
    with pytest.raises(ValueError, match="damaged"):
        read_json(tmp_path / "train.json")
    for content in (b"", b"\x00\x00", b"\xff\xfe\xfd"):  # what a power cut leaves
        (tmp_path / "train.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"train.json is damaged.*delete it and run the same"):
            Stages(tmp_path).result("train")


def test_the_fingerprint_ignores_the_order_of_keys_only():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"b": [2, 1]}) != fingerprint({"b": [1, 2]})
