"""Gathers everything a run has measured into its report, and prints the results table."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from cluster.calibration import calibrations
from cluster.context import Context
from cluster.scoring import starts_agree
from contracts.constants import FRAME_HZ
from contracts.statistics import wilson
from replay.store import ReplayStore
from services.calibration_tables import tables
from services.report import write_report
from services.report_data import (
    Evaluation,
    Film,
    Imagined,
    LossCurve,
    Refusal,
    ReplayQuality,
    ReportData,
    Scores,
    Sheet,
    StageTime,
    Throughput,
    Truth,
    Unavailable,
    Version,
)
from services.report_sections import adapter_line, sight_line
from services.scoring import mass_warning
from services.spent import compared, spent

WEIGHTS_NOT_FOUND = "weights not found: nothing is downloaded, and random ones measure nothing"
FILMS_PER_TASK = 2
SHEET_COLUMNS = 8


def write(run: Context) -> Path:
    """Write ``report.html`` and ``report.json``, print the table, and return the page's path."""
    data = gather(run)
    path = write_report(data, run.folder)
    run.reporter.say("")
    if data.evaluations:
        run.reporter.console.print(results_table(data))
    if run.config.job == "calibrate":
        for table in tables(data):
            run.reporter.console.print(table)
    for note in data.notes:
        run.reporter.say(note)
    run.reporter.say(f"{data.promise}\nreport: {path}")
    run.reporter.event("report", path=str(path))
    return path


def gather(run: Context, media: bool = True) -> ReportData:
    """Read the stage manifests, the stores and the checkpoints; nothing is computed anew.

    Without ``media`` there are no films and pictures, which take by far the longest.
    """
    iterations = range(1, run.config.method.iterations + 1)
    return ReportData(
        title=f"VLAW run {run.folder.name}: {run.config.method.kind}, {', '.join(run.tasks)}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=asdict(run.config),
        evaluations=list(_evaluations(run)),
        imagined=[row for i in iterations for row in _imagined(run, i)],
        truths=[row for i in iterations for row in _truths(run, i)],
        refusals=[row for i in iterations for row in _refusals(run, i)],
        scores=[row for i in iterations for row in _scores(run, i)],
        losses=list(_losses(run, list(iterations))),
        replays=list(_replays(run, list(iterations))),
        calibrations=list(calibrations(run)),
        sheets=list(_sheets(run)) if media else [],
        films=list(_films(run)) if media else [],
        throughput=[row for i in iterations for row in _throughput(run, i)],
        stages=_stage_times(run),
        costs=compared(run.folder),
        lineage=[_version(facts) for facts in run.checkpoints.lineage()],
        unavailable=[Unavailable(name, WEIGHTS_NOT_FOUND) for name in ("LPIPS", "FID", "FVD")],
        notes=list(_notes(run)),
    )


def _evaluations(run: Context) -> Iterator[Evaluation]:
    kind, first = run.config.method.kind, run.config.evaluation.seed
    iterations = range(1, run.config.method.iterations + 1)
    names = ["base", *(f"{kind}-{i}" for i in iterations), "control"]
    seeds = f"{first}..{first + run.config.evaluation.episodes - 1}"
    for name in names:
        counts = run.stages.result(f"evaluate {name}") or {}
        for task in run.tasks:
            found = counts.get(task)
            if found is not None and "n" in found:
                yield Evaluation(
                    name, task, found["successes"], found["n"], seeds, control=name == "control"
                )


def _imagined(run: Context, i: int) -> Iterator[Imagined]:
    counts = run.stages.result(f"{i} score") or {}
    real = run.stages.result(f"{i} collect") or {}
    for task, found in counts.items():
        collected = real.get(task, {"successes": 0, "n": 0})
        yield Imagined(
            i,
            task,
            run.config.for_task(task).imagine,
            found["accepted"],
            found["rejected"],
            found["scoring_error"],
            collected["successes"],
            collected["n"],
            starts_agree(found),
        )


def _truths(run: Context, i: int) -> Iterator[Truth]:
    found = run.stages.result(f"{i} truth")
    if found is None:
        return
    verdicts = run.reader("imagined").verdicts(reward_version(run, i))
    for task, answers in found.items():
        alpha = run.config.for_task(task).alpha
        counts = Counter((verdicts[name].accepted(alpha), true) for name, true in answers.items())
        accepted, rejected = (counts[side, True] + counts[side, False] for side in (True, False))
        yield Truth(i, task, accepted, counts[True, True], rejected, counts[False, True])


