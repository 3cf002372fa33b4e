"""The report's sections on replay, films, losses, lineage and configuration."""

import math
from itertools import groupby

import numpy as np

from services.report_charts import Series, line_chart
from services.report_data import Film, LossCurve, ReplayQuality, ReportData, Sheet
from services.report_html import (
    DASH,
    absent,
    details,
    figure,
    fixed,
    grid,
    number,
    paragraph,
    section,
    table,
    text,
)
from services.report_media import Budget, mp4, picture_of, png, scale_of, strip

COPY = "copy last frame"


def world_model(data: ReportData) -> str:
    """PSNR and SSIM of replayed actions by seconds ahead, beside repeating the last frame."""
    rows = data.replays
    if not rows:
        body = absent("Not run: no recorded episode was replayed in the world model.")
    else:
        charts = [
            figure("PSNR", line_chart(_replay_series(rows, "psnr"), "seconds ahead", "dB")),
            figure("SSIM", line_chart(_replay_series(rows, "ssim"), "seconds ahead", "SSIM")),
        ]
        body = paragraph(
            "Recorded actions replayed from real first frames. A world model below the dashed line "
            "is worse than a still picture."
        )
        headers = (
            "world model",
            "episodes",
            "which",
            "seconds ahead",
            "PSNR [dB]",
            "copy",
            "SSIM",
            "copy",
        )
        body += grid(charts) + table(
            headers, [cells for row in rows for cells in _replay_cells(row)]
        )
    promise = paragraph(data.promise, "promise") if len(rows) > 1 else ""
    return section("world-model", "World model", body, promise, _unavailable(data))


def _replay_series(rows: list[ReplayQuality], name: str) -> list[Series]:
    values = {"psnr": [r.psnr for r in rows], "ssim": [r.ssim for r in rows]}[name]
    copies = {"psnr": rows[-1].copy_psnr, "ssim": rows[-1].copy_ssim}[name]
    lines = [
        Series(row.version, (2, 0, 1, 3)[i % 4], row.seconds.tolist(), values[i].tolist())
        for i, row in enumerate(rows)
    ]
    return [*lines, Series(COPY, 4, rows[-1].seconds.tolist(), copies.tolist(), dashed=True)]


def _replay_cells(row: ReplayQuality) -> list[list[str]]:
    columns = (row.seconds, row.psnr, row.copy_psnr, row.ssim, row.copy_ssim)
    return [
        [
            text(row.version),
            str(row.episodes),
            text(row.which or DASH),
            number(seconds),
            *(fixed(value, 1) for value in (psnr, copy_psnr)),
            *(fixed(value, 3) for value in (ssim, copy_ssim)),
        ]
        for seconds, psnr, copy_psnr, ssim, copy_ssim in zip(*columns, strict=True)
    ]


def _unavailable(data: ReportData) -> str:
    if not data.unavailable:
        return ""
    rows = [[text(one.name), f"unavailable: {text(one.reason)}"] for one in data.unavailable]
    return "<h3>Metrics that this run could not have</h3>" + table(("metric", "why not"), rows)


def films(data: ReportData, budget: Budget) -> str:
    """Playable films and contact sheets, as many as fit the page."""
    shown = [_film(film, budget) for film in data.films]
    sheets = [_sheet(sheet, budget) for sheet in data.sheets]
    if not data.films and not data.sheets:
        return section("films", "Films", absent("No films: nothing was imagined."))
    left_out = (
        paragraph(
            f"{budget.refused} films or rows of pictures are left out: the page is full.",
            "warn",
        )
        if budget.refused
        else ""
    )
    return section("films", "Films", grid(shown, "grid films"), *sheets, left_out)


def _film(film: Film, budget: Budget) -> str:
    frames = picture_of(film)
    uri = budget.uri("video/mp4", mp4(frames, film.fps))
    if not uri:
        return ""
    both = film.real is not None
    judged = f", P('yes') = {film.p_yes:.3f}" if math.isfinite(film.p_yes) else ""
    sides = "<span>real</span><span>imagined</span>" if both else "<span>imagined</span>"
    height, width = frames.shape[1:3]
    video = (
        f'<div class="sides">{sides}</div>'
        f'<video src="{uri}" width="{width}" height="{height}" muted loop controls playsinline '
        'preload="metadata"></video>'
    )
    return figure(
        f"{film.caption}{judged}", video, f'<p class="said">“{text(film.instruction)}”</p>'
    )


