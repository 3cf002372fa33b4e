"""Serves the console: one static page and one websocket, for whoever holds the token."""

import asyncio
import hmac
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from configs.checks import is_loopback
from envs.droid.console import messages
from envs.droid.console.pages import Door
from envs.droid.desk import Desk, RefusedError
from envs.droid.serving import in_thread

MIN_TOKEN = 16  # characters
HELLO_S = 5.0  # to say the token in
WATCH_S = 0.1  # between two looks at the host's health
PUSH_EVERY = 2  # looks, unless something changed
PICTURE_S = 0.1  # at least, between two pictures of a camera
HEALTH_S = 2.0  # without an answer of the host is a fault of it
DENIED = 4401  # close code of the websocket: a wrong token, or none

_quiet = logging.getLogger("envs.droid.console.websocket")
_quiet.setLevel(logging.CRITICAL)  # the library's own lines would show what strangers send


@dataclass(frozen=True, slots=True)
class Rig:
    """What the console asks of the robot's host, each from a thread of its own.

    ``cameras`` gives the newest JPEG per view; ``health`` may give tick, lateness_ms, fault (a
    text, "" for none) and frame_age_ms per view; ``stop`` and ``clear_fault`` act at once.
    """

    cameras: Callable[[], dict[str, bytes]]
    health: Callable[[], dict[str, Any]]
    stop: Callable[[], None]
    clear_fault: Callable[[], None]


@dataclass(frozen=True, slots=True)
class ConsoleSettings:
    """Where to listen, and who may act. Beyond this machine nobody acts without the token."""

    host: str = "127.0.0.1"
    port: int = 8081  # 0 takes a free one
    token: str = ""
    alone_s: float = 2.0  # an episode that no page has watched for so long is stopped

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.token:
            raise ValueError(
                f"console host {self.host} is open to other machines: give a token too, or listen "
                "on 127.0.0.1"
            )
        if self.token and not (self.token.isascii() and len(self.token) >= MIN_TOKEN):
            raise ValueError(f"the console's token must have at least {MIN_TOKEN} ASCII characters")
        if not self.alone_s > 0:
            raise ValueError(f"alone_s={self.alone_s} must be positive; inf never stops")


