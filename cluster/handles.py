"""Other processes behind the protocols of contracts/; the waits on them have time limits here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from contracts.errors import PolicyUnavailableError
from contracts.types import ActionChunk, Label, Observation, Trajectory, Verdict, WorkItem

CALL_TIMEOUT_S = 120.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stall:
    """How long a stage may wait for its processes, and what to look at then."""

    name: str
    timeout_s: float
    advice: str


def start(process: type, *arguments: Any, **options: Any) -> Any:
    """Start a class in a process of its own: the one way to spawn. ``options`` are Ray's."""
    return cast(Any, ray.remote(process)).options(**options).remote(*arguments)


def end(*actors: Any) -> None:
    """Stop processes at once, whatever they do."""
    for actor in actors:
        ray.kill(actor)


def run_once(
    function: Callable[..., Any], share: tuple[float, float], timeout_s: float, *arguments: Any
) -> Any:
    """Run a function in a process of its own, with a share of (CPUs, GPUs), and wait for what it
    returns."""
    task = cast(Any, ray.remote(function)).options(num_cpus=share[0], num_gpus=share[1])
    return answer(task.remote(*arguments), timeout_s)


def here() -> dict[str, Any]:
    """Options that keep a process on the driver's node: what asks for no CPU may land anywhere."""
    return on_node(ray.get_runtime_context().get_node_id())


def on_node(node_id: str) -> dict[str, Any]:
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


def on_every_node(
    function: Callable[..., T], node_ids: Sequence[str], timeout_s: float, *arguments: Any
) -> list[T | RayError]:
    """What the function returns on each node, or why it does not, in their order; all at once."""
    task = cast(Any, ray.remote(function))
    calls = [task.options(num_cpus=0, **on_node(n)).remote(*arguments) for n in node_ids]
    ray.wait(calls, num_returns=len(calls), timeout=timeout_s)
    return [_outcome(call) for call in calls]


def _outcome(call: Any) -> Any:
    try:
        return ray.get(call, timeout=0)
    except RayError as error:
        return error


def answer(reference: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
    """Wait for one remote result.

    Raises:
        ray.exceptions.GetTimeoutError: no answer in time.
        PolicyUnavailableError, ValueError: the call there failed with it.
        ray.exceptions.RayError: the process died or the call failed there.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except RayTaskError as error:
        if isinstance(error.cause, (PolicyUnavailableError, ValueError)):
            raise error.cause from error  # one line for the user, not the traces of every process
        raise


def spread(
    workers: Sequence[Any],
    work: Sequence[T],
    begin: Callable[[Any, T], Any],
    done: Callable[[T, Any], None],
    stall: Stall,
) -> None:
    """Give each worker its next piece of work as soon as its last one is done, in their order.

    ``begin(worker, piece)`` calls the worker and returns the reference to wait for;
    ``done(piece, result)`` runs here.

    Raises:
        RuntimeError: nothing ended in time. What the calls raise: see ``answer``.
    """
    waiting, idle = list(reversed(work)), list(workers)
    busy: dict[Any, tuple[Any, T]] = {}
    while waiting or busy:
        while idle and waiting:
            worker, piece = idle.pop(), waiting.pop()
            busy[begin(worker, piece)] = worker, piece
        ready, _ = ray.wait(list(busy), timeout=stall.timeout_s)
        if not ready:
            raise RuntimeError(
                f"{stall.name}: nothing ended for {stall.timeout_s:g} s; {stall.advice}, or raise "
                "cluster.stall_timeout_s"
            )
        for reference in ready:
            worker, piece = busy.pop(reference)
            idle.append(worker)
            done(piece, answer(reference))


class RemotePolicy:
    """A PolicyServer in another process."""

    def __init__(self, actor: Any, version: int) -> None:
        self._actor = actor
        self.version = version

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        """Raises PolicyUnavailableError where that process died, hangs, or raises it itself."""
        try:
            return answer(self._actor.act.remote(observations, seeds))
        except (RayActorError, GetTimeoutError) as error:
            raise PolicyUnavailableError(
                f"the policy process does not answer: {type(error).__name__}"
            ) from error


class RemoteStore:
    """One store of the replay service, as a TrajectoryWriter. ``add`` returns after the commit."""

    def __init__(self, actor: Any, store: str) -> None:
        self._actor = actor
        self._store = store

    def add(self, trajectory: Trajectory, label: Label | None) -> bool:
        return answer(self._actor.add.remote(self._store, trajectory, label))

    def add_verdicts(self, verdicts: Sequence[Verdict]) -> None:
        answer(self._actor.add_verdicts.remote(self._store, list(verdicts)))


class RemoteQueue:
    """The queue of one task, as a WorkQueue."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def take(self, worker: str, count: int) -> list[WorkItem]:
        return answer(self._actor.take.remote(worker, count))

    def heartbeat(self, worker: str) -> None:
        answer(self._actor.heartbeat.remote(worker))

    def release(self, worker: str) -> int:
        return answer(self._actor.release.remote(worker))

    def done(self, worker: str, trajectory_id: str) -> None:
        answer(self._actor.done.remote(worker, trajectory_id))