def _refusals(run: Context, i: int) -> Iterator[Refusal]:
    for task, reason in (run.stages.result(f"{i} refusals") or {}).items():
        yield Refusal(i, "train policy", task, reason)
    kept = run.stages.result(f"{i} reward refused")
    if kept:
        yield Refusal(i, "train reward", "all tasks", kept["reason"])


def _scores(run: Context, i: int) -> Iterator[Scores]:
    if run.stages.result(f"{i} score") is None:
        return
    version = reward_version(run, i)
    real, imagined = run.reader("real"), run.reader("imagined")
    on_real, on_imagined = real.verdicts(version), imagined.verdicts(version)
    for task in run.tasks:
        rows: dict[bool, list[float]] = {True: [], False: []}
        for name, verdict in on_real.items():
            label = real.label(name)
            if label is not None and real.provenance(name).task == task and not verdict.error:
                rows[label.success].append(verdict.p_yes)
        dreamt = [
            verdict.p_yes
            for name, verdict in on_imagined.items()
            if not verdict.error
            and (imagined.provenance(name).task, imagined.provenance(name).iteration) == (task, i)
        ]
        alpha = run.config.for_task(task).alpha
        yield Scores(i, task, alpha, _array(rows[True]), _array(rows[False]), _array(dreamt))


def reward_version(run: Context, i: int) -> int:
    """The reward model that judged iteration ``i``: the newest one trained until then."""
    trained = [k for k in range(1, i + 1) if run.stages.result(f"{k} train reward") is not None]
    return max(trained, default=0)


def _array(values: list[float]) -> np.ndarray:
    return np.asarray(values, np.float64)


def _losses(run: Context, iterations: list[int]) -> Iterator[LossCurve]:
    for learner in ("world_model", "reward", "policy"):
        for i in iterations:
            stage = f"{i} train {learner.replace('_', ' ')}"
            yield from _curve(run, learner, f"iteration {i}", stage)
    yield from _curve(run, "policy", "control", "train control")
    yield from _curve(run, "policy", "base (cloned)", "base")


def _curve(run: Context, learner: str, name: str, stage: str) -> Iterator[LossCurve]:
    found = run.stages.result(stage) or {}
    losses = found.get("cloned", found).get("losses", [])
    if losses:
        yield LossCurve(learner, name, _array(list(range(1, len(losses) + 1))), _array(losses))
    if measured := found.get("validation", []):
        steps, values = (_array(list(column)) for column in zip(*measured, strict=True))
        kept = f"{name}, step {found['kept_step']} is kept"
        yield LossCurve(f"{learner} validation", kept, steps, values)


def _replays(run: Context, iterations: list[int]) -> Iterator[ReplayQuality]:
    for i in (0, *iterations):
        found = run.stages.result(f"{i} replay quality")
        if found:
            yield ReplayQuality(
                "v0 (base)" if i == 0 else f"v{i}",
                found["episodes"],
                _array([float(k + 1) for k in range(len(found["psnr"]))]),
                psnr=_array(found["psnr"]),
                ssim=_array(found["ssim"]),
                copy_psnr=_array(found["copy_psnr"]),
                copy_ssim=_array(found["copy_ssim"]),
            )


def _throughput(run: Context, i: int) -> Iterator[Throughput]:
    found = run.stages.result(f"{i} imagine")
    if found and found["net_frames"]:
        workers = sum(found["workers"].values())
        yield Throughput(i, workers, found["net_frames"], found["trajectories"], found["seconds"])


def _stage_times(run: Context) -> list[StageTime]:
    took = {name: one.seconds for name, one in spent(run.folder).items()}
    return [StageTime(name, seconds) for name, seconds in took.items() if seconds >= 0.1]


def _version(facts: dict[str, Any]) -> Version:
    lineage = facts["lineage"]
    return Version(
        facts["kind"],
        facts["version"],
        facts["checksum"],
        lineage["parent"],
        lineage["steps"],
        lineage["data"],
    )


