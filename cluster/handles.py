"""Other processes behind the protocols of contracts/; the waits on them have time limits here."""

import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from contracts.errors import (
    ArmStoppedError,
    DiskFullError,
    PolicyUnavailableError,
    StoppedError,
)
from contracts.types import ActionChunk, Label, Observation, Trajectory, Verdict, WorkItem
from services.queue import QueueStatus

CALL_TIMEOUT_S = 120.0
PING_S = 5.0  # a service that is not hung answers within
T = TypeVar("T")
# A process died, or a result was lost with the process or the node that held it.
LOSSES = (RayActorError, ObjectLostError, NodeDiedError, WorkerCrashedError)


@dataclass(frozen=True, slots=True)
class Stall:
    """What a stage puts up with: how long nothing may end, how often one piece of work may lose
    the process that does it, which services it leans on, and what to look at then."""

    name: str
    timeout_s: float
    advice: str
    retries: int = 3
    services: Mapping[str, Any] = field(default_factory=dict)
    lost: Callable[[str], None] = lambda _message: None  # told about every loss

    def error(self) -> StoppedError:
        """Nothing ended in time. A service that is silent is named: it is the likelier cause."""
        silent = [f"the {name}" for name, actor in self.services.items() if not _answers(actor)]
        found = f"{' and '.join(silent)} does not answer" if silent else self.advice
        return StoppedError(
            f"{self.name}: nothing ended for {self.timeout_s:g} s; {found}. The same command "
            "continues; raise cluster.stall_timeout_s where the work is just slow"
        )


def _answers(actor: Any) -> bool:
    ready, _ = ray.wait([actor.__ray_ready__.remote()], timeout=PING_S)
    return bool(ready)


def start(process: type, *arguments: Any, **options: Any) -> Any:
    """Start a class in a process of its own: the one way to spawn. ``options`` are Ray's."""
    return cast(Any, ray.remote(process)).options(**options).remote(*arguments)


def end(*actors: Any) -> None:
    """Stop processes at once, whatever they do. Dead ones may be among them."""
    for actor in actors:
        ray.kill(actor)


def up(actor: Any, name: str, timeout_s: float) -> Any:
    """Wait until a process runs, and return it.

    Raises:
        StoppedError: no living node has what it asks for; the message says what the nodes have.
    """
    try:
        answer(actor.__ray_ready__.remote(), timeout_s)
    except GetTimeoutError as error:
        end(actor)
        raise StoppedError(
            f"the {name} did not start within {timeout_s:g} s. The cluster has {cluster_has()}. "
            "Bring back the node that has what it needs, then run the same command; raise "
            "cluster.start_timeout_s where it only starts slowly"
        ) from error
    except RayActorError:
        pass  # it died while it started: its first call tells, and ``spread`` replaces it
    return actor


def cluster_has() -> str:
    """The resources of every living node, and how many nodes are gone."""
    living = [
        f"{node['NodeManagerHostname']}: {_resources(node['Resources'])}"
        for node in ray.nodes()
        if node["Alive"]
    ]
    gone = len(ray.nodes()) - len(living)
    return "; ".join(living) + (f" ({gone} nodes are gone)" if gone else "")


def _resources(found: Mapping[str, float]) -> str:
    """CPUs, GPUs and the resources that a user named; Ray's own are left out."""
    own = ("memory", "object_store_memory", "node:", "accelerator_type:")
    return ", ".join(f"{v:g} {k}" for k, v in sorted(found.items()) if not k.startswith(own))


def run_once(
    function: Callable[..., Any], share: tuple[float, float], timeout_s: float, *arguments: Any
) -> Any:
    """Run a function in a process of its own, with a share of (CPUs, GPUs), and wait for what it
    returns."""
    task = cast(Any, ray.remote(function)).options(num_cpus=share[0], num_gpus=share[1])
    return answer(task.remote(*arguments), timeout_s)


def service() -> dict[str, Any]:
    """Options of a process that serves the whole run: started again whenever it dies, and on the
    driver's node, which sees the run's folder and is lost only with the run itself. What asks for
    no CPU would otherwise land anywhere, on the robot's host too."""
    node_id = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1} | on_node(node_id)


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


# What a call may fail with that is told in one line, not with the traces of every process.
_PLAIN = (ConnectionError, ArmStoppedError, DiskFullError, ValueError)


