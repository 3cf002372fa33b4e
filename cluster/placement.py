"""Which process goes where: arithmetic on a config and a list of nodes. Imports no Ray."""

from dataclasses import dataclass

from configs.run import RunConfig


@dataclass(frozen=True, slots=True)
class Process:
    """``count`` equal processes of one stage and what each of them asks of a node."""

    stage: str
    name: str
    count: int
    cpus: float
    gpus: float
    resource: str = ""  # a custom resource, one unit each


@dataclass(frozen=True, slots=True)
class Node:
    """What a node has to give."""

    name: str
    cpus: float
    gpus: float
    resources: tuple[str, ...] = ()
    robots: int = 0  # units of the custom resource
    id: str = ""  # Ray's


@dataclass(frozen=True, slots=True)
class Placed:
    process: Process
    nodes: tuple[str, ...]  # one name per process


class ShortageError(ValueError):
    """The cluster cannot hold the run; the message says what is short and what there is."""

    def __init__(self, message: str, stage: str) -> None:
        super().__init__(message)
        self.stage = stage


def processes(run: RunConfig, tasks: list[str]) -> list[Process]:
    """Every process that the run starts, by stage. Stages take turns, so they share nodes."""
    c = run.cluster
    if run.job == "replay_eval":
        return [Process("replay", "replay", run.replay_eval.workers, c.worker_cpus, c.worker_gpus)]
    if run.job == "latents":
        count = max(1, sum(run.for_task(task).fewest_workers for task in tasks))
        return [Process("latents", "image encoder", count, c.worker_cpus, c.worker_gpus)]
    plan = []
    if run.robot.kind != "recorded":
        plan += [
            Process("collect", "robot", run.robot.count, c.worker_cpus, 0, run.robot.resource),
            Process("collect", "policy server", 1, c.worker_cpus, c.worker_gpus),
        ]
    return plan if run.job == "evaluate" else [*plan, *_learning(run), *_imagining(run, tasks)]


def _learning(run: RunConfig) -> list[Process]:
    c = run.cluster
    learners = ["world model", "reward"] if run.method.kind == "vlaw" else []
    if run.method.update_policy:
        learners.append("policy")
    count, cpus, gpus = c.learner_workers, c.learner_cpus, c.learner_gpus
    return [Process(f"train {name}", f"{name} learner", count, cpus, gpus) for name in learners]


def _imagining(run: RunConfig, tasks: list[str]) -> list[Process]:
    if run.method.kind != "vlaw":
        return []
    c = run.cluster
    share = (c.worker_cpus, c.worker_gpus)
    workers = [
        Process("imagine", f"imagination {t}", run.for_task(t).fewest_workers, *share)
        for t in tasks
    ]
    return [*workers, Process("imagine", "reward scorer", 1, c.scorer_cpus, c.scorer_gpus)]


def big_enough(plan: list[Process]) -> Node:
    """One node that just holds the widest stage, to draw a plan on before there is a cluster."""
    stages = {process.stage for process in plan}
    widest = [[p for p in plan if p.stage == stage] for stage in stages]
    robots = max(sum(p.count for p in part if p.resource) for part in widest)
    return Node(
        "one machine",
        cpus=max(sum(p.count * p.cpus for p in part) for part in widest),
        gpus=max(sum(p.count * p.gpus for p in part) for part in widest),
        resources=tuple(sorted({p.resource for p in plan if p.resource})),
        robots=robots,
    )


def place(plan: list[Process], nodes: list[Node]) -> list[Placed]:
    """First fit of every stage on the nodes.

    Raises:
        ShortageError: a stage does not fit.
    """
    placed = []
    for stage in dict.fromkeys(process.stage for process in plan):
        free = [[node.cpus, node.gpus, float(node.robots)] for node in nodes]
        for process in (p for p in plan if p.stage == stage):
            names = [_take(process, nodes, free) for _ in range(process.count)]
            placed.append(Placed(process, tuple(names)))
    return placed


def hosts(plan: list[Process], nodes: list[Node]) -> list[Node]:
    """Nodes where a process may land that opens the run's folder: any process but a robot."""
    others = [process for process in plan if not process.resource]
    return [n for n in nodes if any(n.cpus >= p.cpus and n.gpus >= p.gpus for p in others)]


def _take(process: Process, nodes: list[Node], free: list[list[float]]) -> str:
    wanted = (process.cpus, process.gpus, float(bool(process.resource)))
    for k, node in enumerate(nodes):  # not by name: two nodes may have the same
        if process.resource and process.resource not in node.resources:
            continue
        if all(want <= have + 1e-9 for want, have in zip(wanted, free[k], strict=True)):
            free[k] = [have - want for want, have in zip(wanted, free[k], strict=True)]
            return node.name
    raise ShortageError(_shortage(process, nodes), process.stage)


def inventory(nodes: list[Node]) -> str:
    """What each node has to give."""
    each = (
        ", ".join((f"{n.name}: {n.cpus:g} CPU", f"{n.gpus:g} GPU", *n.resources)) for n in nodes
    )
    return "; ".join(each) or "no nodes"


def _shortage(process: Process, nodes: list[Node]) -> str:
    asks = f"{process.cpus:g} CPU, {process.gpus:g} GPU"
    hint = ""
    if process.resource:
        asks += f", the resource {process.resource!r}"
        flag = f"--resources='{{\"{process.resource}\": 1}}'"
        hint = f" Start the robot's node with `ray start {flag}`."
    return (
        f"stage {process.stage!r} does not fit: no node has room for {process.count} x "
        f"{process.name} ({asks} each). The cluster has {inventory(nodes)}. Add nodes, or lower "
        f"task.<name>.workers, robot.count or the cluster.* shares.{hint}"
    )


def describe(placed: list[Placed]) -> str:
    """The plan as lines of text, one per kind of process."""
    lines = []
    for item in placed:
        p = item.process
        where = ", ".join(dict.fromkeys(item.nodes))
        lines.append(
            f"  {p.stage:<18} {p.count} x {p.name:<22} {p.cpus:g} CPU {p.gpus:g} GPU  on {where}"
        )
    return "\n".join(lines)