def _films(run: Context) -> Iterator[Film]:
    """The likeliest imagined success and failure of each task, beside the real start."""
    imagined, real = run.reader("imagined"), run.reader("real")
    verdicts = imagined.verdicts()
    for task in run.tasks:
        judged = sorted(
            (v.p_yes, name)
            for name, v in verdicts.items()
            if not v.error and imagined.provenance(name).task == task
        )
        picks = [judged[-1], judged[0]] if len(judged) >= FILMS_PER_TASK else judged
        for p_yes, name in picks:
            dream = imagined.trajectory(name)
            parent = real.trajectory(dream.provenance.parent)
            truth = f"real: {parent.id} {outcome(real, parent.id)}"
            caption = f"{task}: {name} (P('yes') {p_yes:.2f}), {truth}"
            beside = parent.frames[dream.provenance.parent_frame :]
            yield Film(caption, dream.instruction, dream.frames, beside, p_yes, FRAME_HZ)


def outcome(store: ReplayStore, name: str) -> str:
    """What the label source says of a stored episode."""
    label = store.label(name)
    return "unlabelled" if label is None else "success" if label.success else "failure"


def _sheets(run: Context) -> Iterator[Sheet]:
    """One real episode of each outcome per task, evenly spaced frames of all views."""
    store = run.reader("real")
    for task in run.tasks:
        names = [i for i in store.ids() if store.provenance(i).task == task]
        rows = {outcome(store, name): name for name in reversed(names)}
        if rows:
            picked = [store.clip(name, SHEET_COLUMNS).frames for name in rows.values()]
            views = [frames[:, view] for frames in picked for view in range(3)]
            labels = [f"{o} ({v})" for o in rows for v in ("exterior 1", "exterior 2", "wrist")]
            yield Sheet(f"real rollouts: {task}", tuple(labels), np.stack(views))


def _notes(run: Context) -> Iterator[str]:
    if run.config.robot.kind == "recorded":
        yield "robot=recorded: nothing moved, so no policy was evaluated on a robot."
    if run.config.policy.kind == "embedded":
        yield ("Embedded models: small substitutes, not pi0.5, Ctrl-World and Qwen3-VL.")
    for row in calibrations(run):
        if warning := mass_warning(f"reward {row.version} on held-out labels", row.mass.tolist()):
            yield warning
    for i in range(1, run.config.method.iterations + 1):
        trained = run.stages.result(f"{i} train world model") or {}
        told = (line(f"v{i}", trained.get("numbers", {})) for line in (adapter_line, sight_line))
        yield from filter(None, told)
        yield from _mass_warnings(run, i)
    skipped = (run.stages.result("1 collect") or {}).get("skipped", {})
    for name, reason in skipped.items():
        yield f"recording {name} was skipped: {reason}"


def _mass_warnings(run: Context, i: int) -> Iterator[str]:
    """Where the reward model of iteration ``i`` often answered neither yes nor no."""
    if run.stages.result(f"{i} score") is None:
        return
    version = reward_version(run, i)
    for name, store in (("real", run.reader("real")), ("imagined", run.reader("imagined"))):
        masses = [
            verdict.mass
            for trajectory, verdict in store.verdicts(version).items()
            if name == "real" or store.provenance(trajectory).iteration == i
        ]
        what = f"reward v{version} on {name} trajectories, iteration {i}"
        if warning := mass_warning(what, masses):
            yield warning


def results_table(data: ReportData) -> Table:
    """Success per task and policy with n and 95 % Wilson intervals."""
    table = Table(title="success (n, 95 % Wilson interval)")
    table.add_column("policy")
    tasks = list(dict.fromkeys(row.task for row in data.evaluations))
    for task in (*tasks, "all"):
        table.add_column(task)
    stages = list(dict.fromkeys(row.stage for row in data.evaluations))
    for stage in stages:
        rows = {row.task: row for row in data.evaluations if row.stage == stage}
        cells = [_cell(rows[t].successes or 0, rows[t].n) if t in rows else "-" for t in tasks]
        total = sum(r.successes or 0 for r in rows.values()), sum(r.n for r in rows.values())
        name = "control (same steps, demonstrations)" if stage == "control" else stage
        table.add_row(name, *cells, _cell(*total))
    return table


def _cell(successes: int, n: int) -> str:
    interval = wilson(successes, n)
    return f"{successes}/{n} [{interval.low:.0%}, {interval.high:.0%}]" if n else "-"
