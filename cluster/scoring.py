"""The stage that gives every trajectory a verdict, and the process that scores clips."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RayError

from cluster.context import Context, Versions
from cluster.handles import answer, end, start
from cluster.processes import ScorerProcess
from contracts.constants import NO_VERSION
from contracts.types import Score, Verdict
from services.progress import Bar
from services.scoring import verdict

Name = tuple[str, str]  # store, trajectory
Outcome = Score | BaseException
ScoreAll = Callable[[Sequence[Name]], list[Outcome]]


def score(run: Context, iteration: int, versions: Versions) -> dict[str, Any]:
    """Give all of D_real and this iteration's D_syn a verdict of the newest reward version."""
    wanted = {
        "imagined": [
            i for i in run.reader("imagined").ids() if i.startswith(f"imagined-{iteration}-")
        ],
        "real": run.reader("real").ids(),
    }
    pending = []
    for store, ids in wanted.items():
        known = run.reader(store).verdicts(reward_version=versions.reward)
        pending += [(store, i) for i in ids if i not in known or known[i].error]
    total = sum(len(ids) for ids in wanted.values())
    with run.reporter.stage(f"{iteration} score", total, "clips") as bar:
        bar.at(total - len(pending))
        if pending:
            _score(run, versions.reward, pending, bar)
    return _histogram_counts(run, iteration, versions.reward)


@contextmanager
def scorer(run: Context, version: int) -> Iterator[ScoreAll]:
    """A reward model in a process of its own. Give it at most ``in_flight`` trajectories at once.

    Clips travel store -> scorer through the object store. ``NO_VERSION``: the release that
    ``reward.qwen.path`` names.
    """
    config, cluster = run.config.reward, run.config.cluster
    process = start(
        ScorerProcess,
        config,
        None if version == NO_VERSION else run.checkpoints.open("reward", version),
        num_cpus=cluster.scorer_cpus,
        num_gpus=cluster.scorer_gpus,
        max_restarts=-1,
        max_task_retries=3,
        max_concurrency=in_flight(run),
    )

    def score_all(names: Sequence[Name]) -> list[Outcome]:
        clips = [run.replay.clip.remote(store, name, config.num_frames) for store, name in names]
        calls = [process.score.remote(clip) for clip in clips]
        return [_outcome(call, cluster.start_timeout_s) for call in calls]

    try:
        yield score_all
    finally:
        end(process)


def in_flight(run: Context) -> int:
    """Clips under way at a time: enough that the scorer's batches are full."""
    return 4 * run.config.reward.max_batch


def _score(run: Context, version: int, pending: list[Name], bar: Bar) -> None:
    """Verdicts of one part are committed together."""
    step = in_flight(run)
    with scorer(run, version) as score_all:
        for first in range(0, len(pending), step):
            part = pending[first : first + step]
            verdicts: dict[str, list[Verdict]] = {}
            for (store, name), found in zip(part, score_all(part), strict=True):
                verdicts.setdefault(store, []).append(verdict(name, version, found))
            for store, found in verdicts.items():
                run.writer(store).add_verdicts(found)
            bar.advance(len(part))


def _outcome(call: Any, timeout_s: float) -> Outcome:
    try:
        return answer(call, timeout_s)
    except RayError as error:
        return error


def _histogram_counts(run: Context, iteration: int, version: int) -> dict[str, Any]:
    """Accepted, rejected and failed-to-score trajectories of each task."""
    store = run.reader("imagined")
    verdicts = store.verdicts(reward_version=version)
    counts = {task: {"accepted": 0, "rejected": 0, "scoring_error": 0} for task in run.tasks}
    for row in store.episodes():
        if row.provenance.iteration == iteration and row.id in verdicts:
            task = row.provenance.task
            verdict = verdicts[row.id]
            accepted = verdict.accepted(run.config.for_task(task).alpha)
            outcome = "scoring_error" if verdict.error else "accepted" if accepted else "rejected"
            counts[task][outcome] += 1
    return counts
