"""What the imagination engine adds to the models: idle share of the device, and scaling.

The models are replaced by waiting (models/fake.py); queue, workers, replay service and Ray are the
real ones. A device that computes does not need the host's cores, so waiting is what two cores can
tell of many GPUs. Frames are small where many workers run: JPEG coding needs cores of its own.

Run: python benchmarks/imagination_pool.py [--workers 1 2 4 8]
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import ray
from ray._private.internal_api import node_stats

from actors.imagination import Models
from cluster.checkpoints import CheckpointFolder
from cluster.context import STORES, Context
from cluster.handles import answer, end, start
from cluster.pool import TaskPool
from cluster.session import session
from configs.run import ClusterConfig, ImaginationConfig, RunConfig, TaskOverrides
from contracts.constants import NEW_FRAMES
from contracts.types import StartState, WorkItem
from models.fake import StillAdapter, WaitingPolicy, WaitingWorldModel, no_kinematics
from services.progress import Reporter
from services.replay import ReplayService
from services.stages import Stages

POLL_S = 0.1


def models(chunk_s: float, policy_s: float, gate: Path) -> Models:
    """One slot per call, as large models do: batches do not make their UNet faster."""
    world_model = WaitingWorldModel(chunk_s, gate=gate)
    return Models(WaitingPolicy(policy_s), world_model, StillAdapter(), no_kinematics)


def items(count: int, height: int, width: int) -> list[WorkItem]:
    joints = np.linspace(0, 0.6, 7, dtype=np.float32)
    frame = np.random.default_rng(0).integers(0, 255, (3, height, width, 3), np.uint8)
    state = StartState("real-1", 0, "book", "open the book", frame, joints, 0.25)
    return [WorkItem(f"dream-{k:04d}", state, iteration=1, seed=k) for k in range(count)]


def measure(
    imagination: ImaginationConfig,
    work: Callable[[], list[WorkItem]],
    waits: tuple[float, float],
    workers: int,
) -> tuple[float, float]:
    """(seconds from the moment when all workers have loaded, idle share of their devices)."""
    config = RunConfig(task={"book": TaskOverrides()}, imagination=imagination)
    with TemporaryDirectory() as name, Reporter(Path(name)) as reporter:
        folder = Path(name)
        gate = folder / "gate"
        replay = start(ReplayService, {s: folder / "stores" / s for s in STORES}, num_cpus=0)
        answer(replay.counts.remote())
        checkpoints = CheckpointFolder(folder / "checkpoints")
        stages = Stages(folder / "stages")
        run = Context(config, folder, ["book"], stages, reporter, checkpoints, replay)
        pool = TaskPool(run, "book", work, partial(models, *waits, gate), print)
        began = 0.0
        while not pool.finished:
            pool.look()
            pool.resize(workers)
            if not gate.exists() and pool.status.counts.leased >= workers * imagination.slots:
                gate.touch()
                began = time.monotonic()
            time.sleep(POLL_S)
        seconds = time.monotonic() - began
        stats = pool.close()
        end(replay)
    calls = sum(one.chunks for one in stats)  # one slot a call
    return seconds, 1 - calls * waits[0] / (seconds * workers)


def created() -> tuple[int, int]:
    """Objects and bytes that this machine's object store has ever held."""
    (node,) = ray.nodes()
    address, port = node["NodeManagerAddress"], node["NodeManagerPort"]
    found = node_stats(address, port, include_memory_info=False).store_stats
    return found.cumulative_created_objects, found.cumulative_created_bytes


def copies() -> None:
    """How often a frame is copied through the object store on its way to the disk."""
    count, height, width, chunks = 20, 192, 320, 20
    settings = ImaginationConfig(slots=2, max_chunks=chunks, groups=2)
    before = created()
    measure(settings, partial(items, count, height, width), (0.03, 0.01), 1)
    objects, size = (after - old for after, old in zip(created(), before, strict=True))
    frames = count * (1 + NEW_FRAMES * chunks) * 3 * height * width * 3
    print(
        f"object store, {chunks} chunks a trajectory: {objects / count / chunks:.3f} objects a "
        f"chunk, every frame copied {size / frames:.2f} times"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--copies", action="store_true", help="only those of the object store")
    given = parser.parse_args()
    counts = given.workers
    shares = ClusterConfig(num_cpus=10, object_store_mb=400, dashboard=False)
    with session(RunConfig(task={"book": TaskOverrides()}, cluster=shares), ["book"]):
        copies()
        if given.copies:
            return
        print("idle share of one device, 192x320 frames, 20 chunks a trajectory, stored")
        for chunk_s, policy_s, count in ((0.3, 0.06, 10), (0.03, 0.01, 150)):
            for groups in (1, 2):
                settings = ImaginationConfig(slots=groups, max_chunks=20, groups=groups)
                work = partial(items, count, 192, 320)
                seconds, idle = measure(settings, work, (chunk_s, policy_s), 1)
                print(
                    f"  {1000 * chunk_s:.0f} ms chunk, {1000 * policy_s:.0f} ms policy, {groups} "
                    f"groups: idle {100 * idle:.1f} % of {seconds:.1f} s"
                )
        print("throughput, 300 ms chunk, 60 ms policy, 2 groups, 48x80 frames, 10 chunks")
        first = 0.0
        for workers in counts:
            settings = ImaginationConfig(slots=2, max_chunks=10, groups=2)
            work = partial(items, 8 * workers, 48, 80)
            seconds, idle = measure(settings, work, (0.3, 0.06), workers)
            rate = 8 * workers / seconds
            first = first or rate / workers
            linear = 100 * rate / workers / first
            print(
                f"  {workers} workers: {3600 * rate:.0f} trajectories/h, {linear:.1f} % of linear, "
                f"idle {100 * idle:.1f} %"
            )


if __name__ == "__main__":
    main()
