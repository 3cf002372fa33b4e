import pytest

from cluster.checkpoints import CheckpointFolder, base_folder, checksum, verified


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"0123456789")
    (folder / "config.json").write_text("{}")
    return folder


def test_a_published_version_opens_with_the_same_checksum(tmp_path, weights):
    published = CheckpointFolder(tmp_path / "c").publish("policy", 3, weights, {"steps": 5})
    assert (published.kind, published.version) == ("policy", 3)
    assert published.checksum == checksum(weights)
    assert verified(tmp_path / "c/policy/v0003") == published


def test_publishing_twice_keeps_the_first(tmp_path, weights):
    folder = CheckpointFolder(tmp_path / "c")
    first = folder.publish("policy", 1, weights, {})
    (weights / "model.safetensors").write_bytes(b"other")
    assert folder.publish("policy", 1, weights, {}) == first


def test_one_flipped_byte_is_noticed_and_the_folder_named(tmp_path, weights):
    folder = CheckpointFolder(tmp_path / "c")
    folder.publish("reward", 1, weights, {})
    file = tmp_path / "c/reward/v0001/model.safetensors"
    file.write_bytes(b"0123456780")
    with pytest.raises(ValueError, match="v0001 is damaged"):
        folder.open("reward", 1)


@pytest.mark.parametrize("content", [b"", b'{"kind": "pol', b"\xff\xfe", b"{}", b"[]"])
def test_a_torn_manifest_says_what_to_delete(tmp_path, weights, content):
    folder = CheckpointFolder(tmp_path / "c")
    folder.publish("reward", 1, weights, {})
    (tmp_path / "c/reward/v0001/checkpoint.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"v0001 is damaged: its checkpoint.json is torn. Delete"):
        folder.open("reward", 1)


def test_a_renamed_file_is_another_checkpoint(weights):
    before = checksum(weights)
    (weights / "config.json").rename(weights / "setup.json")
    assert checksum(weights) != before


def test_the_lineage_lists_every_version_in_order(tmp_path, weights):
    folder = CheckpointFolder(tmp_path / "c")
    for version in (2, 1):
        folder.publish("policy", version, weights, {"steps": version * 10})
    assert [(m["version"], m["lineage"]["steps"]) for m in folder.lineage()] == [(1, 10), (2, 20)]


def test_a_missing_base_says_what_to_give(tmp_path):
    assert base_folder("policy", "scratch") is None
    with pytest.raises(ValueError, match=r"policy\.checkpoint=/nowhere"):
        base_folder("policy", "/nowhere")
