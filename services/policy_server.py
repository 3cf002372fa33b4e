"""Serves one policy to openpi's clients: websocket and msgpack, as openpi's own server speaks.

Facts: ../shared/reference/openpi.md section 4. What differs, and no client notices: requests are
checked before the policy sees them, inference runs in a thread and is batched over clients, and the
metadata say what the policy is.
"""

import asyncio
import hmac
import itertools
import time
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from contracts.constants import ACTION_DIM, CONTROL_HZ
from contracts.protocols import Policy
from contracts.seeds import fold
from contracts.types import ActionChunk, Observation
from contracts.wire import EXTERIOR_2, MAX_FRAME_BYTES, SEED, pack
from models.remote.policy import ACTION_SPACE, EXTRA_KEYS
from services.batching import MicroBatcher
from services.policy_requests import RequestFormat, read_request

INTERNAL_ERROR = 1011  # of the websocket protocol; openpi closes with it after any error
CLOSE_REASON = "Internal server error. Traceback included in previous frame."


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """``key`` is what clients must send as their api key, "" for none; ``seed`` is that of
    requests that bring none."""

    key: str = ""
    max_batch: int = 8
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Timed:
    chunk: ActionChunk
    policy_ms: float  # of the forward pass that this request shared


class OpenpiServer:
    """Any number of clients, one policy, one forward pass at a time.

    A refused or failed request costs its client the connection, as with openpi's server (a text
    frame with the traceback, then close code 1011), and nobody else anything.
    """

    def __init__(
        self,
        policy: Policy,
        wanted: RequestFormat,
        facts: dict[str, Any],
        settings: ServerSettings,
    ) -> None:
        """``facts`` are added to the metadata that every client is greeted with."""
        self._policy = policy
        self._wanted = wanted
        self._settings = settings
        self._greeting = pack(_metadata(wanted) | facts)
        self._numbers = itertools.count()

    @asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[int]:
        """Serve while the block runs; yields the port, which is a free one where ``port`` is 0.

        Raises:
            OSError: it cannot listen there.
        """
        # No waiting for company: a batch is whoever came while the last one was computed.
        batcher = MicroBatcher(self._infer, self._settings.max_batch, max_wait_s=0.0)

        async def talk(client: ServerConnection) -> None:
            await self._talk(client, batcher)

        options = {"compression": None, "max_size": MAX_FRAME_BYTES, "process_request": self._admit}
        try:
            async with serve(talk, host, port, **options) as server:
                yield next(iter(server.sockets)).getsockname()[1]
        finally:
            await batcher.close()

    def _admit(self, client: ServerConnection, request: Request) -> Response | None:
        """Answer a health check, turn away whoever lacks the key; None lets the client in."""
        if request.path == "/healthz":
            return client.respond(HTTPStatus.OK, "OK\n")
        wanted = f"Api-Key {self._settings.key}".encode()
        given = ", ".join(request.headers.get_all("Authorization")).encode()
        if self._settings.key and not hmac.compare_digest(given, wanted):
            return client.respond(HTTPStatus.UNAUTHORIZED, "a wrong api key, or none\n")
        return None

    async def _talk(
        self,
        client: ServerConnection,
        batcher: MicroBatcher[tuple[Observation, int], _Timed],
    ) -> None:
        previous: dict[str, float] = {}
        with suppress(ConnectionClosed):
            await client.send(self._greeting)
            async for frame in client:
                began = time.monotonic()
                work = asyncio.create_task(self._answer(frame, batcher))
                await asyncio.wait([work])
                if error := work.exception():
                    await client.send("".join(traceback.format_exception(error)))
                    await client.close(INTERNAL_ERROR, CLOSE_REASON)
                    return
                reply = work.result()
                reply["server_timing"] |= previous
                await client.send(pack(reply))
                previous = {"prev_total_ms": _ms_since(began)}

    async def _answer(
        self, frame: str | bytes, batcher: MicroBatcher[tuple[Observation, int], _Timed]
    ) -> dict[str, Any]:
        observation, seed = read_request(frame, self._wanted)
        began = time.monotonic()
        if seed is None:
            seed = fold(self._settings.seed, "request", next(self._numbers))
        timed = await batcher.submit((observation, seed))
        actions = timed.chunk.actions.astype(np.float64)  # as openpi's
        if not np.isfinite(actions).all():
            raise ValueError("the policy planned NaN or infinite actions")
        return {
            "actions": actions,
            "policy_timing": {"infer_ms": timed.policy_ms},
            "server_timing": {"infer_ms": _ms_since(began)},
        }

    def _infer(self, requests: Sequence[tuple[Observation, int]]) -> list[_Timed]:
        began = time.monotonic()
        chunks = self._policy.act([seen for seen, _ in requests], [seed for _, seed in requests])
        return [_Timed(chunk, _ms_since(began)) for chunk in chunks]


def _metadata(wanted: RequestFormat) -> dict[str, Any]:
    extras = [SEED, *(key for key in wanted.keys if key == EXTERIOR_2)]
    return {
        "server": "vlaw",
        "action_space": ACTION_SPACE,
        "action_dim": ACTION_DIM,
        "control_hz": CONTROL_HZ,
        "image_keys": list(wanted.keys),
        "image_size": [wanted.height, wanted.width],
        EXTRA_KEYS: extras,
    }


def _ms_since(began: float) -> float:
    return (time.monotonic() - began) * 1000


async def serve_until(
    server: OpenpiServer,
    address: tuple[str, int],
    stopped: asyncio.Event,
    on_ready: Callable[[int], None],
) -> None:
    """Serve on (host, port) until ``stopped`` is set; ``on_ready`` gets the port.

    Raises:
        ValueError: it cannot listen there.
    """
    host, port = address
    try:
        async with server.listening(host, port) as bound:
            on_ready(bound)
            await stopped.wait()
    except OSError as error:
        raise ValueError(
            f"serve.host={host} serve.port={port}: cannot listen there "
            f"({error.strerror or error}). Give another serve.port; 0 takes a free one"
        ) from error
