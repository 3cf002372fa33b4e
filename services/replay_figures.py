"""Pictures of replays: the real row and every world model's row below it, at the same times."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from contracts.constants import FRAME_HZ, VIEWS
from replay.store import clip_indices
from services.judging import CLIP_COLUMNS, LONG_COLUMNS
from services.replay_items import Kind, ReplayItem
from services.replay_report_data import REAL, ReplayReport, VariantResults
from services.report_html import absent, figure, paragraph, section, text
from services.report_media import Budget, scale_of, strip

JPEG_QUALITY = 88
Pictures = UInt8[np.ndarray, "columns 3 height width 3"]


def clip_sheets(report: ReplayReport, budget: Budget) -> str:
    """The paper's Figure 6: what happened, and what each world model shows."""
    words = (
        "Top row: the cameras. Below: each world model, at the same times after the known frame."
    )
    sheets = _sheets(report, "clip", budget)
    return section(
        "clips", "Clips", paragraph(words), *(sheets or [absent("None were asked for.")])
    )


def long_sheets(report: ReplayReport, budget: Budget) -> str:
    """The paper's Figure 5: replays of 20 s, or as long as an episode lasts."""
    words = (
        "The longest episodes, their recorded actions replayed from the first frame on. The world "
        "model sees nothing real after it."
    )
    sheets = _sheets(report, "long", budget)
    return section(
        "long", "Long replays", paragraph(words), *(sheets or [absent("None were asked for.")])
    )


def futures(report: ReplayReport, budget: Budget) -> str:
    """The paper's Figure 8: one start, the policy, as many seeds as futures."""
    parts = [
        paragraph(
            "One real start, the policy acting in the world model, another seed in every row: what "
            "they share is the start. Equal rows mean that policy and world model have no doubt."
        )
    ]
    for variant in report.world_models:
        if variant.no_futures:
            parts.append(absent(f"{variant.name}: none, {variant.no_futures}"))
        elif variant.of("future"):
            parts.append(_futures_of(variant, report, budget))
    return section("futures", "Futures of one start", *parts)


def _futures_of(variant: VariantResults, report: ReplayReport, budget: Budget) -> str:
    drawn = variant.of("future")
    first = drawn[0][0]
    episode = report.episodes[first.episode]
    rows = []
    for number, (_, found) in enumerate(drawn):
        judged = f", P('yes') {float(found['p_yes']):.2f}" if "p_yes" in found else ""
        sides = [found["pictures"][:, view] for view in (0, 2)]
        rows.append(_row(f"{number + 1}{judged}", np.concatenate(sides), budget))
    caption = (
        f"{variant.name}: {first.episode} at 0 s, “{episode.instruction}”; exterior 1 on the left, "
        f"wrist on the right; {_times(first)}"
    )
    return figure(caption, f'<div class="wide sheet">{"".join(rows)}</div>')


def _sheets(report: ReplayReport, kind: Kind, budget: Budget) -> list[str]:
    wanted = [item for item, _ in report.variant(REAL).of(kind) if item.pictured]
    return [_sheet(report, item, budget) for item in wanted]


def _sheet(report: ReplayReport, item: ReplayItem, budget: Budget) -> str:
    variants = [report.variant(REAL), *report.world_models]
    found = {one.name: one.found[one.items.index(item)] for one in variants}
    rows = []
    for view, name in enumerate(VIEWS):
        for variant, measured in found.items():
            frames: Pictures = measured["pictures"]
            rows.append(_row(f"{variant}, {name.replace('_', ' ')}", frames[:, view], budget))
    episode = report.episodes[item.episode]
    score = "; ".join(
        f"{one.name} {found[one.name]['psnr'].mean():.1f} dB" for one in report.world_models
    )
    begin = item.start / FRAME_HZ
    caption = f"{item.episode} from {begin:g} s, “{episode.instruction}”; {_times(item)}; {score}"
    return figure(caption, f'<div class="wide sheet">{"".join(rows)}</div>')


def _times(item: ReplayItem) -> str:
    """When the kept pictures are from."""
    columns = LONG_COLUMNS if item.kind == "long" else CLIP_COLUMNS
    seconds = [index / FRAME_HZ for index in clip_indices(item.frames + 1, columns)]
    return "at " + ", ".join(f"{second:g}" for second in seconds) + " s"


def _row(label: str, frames: UInt8[np.ndarray, "columns h w 3"], budget: Budget) -> str:
    picture = strip(frames)
    wide = picture.shape[1] * max(1, scale_of(frames.shape[2]) // 2)
    uri = budget.uri("image/jpeg", _jpeg(picture))
    if not uri:
        return ""
    return (
        f'<div class="row"><div class="label">{text(label)}</div>'
        f'<img src="{uri}" alt="{text(label)}" style="width:{wide}px"></div>'
    )


def _jpeg(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
