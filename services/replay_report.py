"""The page of a replay evaluation: one self-contained HTML file, and every number as JSON."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contracts.constants import FRAME_HZ
from services.replay_figures import clip_sheets, futures, long_sheets
from services.replay_report_data import COPY_FIRST, COPY_LAST, ReplayReport, VariantResults
from services.replay_report_numbers import (
    Distance,
    Outcome,
    Row,
    by_second,
    futures_accepted,
    outcomes,
    table,
)
from services.replay_table import mean
from services.report_charts import Series, line_chart
from services.report_html import (
    DASH,
    absent,
    details,
    document,
    figure,
    fixed,
    grid,
    paragraph,
    percent,
    section,
    text,
)
from services.report_html import table as html_table
from services.report_media import Budget
from services.report_numbers import plain
from services.stages import write_json

MEDIA_BYTES = 20_000_000  # of base64 pictures
PLACES = {
    "table": "Table 1",
    "seconds": "Seconds ahead",
    "success": "Success",
    "clips": "Clips",
    "long": "Long replays",
    "futures": "Futures",
    "protocol": "Protocol",
}
METRICS = ("LPIPS", "FID", "FVD")


def write_replay_report(report: ReplayReport, folder: Path) -> Path:
    """Write ``replay.html`` and ``replay.json`` into ``folder``; return the page's path.

    Either file is whole or absent after a crash; equal reports give equal files.
    """
    write_json(folder / "replay.json", numbers(report))
    path = folder / "replay.html"
    partial = path.with_suffix(".tmp")
    partial.write_text(page(report), encoding="utf-8")
    partial.replace(path)
    return path


def numbers(report: ReplayReport) -> dict[str, Any]:
    """Every number of the page, and those of every single clip, as JSON holds them."""
    seconds = {
        one.name: {m: by_second(one, m, view) for m in ("psnr", "ssim") for view in ("all",)}
        for one in report.shown
    }
    clips = [
        {"variant": one.name, **asdict(item), **_scalars(found)}
        for one in report.variants
        for kind in ("clip", "event", "long", "future")
        for item, found in one.of(kind)
    ]
    head = ("title", "created", "source", "config", "models", "alpha", "judge", "weights")
    return plain(
        {name: getattr(report, name) for name in (*head, "unavailable", "num_episodes")}
        | {
            "variants": [
                {
                    "name": v.name,
                    "checksum": v.checksum,
                    "note": v.note,
                    "futures": _futures(v, report),
                }
                for v in report.variants
            ],
            "table": table(report),
            "by_second": seconds,
            "success": [_outcome(one) for one in outcomes(report)],
            "items": clips,
        }
    )


def _scalars(found: dict[str, Any]) -> dict[str, Any]:
    """Means by view of what is measured by frame and view, and P('yes')."""
    means = {m: found[m].mean(axis=0) for m in ("psnr", "ssim", "lpips") if m in found}
    return means | ({"p_yes": found["p_yes"]} if "p_yes" in found else {})


def _futures(variant: VariantResults, report: ReplayReport) -> dict[str, Any]:
    accepted, judged = futures_accepted(report, variant)
    drawn = len(variant.of("future"))
    return {"drawn": drawn, "judged": judged, "accepted": accepted, "why_none": variant.no_futures}


def _outcome(one: Outcome) -> dict[str, Any]:
    return plain(one) | plain({"optimism": one.optimism, "pessimism": one.pessimism})


def page(report: ReplayReport, media_bytes: int = MEDIA_BYTES) -> str:
    """The whole page as text, with at most ``media_bytes`` of pictures."""
    budget = Budget(media_bytes)
    parts = [
        _table_section(report),
        _seconds_section(report),
        _success_section(report),
        clip_sheets(report, budget),
        long_sheets(report, budget),
        futures(report, budget),
        _protocol_section(report, budget),
    ]
    return document((report.title, report.created), PLACES, "".join(parts))


def _table_section(report: ReplayReport) -> str:
    rows = table(report)
    clips, episodes, seconds = rows[0].clips, rows[0].episodes, report.config["seconds"]
    words = (
        f"{clips} clips of {seconds:g} s from {episodes} real episodes: the recorded actions are "
        "replayed from one real frame, and what the world model shows is compared with what the "
        "cameras saw. Means over clips, 95 % intervals over episodes in brackets."
    )
    warnings = [paragraph(f"{one.name} {one.note}.", "warn") for one in report.variants if one.note]
    marked = [row.variant in (COPY_FIRST, COPY_LAST) for row in rows]
    headers = ("variant", "view", "PSNR [dB]", "above copy first", "SSIM", *METRICS)
    body = html_table(headers, [_cells(row, report) for row in rows], marked)
    notes = paragraph(
        "copy first: the known frame for ever, all that a model may know; a model that is not "
        "above it shows nothing of the future. copy last: the real frame 0.2 s before, which sees "
        "reality as no replay does: how little moves from frame to frame."
    )
    distances = [_floors(row) for row in rows if row.fid or row.fvd]
    floors = (
        paragraph(
            "Frechet distances of few samples are far from 0 even between equal distributions. "
            "Compare the two columns at equal n: imagined against real, and real against real."
        )
        + html_table(
            ("variant", "view", "metric", "n", "distance", "halves: imagined", "real", "n"),
            [cells for group in distances for cells in group],
        )
        if distances
        else ""
    )
    return section(
        "table", "Table 1", paragraph(words), *warnings, body, notes, floors, _absent(report)
    )


def _cells(row: Row, report: ReplayReport) -> list[str]:
    lpips = text(mean(row.lpips, 3)) if row.lpips else "<em>unavailable</em>"
    gain = DASH if row.variant == COPY_FIRST else text(mean(row.gain, 2))
    return [
        text(row.variant),
        text(row.view.replace("_", " ")),
        text(mean(row.psnr, 2)),
        gain,
        text(mean(row.ssim, 3)),
        lpips,
        *(_distance(one) for one in (row.fid, row.fvd)),
    ]


def _distance(one: Distance | None) -> str:
    if one is None:
        return "<em>unavailable</em>"
    missing = f"<em>unavailable</em>: {text(one.reason)}"
    return missing if math.isnan(one.value) else fixed(one.value, 1)


def _floors(row: Row) -> list[list[str]]:
    known = [(n, d) for n, d in (("FID", row.fid), ("FVD", row.fvd)) if d and d.n]
    return [
        [text(row.variant), text(row.view), name, str(d.n), fixed(d.value, 1)]
        + ([text(d.reason), DASH, DASH] if d.reason else
           [fixed(d.half, 1), fixed(d.floor, 1), str(d.half_n)])
        for name, d in known
    ]  # fmt: skip


def _absent(report: ReplayReport) -> str:
    lines = [[text(name), f"unavailable: {text(why)}"] for name, why in report.unavailable.items()]
    return html_table(("not computed", "why"), lines) if lines else ""


def _seconds_section(report: ReplayReport) -> str:
    units = {"psnr": ("PSNR", "dB"), "ssim": ("SSIM", "SSIM")}
    charts = [
        figure(f"{name}, {view}", line_chart(_lines(report, metric, view), "seconds ahead", unit))
        for metric, (name, unit) in units.items()
        for view in ("all", "wrist")
    ]
    headers = ("variant", "view", "metric", "by second")
    rows = [
        [text(one.name), view, name, ", ".join(fixed(v, 2) for v in by_second(one, metric, view))]
        for metric, (name, _) in units.items()
        for view in ("all", "wrist")
        for one in report.shown
    ]
    return section(
        "seconds", "Seconds ahead", grid(charts), details("Values", html_table(headers, rows))
    )


def _lines(report: ReplayReport, metric: str, view: str) -> list[Series]:
    lines, tones = [], iter((0, 1, 2, 3) * len(report.variants))
    for one in report.shown:
        if one.name == COPY_LAST:
            continue  # it knows reality, and would squeeze the others
        values = by_second(one, metric, view).tolist()
        tone = next(tones) if one.is_model else 4
        x = [float(k + 1) for k in range(len(values))]
        lines.append(Series(one.name, tone, x, values, dashed=not one.is_model))
    return lines


def _success_section(report: ReplayReport) -> str:
    title = "Success on the replay, against the truth"
    rows = outcomes(report)
    if not rows:
        why = report.unavailable.get("success matrix", "replay_eval.events=0")
        return section("success", title, absent(f"Not judged: {why}"))
    words = (
        f"The end of each episode ({report.config['seconds']:g} s) is replayed in its place, and "
        f"the reward model ({report.judge}, alpha {report.alpha:g}) judges the episode. Optimism: "
        "real failures that the replay shows as successes. Pessimism: real successes that it shows "
        "as failures. Truth is the episode's label, or the same judge on the real end, which "
        "takes the judge's own error out. The row “real” is the judge on real clips: where it "
        "disagrees with the labels, no row below says much about a world model."
    )  # fmt: skip
    headers = (
        "replay",
        "truth",
        "task",
        "TP",
        "FP",
        "FN",
        "TN",
        "optimism",
        "pessimism",
        "no label",
    )
    shown = [row for row in rows if row.counts.n]
    body = html_table(headers, [_matrix(row) for row in shown if not row.task])
    by_task = [_matrix(row) for row in shown if row.task]
    tasks = details("By task", html_table(headers, by_task)) if by_task else ""
    return section("success", title, paragraph(words), body, tasks)


def _matrix(one: Outcome) -> list[str]:
    c = one.counts
    cells = [text(one.variant), text(one.truth), text(one.task or "all")]
    cells += [
        str(n) for n in (c.true_positive, c.false_positive, c.false_negative, c.true_negative)
    ]
    for rate in (one.optimism, one.pessimism):
        low, high = percent(rate.interval.low), percent(rate.interval.high)
        cells.append(f"{percent(rate.value)} <small>{low} to {high}</small>")
    return [*cells, str(one.unlabelled)]


def _protocol_section(report: ReplayReport, budget: Budget) -> str:
    unused = report.num_episodes - len(report.episodes)
    facts = {
        "episodes": f"{report.source}: {report.num_episodes}, of which {unused} were not used",
        "frames": f"{FRAME_HZ} Hz, three views, 8 bit, stored as JPEG (quality 95); "
        "the known frame is not scored",
        "PSNR": "of each image, then the mean; SSIM: Gaussian 11 x 11, sigma 1.5, valid window",
        "intervals": "percentile bootstrap over episodes, 1000 draws; rates: Wilson",
    }
    facts |= {f"replay_eval.{name}": value for name, value in report.config.items()}
    facts |= {f"weights of {name}": value for name, value in report.weights.items()}
    facts |= {f"world model {one.name}": one.checksum for one in report.world_models}
    rows = [[text(name), text(value)] for name, value in facts.items()]
    full = f"{budget.refused} rows of pictures are left out: the page is full."
    warn = paragraph(full, "warn") if budget.refused else ""
    return section("protocol", "Protocol", warn, html_table(("what", "how"), rows))
