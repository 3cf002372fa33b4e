"""An asyncio server in a thread of its own, beside the control loop."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field

Listening = Callable[[], AbstractAsyncContextManager[int]]


@contextmanager
def in_thread(listening: Listening, name: str, address: tuple[str, int]) -> Iterator[int]:
    """Serve while the block runs; yields the port. ``name`` and ``address`` are for messages.

    Raises:
        ValueError: it cannot listen there.
    """
    served = _Served(listening)
    thread = threading.Thread(target=asyncio.run, args=(served.run(),), name=name, daemon=True)
    thread.start()
    served.ready.wait()
    if served.error:
        where = "{}:{}".format(*address)
        raise ValueError(
            f"the {name} cannot listen at {where} ({served.error}). Give another port; 0 takes a "
            "free one"
        )
    try:
        yield served.port
    finally:
        served.stop()
        thread.join(10)


@dataclass
class _Served:
    listening: Listening
    ready: threading.Event = field(default_factory=threading.Event)
    port: int = 0
    error: OSError | None = None
    stop: Callable[[], object] = lambda: None

    async def run(self) -> None:
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        self.stop = lambda: loop.call_soon_threadsafe(over.set)
        try:
            async with self.listening() as self.port:
                self.ready.set()
                await over.wait()
        except OSError as error:
            self.error = error
        finally:
            self.ready.set()
