"""The report's sections on success, imagination and judgement. One function, one section."""

from collections.abc import Mapping

from contracts.statistics import Agreement, wilson
from services.calibration import ALL_TASKS
from services.report_calibration import held_out_labels
from services.report_charts import histogram, intervals, shares
from services.report_data import Evaluation, Imagined, ReportData, Truth
from services.report_html import (
    DASH,
    absent,
    duration,
    figure,
    grid,
    number,
    paragraph,
    percent,
    section,
    table,
    text,
    tile,
)
from services.report_numbers import comparisons, pooled, stages, tasks

SIGN = "+.1f"


def summary(data: ReportData) -> str:
    """The four numbers that a reader asks for first, and what they allow one to say."""
    known = [row for row in pooled(data.evaluations) if row.successes is not None]
    tiles = [_success_tile(row) for row in known]
    if data.imagined:
        accepted = sum(row.accepted for row in data.imagined)
        scored = accepted + sum(row.rejected for row in data.imagined)
        detail = f"{accepted} of {scored} scored" if scored else "nothing scored"
        tiles.append(tile("Accepted imagined", percent(accepted / max(scored, 1)), detail))
    if data.throughput:
        last = data.throughput[-1]
        detail = f"net frames/s, {last.workers} workers, iteration {last.iteration}"
        tiles.append(tile("Imagination", number(last.frames_per_second), detail))
    return section(
        "summary",
        "Summary",
        grid(tiles, "tiles"),
        _comparison_lines(data.evaluations),
        _refusals(data),
        paragraph(data.promise, "promise"),
    )


def _success_tile(row: Evaluation) -> str:
    kind = "Same-steps control" if row.control else f"Success, {row.stage}"
    between = f"{percent(row.interval.low)} to {percent(row.interval.high)}"
    return tile(kind, percent(row.rate), f"{row.successes} of {row.n}; 95 %: {between}")


def _comparison_lines(evaluations: list[Evaluation]) -> str:
    found = comparisons(evaluations)
    if not found:
        return absent(
            "No before/after comparison: fewer than two policies were evaluated on every task."
        )
    rows = [
        [
            f"{text(row.after)} against {text(row.before)}",
            f"{100 * row.change:{SIGN}} points",
            f"{100 * row.interval.low:{SIGN}} to {100 * row.interval.high:{SIGN}}",
            f"{row.n[1]} and {row.n[0]}",
            text(row.seeds or DASH),
            text(row.conclusion),
        ]
        for row in found
    ]
    headers = ("all tasks", "change", "95 % (Newcombe)", "n", "seeds", "conclusion")
    note = ""
    if not any(row.control for row in evaluations):
        note = absent(
            "The same-steps control was not evaluated: part of any change may be mere training."
        )
    return table(headers, rows) + note


def _refusals(data: ReportData) -> str:
    if not data.refusals:
        return ""
    rows = [[str(r.iteration), text(r.stage), text(r.task), text(r.reason)] for r in data.refusals]
    return (
        '<div class="refusals"><h3>Refused</h3>'
        + table(("iteration", "step", "task", "reason"), rows)
        + "</div>"
    )


def success(data: ReportData) -> str:
    """Every policy on every task: n, seeds and interval beside each rate."""
    if not data.evaluations:
        return section(
            "success", "Success on the robot", absent("Not run: no policy was evaluated.")
        )
    rows = _complete(data.evaluations)
    names = tasks(rows)
    shown = [*names, ALL_TASKS] if len(names) > 1 else names
    everything = rows + (pooled(data.evaluations) if len(names) > 1 else [])
    charts = [
        figure(task, intervals([row for row in everything if row.task == task])) for task in shown
    ]
    body = table(
        ("task", "policy", "successes", "n", "rate", "95 % (Wilson)", "seeds"),
        [_success_cells(row) for row in everything],
        [row.control for row in everything],
    )
    if not any(row.control for row in rows):
        body += absent("Same-steps control: not evaluated (evaluation.control=true evaluates it).")
    return section(
        "success", "Success on the robot", grid(charts), body, paragraph(data.promise, "promise")
    )