class Console:
    """Any number of pages, one desk, one robot."""

    def __init__(self, desk: Desk, rig: Rig, settings: ConsoleSettings) -> None:
        self._desk, self._rig, self._settings = desk, rig, settings
        self._door = Door(open_to_any_name=bool(settings.token))
        self._pages: set[ServerConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking: set[ServerConnection] = set()
        self._heard = time.monotonic()
        self._health: dict[str, Any] = {}
        self._stops = ThreadPoolExecutor(8, "stop")  # never waits behind anything else

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """Serve while the block runs; yields the port.

        Raises:
            OSError: it cannot listen there.
        """
        async with serve(
            self._talk,
            self._settings.host,
            self._settings.port,
            process_request=self._admit,
            max_size=messages.MAX_BYTES,
            compression=None,
            open_timeout=HELLO_S,
            ping_interval=2.0,
            ping_timeout=4.0,
            logger=_quiet,
        ) as server:
            watch = asyncio.create_task(self._watch())
            watch.add_done_callback(self._watch_ended)
            try:
                yield next(iter(server.sockets)).getsockname()[1]
            finally:
                watch.cancel()
                self._stops.shutdown(wait=False)

    def _admit(self, client: ServerConnection, request: Request) -> Response | None:
        return self._door.answer(client, request)

    async def _talk(self, page: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            if not await self._knows(page):
                await page.send(_json({"kind": "denied", "said": "a wrong token, or none"}))
                await page.close(DENIED, "token")
                return
            self._heard = time.monotonic()
            try:
                await page.send(self._view())
                self._pages.add(page)
                async for frame in page:
                    self._heard = time.monotonic()
                    await self._hear(page, frame)
            finally:
                self._pages.discard(page)

    async def _knows(self, page: ServerConnection) -> bool:
        """Whether the first frame says the token. It is compared in constant time, and not kept."""
        try:
            said = messages.read(await asyncio.wait_for(page.recv(), HELLO_S))
        except (ValueError, TimeoutError):
            return False
        token = said.get("token")
        if said["act"] != "hello" or not isinstance(token, str):
            return False
        given, wanted = token.encode(errors="replace"), self._settings.token.encode()
        return not wanted or hmac.compare_digest(given, wanted)

    async def _hear(self, page: ServerConnection, frame: str | bytes) -> None:
        try:
            said = messages.read(frame)
            if said["act"] == "look":
                self._spawn(self._show(page))
                return
            action = messages.action(said)
        except ValueError as error:
            await page.send(_json({"kind": "said", "ok": False, "number": 0, "said": str(error)}))
            return
        # A task each: a stop never waits for the end of what was asked before it.
        self._spawn(self._act(page, action))

    async def _act(self, page: ServerConnection, action: messages.Action) -> None:
        try:
            if action.act == "stop":
                await self._stop(action.who)
            else:
                await asyncio.to_thread(self._do, action)
            answer = {"ok": True, "said": ""}
        except RefusedError as error:
            answer = {"ok": False, "said": str(error)}
        except Exception as error:  # noqa: BLE001 - the host's callables may raise anything
            answer = {"ok": False, "said": f"the robot host failed at {action.act}: {error!r}"}
        with suppress(ConnectionClosed):
            await page.send(_json({"kind": "said", "number": action.number, **answer}))
        broadcast(self._pages, self._view())

    async def _stop(self, who: str, why: str = "stop pressed") -> None:
        loop = asyncio.get_running_loop()
        both = (
            loop.run_in_executor(self._stops, self._desk.stop, who, why),
            loop.run_in_executor(self._stops, self._rig.stop),
        )
        for failed in await asyncio.gather(*both, return_exceptions=True):
            if isinstance(failed, BaseException):
                raise failed

    def _do(self, action: messages.Action) -> None:
        desk, who, shown = self._desk, action.who, action.shown
        match action.act:
            case "clear":
                desk.check_clear(who, shown)
                self._rig.clear_fault()
                desk.clear(who, shown)
            case "reset_done":
                desk.reset_done(who, shown)
            case "start":
                desk.start(who, shown)
            case "undo":
                desk.undo(who, shown)
            case _:
                desk.say(who, shown, action.outcome, action.progress)

    async def _show(self, page: ServerConnection) -> None:
        """Answer one look with the newest picture of every camera; a slow page asks less often."""
        if page in self._looking:
            return
        self._looking.add(page)
        try:
            began = time.monotonic()
            pictures = await asyncio.to_thread(self._pictures)
            with suppress(ConnectionClosed):
                for view, jpeg in pictures.items():
                    await page.send(view.encode() + b"\n" + jpeg)
                await asyncio.sleep(max(0.0, PICTURE_S - (time.monotonic() - began)))
                await page.send('{"kind":"looked"}')
        finally:
            self._looking.discard(page)

    def _pictures(self) -> dict[str, bytes]:
        try:
            return self._rig.cameras()
        except Exception as error:  # noqa: BLE001 - no picture is no reason to lose the page
            logging.getLogger(__name__).warning("the host gives no pictures: %r", error)
            return {}

    async def _watch(self) -> None:
        """Latch the host's faults, stop what nobody watches, and keep all pages up to date."""
        turn, looks = -1, 0
        while True:
            await self._ask_health()
            desk = self._desk.view()
            # An episode may only run while a person can stop it.
            if desk["running"] and not desk["stopped"] and self._alone_s() > self._settings.alone_s:
                self._spawn(self._stop("console", "no page of the console is connected"))
            if desk["turn"] != turn or looks % PUSH_EVERY == 0:
                broadcast(self._pages, self._view())
            turn, looks = desk["turn"], looks + 1
            await asyncio.sleep(WATCH_S)

    async def _ask_health(self) -> None:
        try:
            health = await asyncio.wait_for(asyncio.to_thread(self._rig.health), HEALTH_S)
            self._health = _plain(health)
        except TimeoutError:
            self._health = {"fault": f"the robot host has said nothing for {HEALTH_S:g} s"}
        except Exception as error:  # noqa: BLE001 - whatever it is, the host is not well
            self._health = {"fault": f"the robot host cannot tell its health: {error!r}"}
        if self._health["fault"]:
            await asyncio.to_thread(self._desk.fault, self._health["fault"])

    def _alone_s(self) -> float:
        return time.monotonic() - self._heard

    def _watch_ended(self, watch: asyncio.Task[None]) -> None:
        if not watch.cancelled() and (error := watch.exception()):
            self._desk.fault(f"the console failed: {error!r}")

    def _view(self) -> str:
        return _json({"kind": "view", "desk": self._desk.view(), "health": self._health})

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # asyncio itself keeps no task alive
        task.add_done_callback(self._tasks.discard)


def _plain(health: dict[str, Any]) -> dict[str, Any]:
    """Only what pages show, and only numbers that JSON has."""
    ages = health.get("frame_age_ms") or {}
    if not isinstance(ages, dict):
        ages = {"all": ages}
    return {
        "tick": _finite(health.get("tick")),
        "lateness_ms": _finite(health.get("lateness_ms")),
        "fault": str(health.get("fault") or ""),
        "frame_age_ms": {str(view): _finite(age) for view, age in ages.items()},
    }


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, allow_nan=False)


@contextmanager
def serving(console: Console, settings: ConsoleSettings) -> Iterator[str]:
    """Run the console in a thread of this process while the block runs; yields its address.

    Raises:
        ValueError: it cannot listen there.
    """
    with in_thread(console.listening, "console", (settings.host, settings.port)) as port:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        token = f"#token={settings.token}" if settings.token else ""
        yield f"http://{host}:{port}/{token}"
