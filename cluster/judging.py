"""``job=replay_eval``: recorded actions replayed in world models, beside what cameras saw."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.checkpoints import MANIFEST, Kind, base_folder, checksum, verified
from cluster.collecting import import_recordings, recordings
from cluster.context import Context
from cluster.handles import end, spread, start, up
from cluster.replay_process import BASELINES, ReplayProcess, Tools, Variant
from cluster.setup import publish_policy
from configs.replay_eval import ReplayEvalConfig
from configs.run import RunConfig
from models.build import load_adapter
from models.metrics import features, lpips
from models.metrics.weights import UnavailableError, WeightFile, find
from replay.store import ReplayStore
from services.progress import Bar
from services.replay_items import Protocol, ReplayItem, choose
from services.replay_report import write_replay_report
from services.replay_report_data import Episode, ReplayReport, VariantResults
from services.replay_results import Results
from services.replay_table import results_table

NO_POLICY = "policy.checkpoint=scratch: give policy.checkpoint=<folder> (base: the embedded one)"
NO_JUDGE = "reward.checkpoint=scratch: give reward.checkpoint=<folder> (base: the embedded one)"
RANDOM = "has random weights: its numbers only show that the machinery works"


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that is decided before a process starts."""

    variants: list[Variant]
    tools: Tools
    items: list[ReplayItem]
    unavailable: dict[str, str]  # metric or part -> why
    facts: dict[str, Any]  # what all results depend on


def replay_eval(run: Context) -> Path:
    """Replay what is missing, write ``replay.html`` and ``replay.json``, return the page's path.

    Raises:
        ValueError: there are no episodes, or a checkpoint or weight file cannot be used.
    """
    store = _episodes(run)
    plan = _plan(run, store)
    results = {variant.name: _replay(run, plan, variant) for variant in plan.variants}
    report = _gather(run, plan, store, results)
    path = write_replay_report(report, run.folder)
    run.reporter.console.print(results_table(report))
    run.reporter.say(f"report: {path}")
    run.reporter.event("report", path=str(path))
    return path


def check(config: ReplayEvalConfig, world_model: str) -> None:
    """Refuse what would fail minutes later; starts nothing.

    Raises:
        ValueError: a checkpoint folder or weight file is not there, or is damaged.
    """
    for setting in config.named(world_model).values():
        folder = base_folder("world_model", setting)
        if folder is not None and (folder / MANIFEST).exists():
            verified(folder)
    _weight_files(config)


def _episodes(run: Context) -> ReplayStore:
    """The store to replay from: another run's evaluation episodes, or recordings."""
    config = run.config.replay_eval
    if config.run:
        folder = Path(config.run) / "stores" / "evaluation"
        if not folder.is_dir():
            raise ValueError(
                f"replay_eval.run={config.run} has no {folder}: give the folder of a run"
            )
        return ReplayStore.open(folder)
    robot = recordings(run.config, config.split)
    if not len(robot):
        raise ValueError(
            f"robot.path={run.config.robot.path} has no episodes in replay_eval.split="
            f"{config.split}: give replay_eval.split=train, or '' for all"
        )
    import_recordings(run, "evaluation", robot)
    return run.reader("evaluation")


def _plan(run: Context, store: ReplayStore) -> _Plan:
    config, given = run.config, run.config.replay_eval
    files, unavailable = _weight_files(given)
    protocol = Protocol(
        given.clips,
        given.seconds,
        given.events,
        given.long,
        given.long_seconds,
        given.futures,
        given.sheets,
        given.seed,
    )
    if "FVD" in files and protocol.frames < features.MIN_CLIP:
        del files["FVD"]
        unavailable["FVD"] = f"replay_eval.seconds={given.seconds:g}: I3D needs 2 s or more"
    has_judge, judge = _judge(config)
    if not has_judge:
        unavailable["success matrix"] = NO_JUDGE
    tools = Tools(store.folder, files, has_judge, judge, _policy(run))
    named = given.named(config.world_model.checkpoint)
    variants = [Variant(kind, kind) for kind in BASELINES]
    variants += [Variant(n, "model", base_folder("world_model", s)) for n, s in named.items()]
    items = choose(protocol, [(row.id, row.num_frames) for row in store.episodes()])
    return _Plan(variants, tools, items, unavailable, _facts(run, tools, store))


def _weight_files(config: ReplayEvalConfig) -> tuple[dict[str, WeightFile], dict[str, str]]:
    """Metric -> its weights, and metric -> why it has none."""
    settings = {
        "LPIPS": (lpips.FLAG, config.lpips_weights),
        "FID": (features.FID_FLAG, config.inception_weights),
        "FVD": (features.FVD_FLAG, config.i3d_weights),
    }
    files, missing = {}, {}
    for name, setting in settings.items():
        try:
            files[name] = find(*setting)
        except UnavailableError as error:
            missing[name] = str(error)
    return files, missing


def _judge(config: RunConfig) -> tuple[bool, Path | None]:
    """(whether there is a judge, its folder). A released Qwen3-VL judges without training, too."""
    folder = _optional("reward", config.reward.checkpoint)
    return folder is not None or config.reward.qwen.path != "", folder