def _complete(evaluations: list[Evaluation]) -> list[Evaluation]:
    """Rows by task, then stage; a missing pair is a row that says so."""
    have = {(row.task, row.stage): row for row in evaluations}
    control = {row.stage: row.control for row in evaluations}
    return [
        have.get((task, stage), Evaluation(stage, task, None, 0, control=control[stage]))
        for task in tasks(evaluations)
        for stage in stages(evaluations)
    ]


def _success_cells(row: Evaluation) -> list[str]:
    name = text(row.stage) + (
        " <small>same steps, demonstrations only</small>" if row.control else ""
    )
    if row.successes is None or not row.n:
        return [text(row.task), name, "not evaluated", "0", DASH, DASH, text(row.seeds or DASH)]
    between = f"{percent(row.interval.low)} to {percent(row.interval.high)}"
    count = [str(row.successes), str(row.n), percent(row.rate), between, text(row.seeds or DASH)]
    return [text(row.task), name, *count]


def imagination(data: ReportData) -> str:
    """Real success beside the accepted share, and what became of every trajectory."""
    title = "Real beside imagined"
    if not data.imagined:
        return section("imagined", title, absent("Not run: nothing was imagined."))
    headers = (
        *("iteration", "task", "real success", "accepted share", "starts told apart", "accepted"),
        *("rejected", "scoring errors", "not scored", "of N"),
    )
    empty = [f"{r.task}, iteration {r.iteration}" for r in data.imagined if not r.accepted]
    warning = (
        paragraph(
            f"No imagined success to learn from (D_syn+ is empty): {'; '.join(empty)}.", "warn"
        )
        if empty
        else ""
    )
    return section(
        "imagined",
        title,
        paragraph(
            "An accepted share far above the real success rate means that the world model or the "
            "reward model is optimistic. A scoring error counts as neither success nor failure."
        ),
        paragraph(
            "Starts told apart: the chance that a real start where the robot succeeded has a "
            "greater accepted share than one where it failed (AUC; 95 % interval). Near 0.5 the "
            "imagined outcome says nothing about the real one, and D_syn+ is hardly better than "
            "what the policy does anyway. task.<name>.min_agreement can refuse such a D_syn+."
        ),
        warning,
        table(
            headers, map(_imagined_cells, data.imagined), [not r.accepted for r in data.imagined]
        ),
        _truths(data.truths),
    )


def _truths(rows: list[Truth]) -> str:
    """What the simulator says of imagined actions, where it was asked."""
    if not rows:
        return ""
    headers = ("iteration", "task", "accepted", "truly successful", "purity of D_syn+")
    headers = (*headers, "success of all", "recall")
    return paragraph(
        "Imagined actions executed in the simulator from the same starts: a truth that no real lab "
        "has. Nothing learns from it. Purity is the share of accepted trajectories whose actions "
        "really succeed; intervals are 95 %, Wilson."
    ) + table(headers, map(_truth_cells, rows), [not row.accepted for row in rows])


def _truth_cells(row: Truth) -> list[str]:
    between = f"{percent(row.interval.low)} to {percent(row.interval.high)}"
    purity = f"{percent(row.purity)} <small>{between}</small>" if row.accepted else DASH
    cells = [str(row.iteration), text(row.task), number(row.accepted), number(row.accepted_true)]
    return [*cells, purity, percent(row.base_rate), percent(row.recall)]


def _imagined_cells(row: Imagined) -> list[str]:
    found = wilson(row.real_successes, row.real_episodes)
    real = (
        f"{row.real_successes} of {row.real_episodes} "
        f"<small>{percent(found.low)} to {percent(found.high)}</small>"
        if row.real_episodes
        else DASH
    )
    counts = (row.accepted, row.rejected, row.errors, row.missing)
    names = ("accepted", "rejected", "scoring errors", "not scored")
    bar = shares(
        [(name, tone, count) for tone, (name, count) in enumerate(zip(names, counts, strict=True))]
    )
    cells = [str(row.iteration), text(row.task), real, percent(row.accepted_share) + bar]
    cells.append(_apart(row.agreement))
    return [*cells, *(number(count) for count in counts), number(row.requested)]