def _sheet(sheet: Sheet, budget: Budget) -> str:
    rows = []
    for label, frames in zip(sheet.labels, sheet.frames, strict=True):
        picture = strip(frames)
        uri = budget.uri("image/png", png(picture))
        wide = picture.shape[1] * max(1, scale_of(frames.shape[2]) // 2)
        if uri:
            rows.append(
                f'<div class="row"><div class="label">{text(label)}</div>'
                f'<img src="{uri}" alt="{text(label)}" style="width:{wide}px"></div>'
            )
    return figure(sheet.caption, f'<div class="wide sheet">{"".join(rows)}</div>') if rows else ""


def learning(data: ReportData) -> str:
    """Loss curves, one chart per learner."""
    if not data.losses:
        return section("learning", "Learning", absent("Not run: no learner trained."))
    ordered = sorted(data.losses, key=lambda curve: curve.learner)
    charts = [
        _loss_chart(name, list(curves)) for name, curves in groupby(ordered, lambda c: c.learner)
    ]
    rows = [_loss_cells(curve) for curve in ordered]
    headers = ("learner", "stage", "steps", "first 10 %", "last 10 %", "not finite")
    marked = [not np.isfinite(curve.losses).all() for curve in ordered]
    return section("learning", "Learning", grid(charts), table(headers, rows, marked))


def _loss_chart(learner: str, curves: list[LossCurve]) -> str:
    series = [
        Series(curve.name, k % 4, curve.steps.astype(float).tolist(), curve.losses.tolist())
        for k, curve in enumerate(curves)
    ]
    finite = np.concatenate([curve.losses[np.isfinite(curve.losses)] for curve in curves])
    log = bool(len(finite) and finite.min() > 0)
    drawn = line_chart(series, "step", "loss", log=log)
    title = learner.replace("_", " ")
    return figure(title, drawn or absent("No finite loss to draw."))


def _loss_cells(curve: LossCurve) -> list[str]:
    tenth = max(1, len(curve.losses) // 10)
    bad = np.flatnonzero(~np.isfinite(curve.losses))
    broken = f"{len(bad)}, first at step {number(float(curve.steps[bad[0]]))}" if len(bad) else "0"
    ends = [_mean(part) for part in (curve.losses[:tenth], curve.losses[-tenth:])]
    name = text(curve.learner.replace("_", " "))
    return [name, text(curve.name), str(len(curve.losses)), *map(number, ends), broken]


def _mean(values: np.ndarray) -> float:
    good = values[np.isfinite(values)]
    return float(good.mean()) if len(good) else math.nan


def lineage(data: ReportData) -> str:
    """Which checkpoint came from which, by how many steps on what."""
    if not data.lineage:
        return section("lineage", "Lineage", absent("No checkpoint was published."))
    rows = [
        [
            f"{text(v.kind.replace('_', ' '))} v{v.version}",
            text(v.parent or DASH),
            number(v.steps),
            "<br>".join(f"{text(name)}: {number(count)}" for name, count in v.data.items()) or DASH,
            f'<code title="{text(v.checksum)}">{text(v.checksum[:12])}</code>',
        ]
        for v in data.lineage
    ]
    headers = ("checkpoint", "from", "steps", "trained on", "sha256")
    return section("lineage", "Lineage", table(headers, rows))


def notes(data: ReportData) -> str:
    """What was not run, in the run's own words, and the configuration."""
    items = "".join(f"<li>{text(note)}</li>" for note in data.notes)
    rows = [[f"<code>{text(flag)}</code>", text(value)] for flag, value in _flags(data.config)]
    config = details("Configuration", table(("flag", "value"), rows))
    return section("notes", "Notes", f"<ul>{items}</ul>" if items else "", config)


def _flags(config: dict[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """``{"a": {"b": 1}}`` -> ``[("a.b", 1)]``: as the command line spells it."""
    found: list[tuple[str, object]] = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            found += _flags(value, f"{name}.")
        else:
            found.append((name, value))
    return found
