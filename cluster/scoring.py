"""The stage that gives every trajectory a verdict, and the process that scores clips."""

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.context import Context, Versions
from cluster.handles import answer, end, start
from cluster.processes import ScorerProcess
from contracts.constants import NO_VERSION
from contracts.statistics import Agreement, agreement
from contracts.types import Clip, Score, Verdict
from services.progress import Bar
from services.scoring import verdict

Name = tuple[str, str]  # store, trajectory
Outcome = Score | BaseException


def score(run: Context, iteration: int, versions: Versions) -> dict[str, Any]:
    """Give what is left of D_real and this iteration's D_syn a verdict of the newest version.

    Most of it was scored while it was imagined; here come errors and what a stop cut short.
    """
    wanted = {
        "imagined": run.reader("imagined").ids(iteration=iteration),
        "real": run.reader("real").ids(),
    }
    pending = [
        name for store, ids in wanted.items() for name in unscored(run, store, ids, versions.reward)
    ]
    total = sum(len(ids) for ids in wanted.values())
    with run.reporter.stage(f"{iteration} score", total, "clips") as bar:
        bar.begin_with(total - len(pending))
        if pending:
            bar.hold(run.config.cluster.scorer_gpus)
            _score(run, versions.reward, pending, bar)
    return count_outcomes(run, iteration, versions.reward)


def unscored(run: Context, store: str, ids: Iterable[str], version: int) -> list[Name]:
    """Those without a verdict of that reward model; an error is none."""
    known = run.reader(store).verdicts(reward_version=version)
    return [(store, i) for i in ids if i not in known or known[i].error]


class RemoteJudge:
    """A ScorerProcess, asked without waiting for the answer."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __call__(self, clip: Clip) -> Future[Score]:
        return self._actor.score.remote(clip).future()


class Scorer:
    """A reward model in a process of its own. Clips travel store -> scorer through Ray's object
    store, at most ``in_flight`` at a time; whatever else waits are names."""

    def __init__(self, run: Context, version: int) -> None:
        """``NO_VERSION``: the release that ``reward.qwen.path`` names."""
        config, cluster = run.config.reward, run.config.cluster
        self._replay, self._frames = run.replay, config.num_frames
        self._timeout_s, self._most = cluster.start_timeout_s, in_flight(run)
        self._process = start(
            ScorerProcess,
            config,
            None if version == NO_VERSION else run.checkpoints.open("reward", version),
            num_cpus=cluster.scorer_cpus,
            num_gpus=cluster.scorer_gpus,
            max_restarts=-1,
            max_task_retries=3,
            max_concurrency=self._most,
        )
        self._waiting: deque[Name] = deque()
        self._calls: dict[Any, Name] = {}

    @property
    def judge(self) -> RemoteJudge:
        """For imagination workers, which ask about clips that are in no store."""
        return RemoteJudge(self._process)

    def want(self, names: Iterable[Name]) -> None:
        """Score these in their turn; ``ended`` brings what came out."""
        self._waiting.extend(names)

    @property
    def pending(self) -> int:
        return len(self._waiting) + len(self._calls)

    def ended(self, timeout_s: float = 0.0) -> list[tuple[Name, Outcome]]:
        """What has ended since the last call; waits for one at most ``timeout_s``."""
        while self._waiting and len(self._calls) < self._most:
            store, name = self._waiting.popleft()
            clip = self._replay.clip.remote(store, name, self._frames)
            self._calls[self._process.score.remote(clip)] = (store, name)
        calls = list(self._calls)
        done, _ = ray.wait(calls, timeout=timeout_s, num_returns=1) if calls else ([], [])
        if done:  # and whatever else is there by now
            done, _ = ray.wait(calls, timeout=0, num_returns=len(calls))
        return [(self._calls.pop(call), _outcome(call, self._timeout_s)) for call in done]

    def all(self, names: Sequence[Name]) -> Iterator[list[tuple[Name, Outcome]]]:
        """Score all of these, some at a time.

        Raises:
            RuntimeError: nothing came for ``cluster.start_timeout_s``.
        """
        self.want(names)
        while self.pending:
            some = self.ended(self._timeout_s)
            if not some:
                raise RuntimeError(
                    f"the reward scorer gave no answer for {self._timeout_s:g} s. Look at its log "
                    "in the Ray dashboard, or raise cluster.start_timeout_s"
                )
            yield some

    def close(self) -> None:
        end(self._process)


@contextmanager
def scorer(run: Context, version: int) -> Iterator[Scorer]:
    process = Scorer(run, version)
    try:
        yield process
    finally:
        process.close()


def in_flight(run: Context) -> int:
    """Clips under way at a time: enough that the scorer's batches are full."""
    return 4 * run.config.reward.max_batch


def _score(run: Context, version: int, pending: list[Name], bar: Bar) -> None:
    with scorer(run, version) as process:
        for some in process.all(pending):
            keep(run, version, some)
            bar.advance(len(some))


def keep(run: Context, version: int, scored: Iterable[tuple[Name, Outcome]]) -> list[Verdict]:
    """Store verdicts, those of one store in one commit; returns them."""
    found: dict[str, list[Verdict]] = {}
    for (store, name), outcome in scored:
        found.setdefault(store, []).append(verdict(name, version, outcome))
    for store, verdicts in found.items():
        run.writer(store).add_verdicts(verdicts)
    return [one for verdicts in found.values() for one in verdicts]


def _outcome(call: Any, timeout_s: float) -> Outcome:
    try:
        return answer(call, timeout_s)
    except RayError as error:
        return error


def starts_agree(counts: dict[str, Any]) -> Agreement | None:
    """Of a task's counts; None where nobody can tell, or the run is older than this number."""
    found = counts.get("starts")
    if found is None or found["auc"] is None:
        return None
    return Agreement(found["auc"], found["successes"], found["failures"])


def count_outcomes(run: Context, iteration: int, version: int) -> dict[str, Any]:
    """Accepted, rejected and failed-to-score trajectories of each task, and whether they follow
    what really happened from their starts; ``auc`` is None where nobody can tell."""
    store = run.reader("imagined")
    verdicts = store.verdicts(reward_version=version)
    counts: dict[str, dict[str, Any]] = {
        task: {"accepted": 0, "rejected": 0, "scoring_error": 0} for task in run.tasks
    }
    by_start: dict[str, defaultdict[str, list[bool]]] = {
        task: defaultdict(list) for task in run.tasks
    }
    for row in store.episodes():
        if row.provenance.iteration == iteration and row.id in verdicts:
            task = row.provenance.task
            verdict = verdicts[row.id]
            accepted = verdict.accepted(run.config.for_task(task).alpha)
            outcome = "scoring_error" if verdict.error else "accepted" if accepted else "rejected"
            counts[task][outcome] += 1
            if not verdict.error:
                by_start[task][row.provenance.parent].append(accepted)
    labels = {row.id: row.label for row in run.reader("real").episodes()}
    success = {name: label.success for name, label in labels.items() if label is not None}
    for task, accepted in by_start.items():
        found = agreement(accepted, success)
        counts[task]["starts"] = {
            "auc": None if math.isnan(found.area) else found.area,
            "successes": found.successes,
            "failures": found.failures,
        }
    return counts
