"""Websocket servers in threads, for the tests of openpi's protocol."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
from websockets.asyncio.server import ServerConnection, serve

from contracts.protocols import Policy
from services.policy_requests import RequestFormat
from services.policy_server import OpenpiServer, ServerSettings, serve_until

Serving = Callable[[asyncio.Event, Callable[[int], None]], Awaitable[None]]


@contextmanager
def _in_thread(serving: Serving) -> Iterator[int]:
    """Run a server until the block ends; yields its port."""
    ready, ports, handles = threading.Event(), [], []

    async def run() -> None:
        stopped = asyncio.Event()
        handles.append((asyncio.get_running_loop(), stopped))

        def on_ready(port: int) -> None:
            ports.append(port)
            ready.set()

        await serving(stopped, on_ready)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert ready.wait(20)
    try:
        yield ports[0]
    finally:
        loop, stopped = handles[0]
        loop.call_soon_threadsafe(stopped.set)
        thread.join()


@pytest.fixture(scope="session")
def serving_policy():
    """``with serving_policy(policy, wanted, facts, settings) as port``: our own server."""

    def start(
        policy: Policy,
        wanted: RequestFormat,
        facts: dict | None = None,
        settings: ServerSettings | None = None,
    ):
        server = OpenpiServer(policy, wanted, facts or {}, settings or ServerSettings())
        return _in_thread(lambda stop, ready: serve_until(server, ("127.0.0.1", 0), stop, ready))

    return start


@pytest.fixture(scope="session")
def serving_handler():
    """``with serving_handler(handler) as port``: whatever a test wants a server to do."""

    def start(handler: Callable[[ServerConnection], Awaitable[None]]):
        async def serving(stop: asyncio.Event, ready: Callable[[int], None]) -> None:
            async with serve(handler, "127.0.0.1", 0, compression=None, max_size=None) as server:
                ready(next(iter(server.sockets)).getsockname()[1])
                await stop.wait()

        return _in_thread(serving)

    return start
