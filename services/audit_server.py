"""Serves the audit page: one HTML file, its script and style, JSON, and films; stdlib only."""

import hashlib
import hmac
import secrets
import traceback
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from configs.checks import is_loopback
from services.audit import AuditRun
from services.audit_routes import GET, POST, Reply, Route, json_of, said, text_of

HERE = Path(__file__).parent
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
STATIC = {  # the only files that are served, by address
    "/": HERE / "audit.html",
    **{
        f"/{name}": HERE / name
        for name in (
            *("report.css", "audit.css"),
            *("audit.js", "audit_tools.js", "audit_label.js", "audit_views.js"),
        )
    },
}
COOKIE = "vlaw_audit"
BODY_BYTES = 4 * 2**20  # a CSV of about 30,000 labels
STRANGERS_BYTES = 4096  # of whoever does not know the token
PATIENCE_S = 20.0  # for a client that stops in the middle of a request
POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; form-action 'self'"


class RefusedError(Exception):
    """A request that is not allowed; ``status`` says why."""

    def __init__(self, status: HTTPStatus, words: str) -> None:
        super().__init__(words)
        self.status = status


class AuditServer(ThreadingHTTPServer):
    """``token`` is what clients must know; "" lets everybody in who names this machine a loopback.

    Raises:
        OSError: it cannot listen there.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], run: AuditRun, token: str) -> None:
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        self.run, self.token = run, token
        super().__init__(address, _Handler)

    @property
    def uri(self) -> str:
        """The address to open. The token follows ``#``, which browsers send to nobody."""
        host, port = self.server_address[:2]
        name = f"[{host}]" if ":" in str(host) else host
        return f"http://{name}:{port}/" + (f"#token={quote(self.token)}" if self.token else "")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up; what the page itself does wrong is told in ``_answer``."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE_S
    server: AuditServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self._answer(GET)

    def do_POST(self) -> None:
        self._answer(POST)

    def version_string(self) -> str:
        return "vlaw"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Nothing: whoever labels does not watch the console."""

    def _answer(self, routes: dict[str, Route]) -> None:
        try:
            reply = self._reply(routes)
        except RefusedError as error:
            reply = said(error.status, str(error))
        except ValueError as error:
            reply = said(HTTPStatus.BAD_REQUEST, str(error))
        except OSError as error:
            reply = said(HTTPStatus.INSUFFICIENT_STORAGE, f"not stored: {error.strerror or error}")
        except Exception:  # noqa: BLE001 - a bug must not end the page of a person at work
            traceback.print_exc()
            reply = said(HTTPStatus.INTERNAL_SERVER_ERROR, "a bug; the console tells more")
        self._send(reply)

    def _reply(self, routes: dict[str, Route]) -> Reply:
        parts = urlsplit(self.path)
        body = self._body() if self.command == "POST" else b""
        if self.command == "POST":
            self._require_own_origin()
        self._require_own_host()
        if self.command == "GET" and parts.path in STATIC:
            file = STATIC[parts.path]
            return Reply(file.read_bytes(), f"{KINDS[file.suffix]}; charset=utf-8")
        if parts.path == "/api/login" and self.command == "POST":
            return self._login(json_of(body))
        if not self._knows_token():
            raise RefusedError(HTTPStatus.UNAUTHORIZED, "give the token of the printed address")
        if parts.path not in routes:
            raise RefusedError(HTTPStatus.NOT_FOUND, "no such address")
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        return routes[parts.path](self.server.run, query, body)

    def _body(self) -> bytes:
        """All of it: half a file must not be taken for a whole one."""
        given = self.headers.get("Content-Length", "")
        if not (given.isascii() and given.isdigit()):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
        limit = BODY_BYTES if self._knows_token() else STRANGERS_BYTES
        if len(given) > 9 or int(given) > limit:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {limit} bytes")
        try:
            body = self.rfile.read(int(given))
        except OSError as error:
            raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, "the request never ended") from error
        if len(body) < int(given):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the request broke off")
        return body

    def _require_own_origin(self) -> None:
        """Another page in the same browser must not label. Browsers always send it with a POST."""
        own = self.headers.get("Host", "")
        if self.headers.get("Origin") not in (f"http://{own}", f"https://{own}"):
            raise RefusedError(HTTPStatus.FORBIDDEN, "Origin is not this page")

    def _require_own_host(self) -> None:
        """Without a token: a name that somebody else's DNS leads here would get past the browser's
        same-origin rule."""
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        if not self.server.token and not is_loopback(host):
            raise RefusedError(HTTPStatus.FORBIDDEN, "open the page as localhost or 127.0.0.1")

    def _knows_token(self) -> bool:
        if not self.server.token:
            return True
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return self._is_token(bearer) or self._is_cookie()

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.server.token.encode())

    def _is_cookie(self) -> bool:
        given = _cookie(self.headers.get("Cookie", ""))
        return hmac.compare_digest(given.encode(), cookie_of(self.server.token).encode())

    def _login(self, facts: dict[str, Any]) -> Reply:
        given = text_of(facts, "token")
        if self.server.token and not self._is_token(given):
            raise RefusedError(HTTPStatus.UNAUTHORIZED, "that is not the token")
        cookie = f"{COOKIE}={cookie_of(self.server.token)}; HttpOnly; SameSite=Strict; Path=/"
        return Reply(b"{}", cookie=cookie if self.server.token else "")

    def _send(self, reply: Reply) -> None:
        body, part = _part(reply, self.headers.get("Range", ""))
        self.send_response(HTTPStatus.PARTIAL_CONTENT if part else reply.status)
        for key, value in _headers(reply, len(body), part).items():
            self.send_header(key, value)
        if reply.status >= HTTPStatus.BAD_REQUEST:
            self.close_connection = True  # its body may not have been read
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def _headers(reply: Reply, length: int, part: str) -> dict[str, str]:
    found = {
        "Content-Type": reply.kind,
        "Content-Length": str(length),
        "Cache-Control": "private, max-age=3600" if reply.keep else "no-store",
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    if reply.keep:
        found["Accept-Ranges"] = "bytes"  # or iPhones play no film
    if part:
        found["Content-Range"] = part
    if reply.cookie:
        found["Set-Cookie"] = reply.cookie
    if reply.name:
        found["Content-Disposition"] = f'attachment; filename="{reply.name}"'
    return found


def _part(reply: Reply, wanted: str) -> tuple[bytes, str]:
    """The bytes of a film that ``Range: bytes=<first>-[<last>]`` asks for, and which they are; all
    of them for anything else, as RFC 9110 allows."""
    first, dash, last = wanted.removeprefix("bytes=").partition("-")
    numbers = all(one.isascii() and one.isdigit() for one in (first, last or "0"))
    size = len(reply.body)
    if not (reply.keep and dash and numbers and len(wanted) < 40 and int(first) < size):
        return reply.body, ""
    end = min(int(last) if last else size - 1, size - 1)
    if end < int(first):
        return reply.body, ""
    return reply.body[int(first) : end + 1], f"bytes {first}-{end}/{size}"


def cookie_of(token: str) -> str:
    """What a browser keeps of a token: not the token, and nothing that a cookie cannot hold."""
    return hashlib.sha256(f"vlaw audit {token}".encode()).hexdigest()


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def new_token() -> str:
    return secrets.token_urlsafe(18)
