"""A full disk: one line that names the folder, everything stored before is whole, and the same
call goes on after room was made. On a small file system of its own."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.checkpoints import CheckpointFolder, checksum
from contracts.errors import DiskFullError, room
from contracts.types import Provenance, Trajectory
from learners.state import TrainState, load_state, save_state
from replay.images import ImageCoding
from replay.store import ReplayStore, StoreOptions
from services.progress import Reporter, read_events
from services.replay import ReplayService
from services.stages import read_json, write_json

pytestmark = pytest.mark.tmpfs

PNG = StoreOptions(coding=ImageCoding("png"))


class Disk:
    """A file system of ``kb`` kilobytes, in memory."""

    def __init__(self, folder: Path, kb: int) -> None:
        folder.mkdir()
        self.folder = folder
        self._mount("-t", "tmpfs", "-o", f"size={kb}k", "tmpfs", str(folder))

    def grow(self, kb: int) -> None:
        self._mount("-o", f"remount,size={kb}k", str(self.folder))

    def fill(self) -> None:
        """Leave no byte."""
        with (self.folder / "filler").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                return

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True, timeout=20)

    @staticmethod
    def _mount(*arguments: str) -> None:
        subprocess.run(["mount", *arguments], check=True, timeout=20)


@pytest.fixture
def disk(tmp_path):
    made = Disk(tmp_path / "disk", 1024)
    yield made
    made.close()


def make(name: str) -> Trajectory:
    """About 140 kB of noise, which no image coding makes smaller."""
    rng = np.random.default_rng(len(name))
    return Trajectory(
        Provenance(name, "real", "stack", 0, 0),
        "go",
        np.zeros((9, 8), np.float32),
        np.zeros((10, 7), np.float32),
        np.zeros(10, np.float32),
        np.zeros((10, 6), np.float32),
        rng.integers(0, 255, (4, 3, 48, 80, 3)).astype(np.uint8),
        "done",
    )


def told(folder: Path) -> str:
    return rf"^no space left for {re.escape(str(folder))}\S*: 0\.\d MB free on its disk\. What was"


def test_a_store_keeps_what_it_acknowledged_and_goes_on(disk):
    service = ReplayService({"real": disk.folder / "real"}, PNG)
    acknowledged = []

    def add_many() -> None:
        for k in range(100):
            service.add("real", make(f"t{k}"), None)
            acknowledged.append(f"t{k}")

    with pytest.raises(DiskFullError, match=told(disk.folder / "real" / "frames.lance")):
        add_many()
    assert 2 <= len(acknowledged) < 10
    reader = ReplayStore.open(disk.folder / "real")
    assert reader.ids() == acknowledged
    for name in acknowledged:
        np.testing.assert_array_equal(reader.trajectory(name).frames, make(name).frames)
    disk.grow(8192)
    assert service.add("real", make(f"t{len(acknowledged)}"), None)
    assert not service.add("real", make("t0"), None)
    service.close()
    again = ReplayStore.create_or_open(disk.folder / "real", PNG)
    assert again.ids() == [*acknowledged, f"t{len(acknowledged)}"]
    again.close()


def test_a_store_that_finds_no_room_for_an_episode_row_leaves_no_half_of_it(disk):
    """The frames are committed, their episode is not: what is left of it is swept."""
    store = ReplayStore.create_or_open(disk.folder / "real", PNG)
    store.add(make("a"), None)
    append = store._episodes.append

    def fill_and_append(rows) -> None:
        disk.fill()
        append(rows)

    store._episodes.append = fill_and_append
    with pytest.raises(DiskFullError, match=told(disk.folder / "real" / "episodes.lance")):
        store.add(make("b"), None)
    store._episodes.append = append
    assert ReplayStore.open(disk.folder / "real").ids() == ["a"]
    disk.grow(8192)
    assert store.add(make("bb"), None)
    np.testing.assert_array_equal(store.trajectory("bb").frames, make("bb").frames)
    assert store._frames.num_rows == 8
    store.close()


def state(seed: int) -> TrainState:
    torch.manual_seed(seed)
    net = torch.nn.Linear(200, 200)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 200)).sum().backward()
    optimizer.step()
    return TrainState(net, optimizer, {}, losses=[0.5])


@pytest.mark.parametrize("left_kb", [100, 250])
def test_a_training_checkpoint_that_finds_no_room_leaves_the_one_before(disk, left_kb):
    """160 kB of weights, 320 kB of optimiser: one of the two does not fit."""
    folder, recipe = disk.folder / "state", {"steps": 3}
    save_state(state(0), folder, recipe)
    disk.fill()
    filler = disk.folder / "filler"
    os.truncate(filler, filler.stat().st_size - left_kb * 1024)
    second = state(1)
    second.losses.append(0.25)
    with pytest.raises(DiskFullError, match=told(disk.folder)), room(disk.folder):
        save_state(second, folder, recipe)
    found = state(2)
    assert load_state(found, folder, recipe)
    assert found.losses == [0.5]
    assert torch.equal(found.module.weight, state(0).module.weight)
    disk.grow(8192)
    save_state(second, folder, recipe)
    assert load_state(found, folder, recipe)
    assert torch.equal(found.module.weight, second.module.weight)


def test_publishing_finds_no_room_and_publishes_whole_afterwards(disk, tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(bytes(range(256)) * 8000)
    published = CheckpointFolder(disk.folder / "checkpoints")
    with pytest.raises(DiskFullError, match=told(disk.folder)), room(disk.folder):
        published.publish("policy", 1, weights, {})
    assert published.lineage() == []
    disk.grow(8192)
    assert published.publish("policy", 1, weights, {}).checksum == checksum(weights)


def test_manifests_and_events_stay_whole(disk):
    path = disk.folder / "stages" / "collect.json"
    write_json(path, {"result": 1})
    with Reporter(disk.folder) as reporter:
        reporter.event("begin", stage="collect")
        disk.fill()
        with pytest.raises(DiskFullError, match=told(disk.folder)), room(disk.folder):
            write_json(path, {"result": "x" * 10_000})
        with pytest.raises(DiskFullError, match=told(disk.folder / "events.jsonl")):
            reporter.event("end", stage="x" * 10_000)
        assert read_json(path) == {"result": 1}
        disk.grow(8192)
    with Reporter(disk.folder) as reporter:
        reporter.event("start")
    found = [event["event"] for event in read_events(disk.folder)]
    assert found[0] == "begin"
    assert found[-1] == "start"
    for line in (disk.folder / "events.jsonl").read_text().splitlines():
        json.loads(line)


def test_other_mistakes_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(PermissionError), room(tmp_path):
        raise PermissionError(13, "no")
    with pytest.raises(RuntimeError, match="CUDA"), room(tmp_path):
        raise RuntimeError("CUDA error")
