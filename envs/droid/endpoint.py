"""The host's door for a run: one client drives, anybody with the token may look."""

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from configs.checks import is_loopback
from contracts.wire import pack
from envs.droid.control import Control, Rig
from envs.droid.messages import DRIVES, MAX_REQUEST_BYTES, Request, read_request, tick_message
from envs.droid.operator import Operator

LABEL_POLL_S = 0.1
PING_S = 2.0  # a link that is cut shows within twice that; the arm is held long before
BAD_REQUEST = 1008  # of the websocket protocol: policy violation

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """``token`` is what a client must send as its bearer token, "" for none (loopback only)."""

    host: str = "127.0.0.1"
    port: int = 8090
    token: str = ""

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and len(self.token) < 16:
            raise ValueError(
                f"--host {self.host} is reachable from other machines: whoever reaches it can move "
                "the arm. Give --token-file with at least 16 characters, or use 127.0.0.1"
            )


class Endpoint:
    """Speaks ``envs.droid.messages``. A request that makes no sense is refused; it costs whoever
    drives the connection, and the arm is held."""

    def __init__(self, control: Control, rig: Rig, facts: Answer, settings: EndpointSettings):
        self._control, self._operator = control, rig.operator
        self._facts, self._settings = facts, settings
        self._driver: object = None

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """Serve while the block runs; yields the port. Raises OSError where it cannot listen."""
        settings = self._settings
        options = {
            "compression": None,
            "max_size": MAX_REQUEST_BYTES,
            "process_request": self._admit,
            "ping_interval": PING_S,
            "ping_timeout": PING_S,
        }
        async with serve(self._talk, settings.host, settings.port, **options) as server:
            yield next(iter(server.sockets)).getsockname()[1]

    def _admit(self, client: ServerConnection, request: HttpRequest) -> Response | None:
        if request.headers.get_all(
            "Origin"
        ):  # only browsers send it, and no page has business here
            return client.respond(HTTPStatus.FORBIDDEN, "this is no door for web pages\n")
        given = ", ".join(request.headers.get_all("Authorization")).encode()
        wanted = f"Bearer {self._settings.token}".encode()
        if self._settings.token and not hmac.compare_digest(given, wanted):
            return client.respond(HTTPStatus.UNAUTHORIZED, "a wrong token, or none\n")
        return None

    async def _talk(self, client: ServerConnection) -> None:
        talk = _Talk(client, self._control, self._operator)
        sender = asyncio.create_task(talk.send_on())
        why = "it left"
        try:
            talk.put({"greeting": self._facts})
            async for frame in client:
                self._hear(client, talk, frame)
        except ConnectionClosed as error:
            why = str(error)
        except ValueError as error:
            why = "it sent nonsense"
            await client.close(BAD_REQUEST, str(error)[:120])
        finally:
            if self._driver is client:
                self._driver = None
                self._control.lost(why)
            await talk.close(sender)

    def _hear(self, client: object, talk: "_Talk", frame: str | bytes) -> None:
        """Raises ValueError for nonsense from whoever drives; others are told."""
        try:
            request = read_request(frame)
        except ValueError as error:
            if client is self._driver:
                raise
            talk.answer(0, {"error": str(error)})
            return
        if request.ask in DRIVES and not self._takes_the_wheel(client):
            talk.answer(request.number, {"error": "another client drives this robot"})
            return
        talk.serve(request, self._facts)

    def _takes_the_wheel(self, client: object) -> bool:
        if self._driver is None:
            self._driver = client
        return self._driver is client


class _Talk:
    """One client's connection: what the control thread tells it is sent in that order."""

    def __init__(self, client: ServerConnection, control: Control, operator: Operator) -> None:
        self._client, self._control, self._operator = client, control, operator
        self._loop = asyncio.get_running_loop()
        self._out: asyncio.Queue[Answer] = asyncio.Queue()
        self._waiting: set[asyncio.Task[None]] = set()

    def put(self, message: Answer) -> None:
        """From the event loop."""
        self._out.put_nowait(message)

    def answer(self, number: int, message: Answer) -> None:
        """From the event loop."""
        self.put({"number": number} | message)

    def tell(self, number: int) -> Callable[[Answer], None]:
        """What another thread answers through."""

        def tell(message: Answer) -> None:
            with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self.answer, number, message)

        return tell

    def serve(self, request: Request, facts: Answer) -> None:
        given, control, tell = request.given, self._control, self.tell(request.number)
        match request.ask:
            case "describe":
                self.answer(request.number, facts)
            case "health":
                self.answer(request.number, control.health())
            case "observe":
                control.observe(tell)
            case "hold":
                control.hold(tell)
            case "end":
                control.end(given["ending"], tell)
            case "play":
                control.play(given["actions"], given["seen"], tell, given["latency_s"])
            case "reset":
                episode = {name: given[name] for name in ("policy_version", "max_ticks")}
                episode["trajectory_id"] = given["episode"]
                control.reset(given["task"], given["seed"], episode, tell)
            case _:
                task = asyncio.create_task(self._label(request.number, given["episode"]))
                self._waiting.add(task)
                task.add_done_callback(self._waiting.discard)

    async def _label(self, number: int, episode: str) -> None:
        while (said := self._operator.label(episode)) is None:
            await asyncio.sleep(LABEL_POLL_S)
        self.answer(number, {"label": said})

    async def send_on(self) -> None:
        with suppress(ConnectionClosed):
            while True:
                message = await self._out.get()
                if "tick" in message and not isinstance(message["tick"], int):
                    message = message | {"tick": tick_message(message["tick"])}
                await self._client.send(pack(message))

    async def close(self, sender: asyncio.Task[None]) -> None:
        for task in (*self._waiting, sender):
            task.cancel()
        await asyncio.gather(*self._waiting, sender, return_exceptions=True)
