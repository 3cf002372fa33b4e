"""What the console's port answers to plain requests, and which ones may become a websocket."""

from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from configs.checks import is_loopback

SOCKET = "/socket"
_FOLDER = Path(__file__).with_name("page")
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/console.css": ("console.css", "text/css; charset=utf-8"),
    "/console.js": ("console.js", "text/javascript; charset=utf-8"),
    "/keys.js": ("keys.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; "
        "connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Door:
    """Refuses pages of other sites. Without a token it also refuses every name but this machine's,
    since a stranger's name can be made to point here (DNS rebinding)."""

    def __init__(self, open_to_any_name: bool) -> None:
        self._any_name = open_to_any_name
        self._files = {
            path: (_FOLDER.joinpath(name).read_bytes(), kind)
            for path, (name, kind) in _FILES.items()
        }

    def answer(self, client: ServerConnection, request: Request) -> Response | None:
        """The response to a plain request; None lets the client open the websocket."""
        path = request.path.partition("?")[0]
        hosts, origins = (request.headers.get_all(name) for name in ("Host", "Origin"))
        if len(hosts) != 1 or not (self._any_name or is_loopback(_name(hosts[0]))):
            return client.respond(
                HTTPStatus.FORBIDDEN, "open the console as http://127.0.0.1, or give it a token\n"
            )
        if path == SOCKET:
            if origins and (len(origins) != 1 or _site(origins[0]) != hosts[0]):
                return client.respond(HTTPStatus.FORBIDDEN, "a page of another site asked\n")
            return None
        if path == "/healthz":
            return client.respond(HTTPStatus.OK, "OK\n")
        if path not in self._files:
            return client.respond(HTTPStatus.NOT_FOUND, "nothing here\n")
        body, kind = self._files[path]
        headers = Headers({"Content-Type": kind, "Content-Length": str(len(body)), **_HEADERS})
        headers["Connection"] = "close"
        return Response(HTTPStatus.OK, "OK", headers, body)


def _name(host: str) -> str:
    """``[::1]:8081`` -> ``::1``; "" for what is no host."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _site(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
