"""Collects single requests into batches for a model that is faster that way."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class MicroBatcher(Generic[Request, Reply]):
    """Runs up to ``max_batch`` requests at once; none waits longer than ``max_wait_s`` for others.

    ``run`` gets the requests in the order of their submission and answers in that order. It runs in
    a thread, one batch at a time, so requests keep arriving meanwhile. An exception in ``run`` goes
    to every request of its batch and to no other. The serving task starts with the first request,
    so an actor that was restarted answers too.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Request]], Sequence[Reply]],
        max_batch: int,
        max_wait_s: float,
    ) -> None:
        if max_batch < 1 or max_wait_s < 0:
            raise ValueError(f"max_batch={max_batch} must be >= 1, max_wait_s={max_wait_s} >= 0")
        self._run = run
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._requests: asyncio.Queue[tuple[Request, asyncio.Future[Reply]]] = asyncio.Queue()
        self._serving: asyncio.Task[None] | None = None
        self._closed = False

    async def submit(self, request: Request) -> Reply:
        """Wait for this request's reply.

        Raises:
            RuntimeError: the batcher is closed, or ``run`` answered a wrong number of replies.
            Exception: whatever ``run`` raised for this batch.
        """
        if self._closed:
            raise RuntimeError("this batcher is closed")
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._requests.put_nowait((request, answer))
        return await answer

    async def close(self) -> None:
        """Refuse new requests and cancel those that no batch has taken yet."""
        self._closed = True
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait([self._serving])
        while not self._requests.empty():
            self._requests.get_nowait()[1].cancel()

    async def _serve(self) -> None:
        while True:
            batch = [await self._requests.get()]
            try:
                await self._fill(batch)
                await self._answer(batch)
            finally:  # closed meanwhile: nobody waits for a reply that never comes
                for _, answer in batch:
                    answer.cancel()

    async def _fill(self, batch: list[tuple[Request, asyncio.Future[Reply]]]) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._max_wait_s
        while len(batch) < self._max_batch:
            try:
                async with asyncio.timeout_at(end):
                    batch.append(await self._requests.get())
            except TimeoutError:
                return

    async def _answer(self, batch: list[tuple[Request, asyncio.Future[Reply]]]) -> None:
        call = asyncio.to_thread(self._run, [request for request, _ in batch])
        (work,), _ = await asyncio.wait([asyncio.create_task(call)])
        error = work.exception()
        replies = [] if error else list(work.result())
        if error is None and len(replies) != len(batch):
            error = RuntimeError(f"{len(batch)} requests got {len(replies)} replies")
        for index, (_, answer) in enumerate(batch):
            if answer.done():  # its caller has gone
                continue
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(replies[index])
