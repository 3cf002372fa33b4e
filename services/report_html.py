"""Small pieces of HTML; every text that comes from data is escaped here."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

STYLE = Path(__file__).with_name("report.css")
DASH = "\u2013"  # an en dash, where a number is missing


def text(value: object) -> str:
    return html.escape(str(value), quote=True)


def number(value: float | int, digits: int = 3) -> str:
    """Significant digits; a dash for a number that nobody has."""
    if not math.isfinite(value):
        return DASH
    if float(value).is_integer() and abs(value) < 1e7:
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{value:.{digits}g}" if abs(value) < 1e5 else f"{value:.3e}"


def fixed(value: float | int, decimals: int) -> str:
    return f"{value:.{decimals}f}" if math.isfinite(value) else DASH


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else DASH


def duration(seconds: float | int) -> str:
    """``4210`` -> ``1 h 10 min``; below a minute with one decimal."""
    if not math.isfinite(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], marked: Sequence[bool] = ()
) -> str:
    """A table that scrolls sideways when it is wide. Cells are HTML; headers are text.

    ``marked`` rows stand out: controls and refusals.
    """
    head = "".join(f'<th scope="col">{text(header)}</th>' for header in headers)
    body = []
    for index, row in enumerate(rows):
        kind = ' class="mark"' if index < len(marked) and marked[index] else ""
        body.append(f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def section(name: str, title: str, *parts: str) -> str:
    return f'<section id="{name}"><h2>{text(title)}</h2>{"".join(parts)}</section>'


def paragraph(words: str, kind: str = "") -> str:
    """A paragraph of text (escaped)."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{text(words)}</p>"


def absent(words: str) -> str:
    """Says that something was not run, where its numbers would be."""
    return paragraph(words, "absent")


def grid(parts: Iterable[str], kind: str = "grid") -> str:
    return f'<div class="{kind}">{"".join(parts)}</div>'


def tile(label: str, value: str, detail: str) -> str:
    return (
        f'<div class="tile"><div class="label">{text(label)}</div>'
        f'<div class="value">{text(value)}</div><div class="detail">{text(detail)}</div></div>'
    )


def figure(caption: str, body: str, legend: str = "") -> str:
    """``body`` and ``legend`` are HTML; ``caption`` is text."""
    return f"<figure><figcaption>{text(caption)}</figcaption>{body}{legend}</figure>"


def details(summary: str, body: str) -> str:
    return f"<details><summary>{text(summary)}</summary>{body}</details>"


def document(
    title: tuple[str, str], links: Mapping[str, str], body: str, head: str = "", script: str = ""
) -> str:
    """A whole page. ``title``: its name and when it was made; ``links``: labels of its sections;
    ``body``, ``head`` and ``script`` are HTML."""
    menu = "".join(f'<a href="#{name}">{text(label)}</a>' for name, label in links.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark">{head}'
        f"<title>{text(title[0])}</title>"
        f"<style>{STYLE.read_text(encoding='utf-8')}</style></head><body>"
        f"<header><h1>{text(title[0])}</h1><p>{text(title[1])}</p></header>"
        f"<nav>{menu}</nav><main>{body}</main>{script}</body></html>\n"
    )