def answer(reference: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
    """Wait for one remote result.

    Raises:
        ray.exceptions.GetTimeoutError: no answer in time.
        ConnectionError, ArmStoppedError, DiskFullError, ValueError: the call there failed with it.
        ray.exceptions.RayError: the process died or the call failed there.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except GetTimeoutError as error:
        raise GetTimeoutError(
            f"a process of this run did not answer for {timeout_s:g} s: it hangs, or never got "
            "what it asks of a node. What is stored is kept; the same command continues"
        ) from error
    except RayTaskError as error:
        if isinstance(error.cause, _PLAIN):
            raise error.cause from error
        raise


@contextmanager
def in_plain_words() -> Iterator[None]:
    """One sentence for a process that is gone for good.

    Raises:
        StoppedError: instead of what Ray raises then.
    """
    try:
        yield
    except LOSSES as error:
        raise StoppedError(
            f"{who_died(error)}, and it did not come back. What is stored is kept; the same "
            "command continues"
        ) from error


def who_died(error: Exception) -> str:
    """Which process, as far as Ray's message tells, and of what if it never ran."""
    if "creation task" in str(error):
        return f"a process could not start: {str(error).strip().splitlines()[-1]}"
    found = dict(re.findall(r"^\s*(class_name|pid|ip): (\S+)$", str(error), re.MULTILINE))
    if "pid" not in found:
        return f"a process died or its result was lost ({type(error).__name__})"
    where = f", process {found['pid']} on {found.get('ip', 'an unknown node')}"
    return f"{found.get('class_name', 'a process')}{where}, died"


def spread(
    workers: list[Any],
    work: Sequence[T],
    begin: Callable[[Any, T], Any],
    done: Callable[[T, Any], None],
    stall: Stall,
    hire: Callable[[], Any] | None,
) -> None:
    """Give each worker its next piece of work as soon as its last one is done, in their order.

    ``begin(worker, piece)`` calls the worker and returns the reference to wait for;
    ``done(piece, result)`` runs here. Where a worker dies, or its result is lost with a node,
    ``hire()`` takes its place in ``workers`` and the piece begins again, at most
    ``stall.retries`` times. ``hire=None``: nothing is started again, as with a real robot.

    Raises:
        StoppedError: nothing ended in time, or a process died that is not replaced, or died too
            often. What the calls raise: see ``answer``.
    """
    waiting, idle = deque(enumerate(work)), list(workers)
    busy: dict[Any, tuple[Any, tuple[int, T]]] = {}
    losses: Counter[int] = Counter()
    while waiting or busy:
        while idle and waiting:
            worker, piece = idle.pop(), waiting.popleft()
            busy[begin(worker, piece[1])] = worker, piece
        ready, _ = ray.wait(list(busy), timeout=stall.timeout_s)
        if not ready:
            raise stall.error()
        for reference in ready:
            worker, piece = busy.pop(reference)
            try:
                result = answer(reference)
            except LOSSES as error:
                losses[piece[0]] += 1
                worker = _replaced(workers, worker, error, stall, hire, losses[piece[0]])
                waiting.appendleft(piece)
            else:
                done(piece[1], result)
            idle.append(worker)


def _replaced(
    workers: list[Any],
    dead: Any,
    error: Exception,
    stall: Stall,
    hire: Callable[[], Any] | None,
    times: int,
) -> Any:
    """Whoever takes the place of a worker, the ``times``-th that one piece of work has lost."""
    if hire is None:
        raise StoppedError(
            f"{stall.name}: {who_died(error)}. It is not started again by itself: "
            f"{stall.advice}, then run the same command; what is stored is kept"
        ) from error
    if times > stall.retries:
        raise StoppedError(
            f"{stall.name}: {who_died(error)}; the same piece of work was lost {times} times. "
            f"{stall.advice}; the same command continues"
        ) from error
    stall.lost(f"{who_died(error)}; its work begins again ({times} of at most {stall.retries})")
    end(dead)
    workers[workers.index(dead)] = new = hire()
    return new


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
    """The queue of one task, as a WorkQueue for its workers and as its pool's book."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def hello(self, worker: str) -> None:
        answer(self._actor.hello.remote(worker))

    def take(self, worker: str, count: int) -> list[WorkItem]:
        return answer(self._actor.take.remote(worker, count))

    def heartbeat(self, worker: str, held: Collection[str]) -> None:
        answer(self._actor.heartbeat.remote(worker, list(held)))

    def done(self, worker: str, trajectory_id: str) -> None:
        answer(self._actor.done.remote(worker, trajectory_id))

    def retire(self, worker: str) -> None:
        answer(self._actor.retire.remote(worker))

    def release(self, worker: str) -> int:
        return answer(self._actor.release.remote(worker))

    def share(self, sharers: int) -> None:
        answer(self._actor.share.remote(sharers))

    def stop(self) -> None:
        answer(self._actor.stop.remote())

    def status(self) -> QueueStatus:
        return answer(self._actor.status.remote())
