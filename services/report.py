"""The run's report: one self-contained HTML page, and the same numbers as JSON."""

from pathlib import Path

from services.report_data import ReportData
from services.report_html import text
from services.report_material import films, learning, lineage, notes, world_model
from services.report_media import Budget
from services.report_numbers import to_json
from services.report_sections import imagination, judgement, success, summary, throughput
from services.stages import write_json

MEDIA_BYTES = 7_000_000  # of base64; the rest of a page is below 1 MB
STYLE = Path(__file__).with_name("report.css")
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
    path = folder / "report.html"
    partial = folder / "report.html.tmp"
    partial.write_text(page(data), encoding="utf-8")
    partial.replace(path)
    return path


def page(data: ReportData, media_bytes: int = MEDIA_BYTES) -> str:
    """The whole page as text, with at most ``media_bytes`` of films and pictures."""
    budget = Budget(media_bytes)
    parts = [
        summary(data),
        success(data),
        imagination(data),
        judgement(data),
        world_model(data),
        films(data, budget),
        learning(data),
        throughput(data),
        lineage(data),
        notes(data),
    ]
    links = "".join(f'<a href="#{name}">{text(label)}</a>' for name, label in PLACES.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{text(data.title)}</title>"
        f"<style>{STYLE.read_text(encoding='utf-8')}</style></head><body>"
        f"<header><h1>{text(data.title)}</h1><p>{text(data.created)}</p></header>"
        f"<nav>{links}</nav><main>{''.join(parts)}</main>"
        f"<script>{SCRIPT.read_text(encoding='utf-8')}</script></body></html>\n"
    )
