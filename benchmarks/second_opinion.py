"""Would a second look have caught the imagined successes that are none?

For every scored imagined trajectory whose actions the simulator has executed: its poses replayed
in the world model of another iteration, from the same real frame, and judged by the same reward
model. Prints how many of D_syn+ stay if both must say yes, how many of those really succeed, and
how well each single opinion ranks them. One replay per trajectory is what the check would cost.

Run after a run with robot=mujoco and evaluation.truth=all (or accepted):
    python benchmarks/second_opinion.py outputs/run [--iteration 1] [--other 0]
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from omegaconf import DictConfig, OmegaConf

from cluster.checkpoints import CheckpointFolder
from configs.run import RunConfig
from configs.schema import to_run
from contracts.seeds import fold
from contracts.statistics import auc, wilson
from contracts.types import Clip, StartState
from models.build import load_reward, load_world_model
from models.metrics.replay import Recording, replay
from replay.codec import EpisodeRow
from replay.store import ReplayStore, clip_indices
from services.stages import read_json

BLOCK = 64  # trajectories that are replayed together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--iteration", type=int, default=1)
    parser.add_argument("--other", type=int, default=0, help="the other world model's version")
    asked = parser.parse_args()
    if not (asked.run / "stages" / f"{asked.iteration} truth.json").exists():
        parser.error(f"{asked.run} holds no stage '{asked.iteration} truth': give a run's folder")
    look = SecondLook(asked.run, asked.iteration)
    print("task, accepted, really succeed; if a second model must agree: kept, really succeed")
    for task, answers in look.truths.items():
        rows = [look.row(name) for name in answers]
        if not rows:
            continue
        alpha, true = look.config.for_task(task).alpha, np.array(list(answers.values()))
        first = np.array([look.verdicts[row.id].p_yes for row in rows])
        for version in (asked.iteration, asked.other):
            second = np.array(list(look.opinions(rows, version)))
            print(f"{task}, world model v{version}: {told(first, second, true, alpha)}")


class SecondLook:
    """One finished iteration of a run."""

    def __init__(self, folder: Path, iteration: int) -> None:
        settings = read_json(folder / "run.json")["settings"]
        known = DictConfig(OmegaConf.merge(OmegaConf.structured(RunConfig), settings))
        self.config = config = to_run(known)
        self.truths: dict[str, dict[str, bool]] = read_json(
            folder / "stages" / f"{iteration} truth.json"
        )["result"]
        self._checkpoints = CheckpointFolder(folder / "checkpoints")
        self._imagined = ReplayStore.open(folder / "stores" / "imagined")
        self._real = ReplayStore.open(folder / "stores" / "real")
        version = max(v.reward_version for v in self._imagined.verdicts().values())
        judge = self._checkpoints.open("reward", min(version, iteration))
        self.verdicts = self._imagined.verdicts(judge.version)
        self._reward = load_reward(config.reward, Path(judge.uri), judge.version)
        self._rows = {row.id: row for row in self._imagined.episodes(self._imagined.ids())}

    def row(self, name: str) -> EpisodeRow:
        return self._rows[name]

    def opinions(self, rows: Sequence[EpisodeRow], version: int) -> Iterator[float]:
        """P('yes') of each trajectory's poses in the world model of that version."""
        checkpoint = self._checkpoints.open("world_model", version)
        size = self.config.robot.height, self.config.robot.width
        model = load_world_model(self.config.world_model, Path(checkpoint.uri), version, size)
        for begin in range(0, len(rows), BLOCK):
            block = rows[begin : begin + BLOCK]
            starts = [self._start(row) for row in block]
            shown = replay(
                model,
                [
                    Recording(start, fold(1, "second", row.id), row.poses, row.num_frames - 1)
                    for start, row in zip(starts, block, strict=True)
                ],
            )
            clips = []
            for start, row, frames in zip(starts, block, shown, strict=True):
                whole = np.concatenate([start.frame[None], frames])
                picks = clip_indices(row.num_frames, self.config.reward.num_frames)
                clips.append(Clip(whole[list(picks)], picks, row.instruction))
            yield from (score.p_yes for score in self._reward.score(clips))

    def _start(self, row: EpisodeRow) -> StartState:
        story = row.provenance
        (parent,) = self._real.episodes([story.parent])
        picture = self._real.frames(story.parent, [story.parent_frame])[0]
        return parent.start(story.parent_frame, picture)


def told(first: np.ndarray, second: np.ndarray, true: np.ndarray, alpha: float) -> str:
    yes = first > alpha
    both = yes & (second > alpha)
    parts = [share(true[yes]), share(true[both])]
    parts += [f"AUC {auc(p, true):.3f}" for p in (first, second, np.minimum(first, second))]
    return "; ".join([*parts, f"among accepted AUC {auc(second[yes], true[yes]):.3f}"])


def share(true: np.ndarray) -> str:
    interval = wilson(int(true.sum()), len(true))
    return f"{int(true.sum())} of {len(true)} ({interval.low:.0%} to {interval.high:.0%})"


if __name__ == "__main__":
    main()
