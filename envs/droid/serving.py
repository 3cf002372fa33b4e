"""An asyncio server in a thread of its own, beside the control loop."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager

Listening = Callable[[], AbstractAsyncContextManager[int]]


@contextmanager
def in_thread(listening: Listening, name: str, address: tuple[str, int]) -> Iterator[int]:
    """Serve while the block runs; yields the port. ``name`` and ``address`` are for messages.

    Raises:
        ValueError: it cannot listen there.
    """
    ready, stop = threading.Event(), asyncio.Event()
    found: dict[str, int] = {}
    failed: list[OSError] = []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        try:
            async with listening() as port:
                found["port"] = port
                ready.set()
                await stop.wait()
        except OSError as error:
            failed.append(error)
            ready.set()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            loop.close()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    ready.wait()
    if failed:
        where = "{}:{}".format(*address)
        raise ValueError(
            f"the {name} cannot listen at {where} ({failed[0]}). Give another port; 0 takes a free "
            "one"
        )
    try:
        yield found["port"]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
