"""The run's report: one self-contained HTML page, and the same numbers as JSON."""

from collections.abc import Mapping
from pathlib import Path

from services.report_cost import cost
from services.report_data import ReportData
from services.report_html import document
from services.report_live import PLACE, RELOAD_S, Now, running
from services.report_material import films, learning, lineage, notes, world_model
from services.report_media import Budget
from services.report_numbers import to_json
from services.report_sections import imagination, judgement, success, summary, throughput
from services.stages import write_json

MEDIA_BYTES = 7_000_000  # of base64; the rest of a page is below 1 MB
SCRIPT = Path(__file__).with_name("report.js")
PLACES = {
    "summary": "Summary",
    "success": "Success",
    "imagined": "Imagined",
    "reward": "Reward",
    "world-model": "World model",
    "films": "Films",
    "learning": "Learning",
    "throughput": "Throughput",
    "cost": "Cost",
    "lineage": "Lineage",
    "notes": "Notes",
}


def write_report(data: ReportData, folder: Path) -> Path:
    """Write ``report.html`` and ``report.json`` into ``folder`` and return the page's path.

    The page needs no network and no other file. Either file is whole or absent after a crash;
    equal data give equal files.

    Raises:
        ValueError: a film without frames, or whose halves differ in size.
    """
    write_json(folder / "report.json", to_json(data))
    return _replace(folder / "report.html", page(data))


def write_live(title: str, body: str, now: Now, folder: Path) -> Path:
    """Write the page of a run that goes on: what happens now, then ``body`` (see ``sections``)."""
    head = "" if now.stopped else f'<meta http-equiv="refresh" content="{RELOAD_S}">'
    shown = _assembled((title, now.written), running(now) + body, {PLACE[0]: PLACE[1]}, head)
    return _replace(folder / "report.html", shown)


def _replace(path: Path, content: str) -> Path:
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(content, encoding="utf-8")
    return partial.replace(path)


def page(data: ReportData, media_bytes: int = MEDIA_BYTES) -> str:
    """The whole page as text, with at most ``media_bytes`` of films and pictures."""
    return _assembled((data.title, data.created), sections(data, media_bytes))


def sections(data: ReportData, media_bytes: int = MEDIA_BYTES) -> str:
    """Everything below the page's head."""
    budget = Budget(media_bytes)
    return "".join(
        [
            summary(data),
            success(data),
            imagination(data),
            judgement(data),
            world_model(data),
            films(data, budget),
            learning(data),
            throughput(data),
            cost(data),
            lineage(data),
            notes(data),
        ]
    )


def _assembled(
    title: tuple[str, str], body: str, more: Mapping[str, str] | None = None, head: str = ""
) -> str:
    """A page. ``title``: its name and when it was made; ``more``: links before the usual ones."""
    script = f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>"
    return document(title, {**(more or {}), **PLACES}, body, head, script)
