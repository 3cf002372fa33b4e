"""Connections to an openpi server: every wait has a limit, and no answer meets a wrong question."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from contracts.errors import PolicyUnavailableError
from contracts.wire import MAX_FRAME_BYTES, unpack

RETRY_S = 0.25  # between attempts to reach a server that refuses connections


@dataclass(frozen=True, slots=True)
class Server:
    """Where it is and how long to wait for it."""

    uri: str
    key: str  # "": none is sent
    connect_timeout_s: float
    request_timeout_s: float


class Connection:
    """One websocket, opened when first needed; one request at a time.

    The protocol is stateless, so a request whose connection broke may be sent again. An old
    connection that turns out to be broken is replaced once, for the server may have been restarted
    meanwhile; a fresh one that breaks is an error.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._socket: ClientConnection | None = None
        self.metadata: dict[str, Any] = {}  # what the server said about itself when it was reached

    async def infer(self, request: bytes) -> Any:
        """Send one message and decode the answer.

        Raises:
            PolicyUnavailableError: there is none, in time; or it is an error report.
        """
        if self._socket is not None:
            with suppress(ConnectionClosed):
                return self._read(await self._exchange(self._socket, request))
        socket = await self.open()
        try:
            return self._read(await self._exchange(socket, request))
        except ConnectionClosed as closed:
            raise self._failed(f"closed the connection: {_why(closed)}") from closed

    async def open(self) -> ClientConnection:
        """Connect and receive the metadata, trying again while the server refuses connections."""
        limit = self._server.connect_timeout_s
        loop = asyncio.get_running_loop()
        end = loop.time() + limit
        refusal: OSError | None = None
        while refusal is None or loop.time() + RETRY_S < end:
            if refusal is not None:
                await asyncio.sleep(RETRY_S)
            try:
                async with asyncio.timeout_at(end):
                    self._socket = await self._greet()
                    return self._socket
            except TimeoutError as error:
                raise self._failed(
                    f"does not greet within {limit:g} s (policy.remote.connect_timeout_s): it is "
                    "blocked, or behind a firewall"
                ) from error
            except PolicyUnavailableError:
                raise
            except OSError as error:
                refusal = error
        raise self._failed(
            f"cannot be reached for {limit:g} s ({refusal}): start the server, or check "
            "policy.remote.host and policy.remote.port"
        )

    def drop(self) -> None:
        """Close at once, without a handshake that a blocked server would never answer."""
        if self._socket is not None:
            self._socket.transport.abort()
        self._socket = None

    async def _greet(self) -> ClientConnection:
        key = self._server.key
        try:
            socket = await connect(
                self._server.uri,
                compression=None,
                max_size=MAX_FRAME_BYTES,
                additional_headers={"Authorization": f"Api-Key {key}"} if key else None,
                proxy=None,  # robots are on the local network
                open_timeout=None,
                ping_interval=None,  # openpi answers no ping while it computes
            )
        except InvalidURI as error:
            raise ValueError(f"policy.remote.host: {error}") from error
        except InvalidHandshake as error:
            raise self._failed(_refusal(error)) from error
        known = False
        try:
            self.metadata = self._greeting(await socket.recv())
            known = True
        except ConnectionClosed as closed:
            raise self._failed(f"closed the connection: {_why(closed)}") from closed
        finally:
            if not known:
                socket.transport.abort()
        return socket

    async def _exchange(self, socket: ClientConnection, request: bytes) -> str | bytes:
        limit = self._server.request_timeout_s
        answered = False
        try:
            async with asyncio.timeout(limit):
                await socket.send(request)
                reply = await socket.recv()
            answered = isinstance(reply, bytes)
            return reply
        except TimeoutError as error:
            raise self._failed(
                f"did not answer within {limit:g} s (policy.remote.request_timeout_s): it is "
                "blocked, or still compiling"
            ) from error
        finally:
            if not answered:  # a late answer must not be taken for that to the next request
                self.drop()

    def _read(self, reply: str | bytes) -> Any:
        if isinstance(reply, str):
            lines = [line for line in reply.splitlines() if line.strip()] or ["no reason given"]
            raise self._failed(f"refused the request: {lines[-1].strip()[:400]}")
        try:
            return unpack(reply)
        except ValueError as error:
            raise self._failed(f"answered nonsense: {error}") from error

    def _greeting(self, frame: str | bytes) -> dict[str, Any]:
        metadata = self._read(frame)
        if not isinstance(metadata, dict):
            raise self._failed(f"is no openpi server: it greets with {str(metadata)[:60]!r}")
        return metadata

    def _failed(self, what: str) -> PolicyUnavailableError:
        return PolicyUnavailableError(f"the policy server at {self._server.uri} {what}")


def _why(closed: ConnectionClosed) -> str:
    return f"code {closed.rcvd.code} {closed.rcvd.reason}".strip() if closed.rcvd else "no reason"


def _refusal(error: InvalidHandshake) -> str:
    if isinstance(error, InvalidStatus) and error.response.status_code in (401, 403):
        return "wants another key: give policy.remote.key_file=<file with its api key>"
    return f"is no openpi server ({error}): check policy.remote.host and policy.remote.port"


class Pool:
    """A few connections that share the requests of a batch."""

    def __init__(self, server: Server, size: int) -> None:
        self._connections = [Connection(server) for _ in range(size)]
        self._idle: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        for connection in self._connections:
            self._idle.put_nowait(connection)

    async def metadata(self) -> dict[str, Any]:
        """What the server says about itself."""
        connection = await self._idle.get()
        try:
            await connection.open()
            return connection.metadata
        finally:
            self._idle.put_nowait(connection)

    async def infer(self, requests: Sequence[bytes]) -> list[tuple[Any, dict[str, Any]]]:
        """(answer, metadata of who answered) to every request, in order; the first failure ends
        all.

        Raises:
            PolicyUnavailableError: some request has no answer.
        """
        if not requests:
            return []
        tasks = [asyncio.create_task(self._one(request)) for request in requests]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        failed = [task for task in tasks if not task.cancelled() and task.exception()]
        return [task.result() for task in failed or tasks]

    async def _one(self, request: bytes) -> tuple[Any, dict[str, Any]]:
        connection = await self._idle.get()
        try:
            return await connection.infer(request), connection.metadata
        finally:
            self._idle.put_nowait(connection)

    def drop(self) -> None:
        for connection in self._connections:
            connection.drop()