def _apart(found: Agreement | None) -> str:
    if found is None:
        return DASH
    between = f"{found.interval.low:.2f} to {found.interval.high:.2f}"
    return f"{found.area:.2f} <small>{between}, {found.successes + found.failures} starts</small>"


def adapter_line(version: str, numbers: Mapping[str, float | str]) -> str:
    """How far the poses of imagination are off the arm; "" where no adapter was fitted.

    ``numbers`` are those that ``learners/world_model.py`` returns with its losses.
    """
    ticks = [tick for tick in (4, 8, 12) if f"adapter mm at {tick} ticks" in numbers]
    if not ticks:
        return ""
    own, still = (
        " / ".join(f"{numbers[f'{what} mm at {tick} ticks']:.1f}" for tick in ticks)
        for what in ("adapter", "no motion")
    )
    return (
        f"Pose adapter of world model {version} ({numbers['adapter']}): the flange is {own} mm off "
        f"after {' / '.join(map(str, ticks))} ticks on motion held out of its fit "
        f"({numbers['adapter held out']}); an arm that stood still would be {still} mm off."
    )


def sight_line(version: str, numbers: Mapping[str, float | str]) -> str:
    """What the eye for the gripper is worth; "" where none was measured."""
    if "nats per window" not in numbers:
        return ""
    told = {
        "none": "nothing that it sees predicts that: a table of rates moves the gripper",
        "base": "used as the world model before had it",
        "fitted": "fitted to these episodes",
    }
    return (
        f"Eye for the gripper of world model {version}: of {numbers['held-up windows apart']:.0f} "
        "closings held out of its fit it tells which are held up by something with AUC "
        f"{numbers['AUC of held up']:.2f} ({numbers['nats per window']:.2f} nats each, "
        f"{numbers['nats without it']:.2f} without it); {told[str(numbers['eye'])]}."
    )


def judgement(data: ReportData) -> str:
    """Histograms of P('yes'), and the reward model on labels it has not seen."""
    charts = [figure(f"{s.task}, iteration {s.iteration}", histogram(s)) for s in data.scores]
    body = (
        paragraph(
            "Each row of bars is scaled to its own highest. Imagined scores that lie far from both "
            "real rows mean that the reward model sees pictures unlike those it was trained on."
        )
        + grid(charts)
        if charts
        else absent("No scores: the reward model judged nothing in this run.")
    )
    return section(
        "reward", "Reward model", body, "<h3>Held-out labels</h3>", held_out_labels(data)
    )


def throughput(data: ReportData) -> str:
    """Imagination in net frames, and where the time went."""
    title = "Throughput"
    body = absent("Not measured: nothing was imagined.")
    if data.throughput:
        headers = (
            "iteration",
            "workers",
            "net frames",
            "trajectories",
            "time",
            "net frames/s",
            "trajectories/hour",
        )
        body = paragraph(
            "Net frames are new time steps of all three views; known frames do not count."
        )
        body += table(
            headers,
            [
                [
                    *(str(r.iteration), str(r.workers), number(r.net_frames)),
                    *(number(r.trajectories), duration(r.seconds)),
                    *(number(r.frames_per_second), number(r.trajectories_per_hour)),
                ]
                for r in data.throughput
            ],
        )
    return section("throughput", title, body, _stage_times(data))


def _stage_times(data: ReportData) -> str:
    if not data.stages:
        return ""
    longest = max(*(stage.seconds for stage in data.stages), 1e-9)
    rows = [
        [
            text(stage.stage),
            duration(stage.seconds),
            _share_bar(stage.seconds / longest),
        ]
        for stage in data.stages
    ]
    total = duration(sum(stage.seconds for stage in data.stages))
    return f"<h3>Stages, {total} in all</h3>" + table(("stage", "time", ""), rows)


def _share_bar(share: float) -> str:
    return f'<div class="bar"><i class="b0" style="flex:0 0 {100 * share:.1f}%"></i></div>'
