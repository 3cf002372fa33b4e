"""What the audit page's server answers to each address; knows nothing of sockets."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any

from services.audit import AuditRun, Filter
from services.audit_table import Line


@dataclass(frozen=True, slots=True)
class Reply:
    body: bytes
    kind: str = "application/json"
    status: HTTPStatus = HTTPStatus.OK
    cookie: str = ""
    name: str = ""  # of the file that a browser saves
    keep: bool = False  # a film: it never changes


Route = Callable[[AuditRun, dict[str, str], bytes], Reply]


def _plain(value: Any) -> Any:
    """Numbers that JSON has no word for become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def told(value: Any) -> Reply:
    return Reply(json.dumps(_plain(value)).encode())


def said(status: HTTPStatus, words: str) -> Reply:
    return Reply(json.dumps({"error": words}).encode(), status=status)


def json_of(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError("the body is no JSON") from error
    if not isinstance(found, dict):
        raise ValueError("the body is no JSON object")
    return found


def text_of(facts: dict[str, Any], name: str) -> str:
    value = facts.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is missing, or no text")
    return value


def _films(run: AuditRun, query: dict[str, str], _: bytes) -> Reply:
    film = run.film(query.get("store", ""), query.get("id", ""))
    return Reply(film, "video/mp4", keep=True)


def _blind_film(run: AuditRun, query: dict[str, str], _: bytes) -> Reply:
    film = run.blind_film(query.get("key", ""), query.get("wide") == "1")
    return Reply(film, "video/mp4", keep=True)


def _picture(run: AuditRun, query: dict[str, str], _: bytes) -> Reply:
    picture = run.picture(query.get("store", ""), query.get("id", ""))
    return Reply(picture, "image/jpeg", keep=True)


def _listing(run: AuditRun, query: dict[str, str], _: bytes) -> Reply:
    names = ("store", "task", "iteration", "verdict", "label")
    wanted = Filter(**{name: query[name] for name in names if name in query})
    page = query.get("page", "0")
    if not (page.isascii() and page.isdigit() and len(page) < 9):
        raise ValueError("page is no number")
    return told(run.listing(wanted, int(page)))


def _detail(run: AuditRun, query: dict[str, str], _: bytes) -> Reply:
    return told(run.detail(query.get("store", ""), query.get("id", "")))


def _label(run: AuditRun, _: dict[str, str], body: bytes) -> Reply:
    facts = json_of(body)
    run.labelling.answer(*(text_of(facts, name) for name in ("key", "answer", "who")))
    return told({"samples": run.labelling.progress()})


def _import(run: AuditRun, _: dict[str, str], body: bytes) -> Reply:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise ValueError("line 1: this is no CSV in UTF-8") from error
    return told({"imported": run.labelling.take(text)})


def line_facts(line: Line) -> dict[str, Any]:
    """A row of Table 3 as JSON has it; rates of the sample with their Wilson intervals."""
    counts = line.counts
    rates = {
        name: {"value": getattr(counts, name), "interval": asdict(getattr(counts, interval))}
        for name, interval in (
            ("precision", "precision_interval"),
            ("recall", "recall_interval"),
            ("false_positive_rate", "false_positive_interval"),
        )
    }
    return asdict(line) | {"sample": asdict(counts) | rates}


GET: dict[str, Route] = {
    "/api/overview": lambda run, _, __: told(run.overview()),
    "/api/trajectories": _listing,
    "/api/trajectory": _detail,
    "/api/film": _films,
    "/api/picture": _picture,
    "/api/queue": lambda run, query, _: told(run.labelling.queue(query.get("task", ""))),
    "/api/blind-film": _blind_film,
    "/api/table": lambda run, _, __: told([line_facts(line) for line in run.labelling.table()]),
    "/api/labels.csv": lambda run, _, __: Reply(
        run.labelling.export().encode(), "text/csv; charset=utf-8", name="labels.csv"
    ),
}
POST: dict[str, Route] = {"/api/label": _label, "/api/labels.csv": _import}