def _policy(run: Context) -> Path | None:
    """The folder of the policy that imagines futures, or of the name of its server."""
    config = run.config.policy
    if config.kind == "remote":
        publish_policy(run)
        return Path(run.checkpoints.open("policy", 0).uri)
    return _optional("policy", config.checkpoint)


def _optional(kind: Kind, setting: str) -> Path | None:
    return base_folder(kind, setting) if setting else None


def _facts(run: Context, tools: Tools, store: ReplayStore) -> dict[str, Any]:
    """What every result depends on beside its item and its world model."""
    config = run.config
    reward = {k: v for k, v in asdict(config.reward).items() if k != "train"}
    return {
        "store": str(store.folder.resolve()),
        "weights": {name: file.sha256 for name, file in tools.files.items()},
        "reward": reward if tools.has_judge else None,
        "judge": checksum(tools.judge) if tools.judge else "",
        "policy": checksum(tools.policy) if tools.policy else "",
        "frame size": run.frame_size,
    }


def _replay(run: Context, plan: _Plan, variant: Variant) -> VariantResults:
    """Replay what this variant has not replayed yet, in batches, on its processes."""
    facts: dict[str, Any] = {"kind": variant.kind} | plan.facts
    if variant.kind == "model":
        settings = asdict(run.config.world_model)
        facts["world model"] = {k: v for k, v in settings.items() if k != "train"}
        facts["weights of it"] = checksum(variant.folder) if variant.folder else "random"
    results = Results(run.folder / "replays", variant.name, facts)
    reason = _no_futures(run.config, plan.tools, variant)
    items = [item for item in plan.items if item.kind != "future" or not reason]
    missing = [item for item in items if item not in results]
    with run.reporter.stage(f"replay: {variant.name}", len(items), "replays") as bar:
        bar.begin_with(len(items) - len(missing))
        if missing:
            _work(run, (variant, plan.tools), missing, results, bar)
    return VariantResults(
        name=variant.name,
        is_model=variant.kind == "model",
        checksum=facts.get("weights of it", ""),
        note=RANDOM if variant.kind == "model" and variant.folder is None else "",
        no_futures=reason,
        items=items,
        found=[results.load(item) for item in items],
    )


def _no_futures(config: RunConfig, tools: Tools, variant: Variant) -> str:
    """Why no policy can act in this variant; "" where it can."""
    if variant.kind != "model":
        return "not a world model"
    if variant.folder is None:
        return "a world model with random weights has no adapter"
    if tools.policy is None:
        return NO_POLICY
    try:
        load_adapter(config.world_model, variant.folder)
    except ValueError as error:
        return str(error)
    return ""


def _work(
    run: Context,
    process: tuple[Variant, Tools],
    missing: Sequence[ReplayItem],
    results: Results,
    bar: Bar,
) -> None:
    """Give each process its next batch as soon as its last one is on disk."""
    config, cluster = run.config.replay_eval, run.config.cluster
    firsts = range(0, len(missing), config.batch)
    batches = [list(missing[first : first + config.batch]) for first in firsts]
    count = min(config.workers, len(batches)) if process[0].kind == "model" else 1
    made_from = (ReplayProcess, run.config, *process)
    asked = {"num_cpus": cluster.worker_cpus, "num_gpus": cluster.worker_gpus}

    def hire() -> Any:
        return up(start(*made_from, **asked), "replay process", cluster.start_timeout_s)

    workers = [start(*made_from, **asked) for _ in range(count)]

    def done(items: list[ReplayItem], found: Sequence[Any]) -> None:
        for item, one in zip(items, found, strict=True):
            results.save(item, one)
        bar.advance(len(items))

    advice = "look at the workers' logs, lower replay_eval.batch"
    stall = run.stall(bar, advice)
    try:
        spread(workers, batches, lambda w, items: w.judge.remote(items), done, stall, hire)
    finally:
        end(*workers)


def _gather(
    run: Context, plan: _Plan, store: ReplayStore, results: dict[str, VariantResults]
) -> ReplayReport:
    config = run.config
    wanted = {item.episode for item in plan.items}
    episodes = {
        row.id: Episode(row.provenance.task, row.instruction, row.num_frames, row.label)
        for row in store.episodes()
        if row.id in wanted
    }
    given = config.replay_eval.named(config.world_model.checkpoint)
    return ReplayReport(
        title=f"Replay evaluation {run.folder.name}: {config.world_model.kind}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=str(store.folder),
        config=asdict(config.replay_eval) | {"world_model.kind": config.world_model.kind},
        models=given,
        variants=list(results.values()),
        episodes=episodes,
        num_episodes=len(store),
        alpha=config.each_task.alpha,
        judge=f"{config.reward.kind}, {config.reward.checkpoint}" if plan.tools.has_judge else "",
        weights={n: f"{f.path.name}, {f.sha256[:12]}" for n, f in plan.tools.files.items()},
        unavailable=plan.unavailable,
    )
