"""A zerorpc connection whose every call ends soon: for the thread that drives an arm."""

import importlib
import threading
from typing import Any


class RemoteFailureError(OSError):
    """The other side answered that the call failed there. ``kind`` is its exception's name."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


def import_zerorpc() -> Any:
    """Raises ValueError saying how to install it."""
    try:
        return importlib.import_module("zerorpc")
    except ImportError as error:
        raise ValueError(
            f"--backend droid_zerorpc needs zerorpc ({error}): run pip install '.[robot]'"
        ) from error


class Link:
    """One client, made and used by one thread: zerorpc hangs when another one calls.

    Measured over loopback on 2 busy cores: a call to a server that is stopped (SIGSTOP) or killed
    ends after the time limit and 2 ms, at once and again at every later call, however long the
    thread slept before. The limit alone does that: zerorpc's heartbeat stays off, because it would
    take two beats and wants a greenlet per call. A server that hangs acts on what had reached it
    when it goes on; therefore a call that was not answered closes the connection, and while the
    server hangs nothing new reaches it: of 7 calls to a stopped one, the first alone was done.
    """

    def __init__(self, address: str, timeout_s: float | int) -> None:
        """Raises ValueError where zerorpc is missing."""
        self._zerorpc = import_zerorpc()
        self._address, self._timeout_s = address, timeout_s
        self._owner = 0  # the thread
        self._context: Any = None
        self._client: Any = None

    def call(self, method: str, *given: Any, timeout_s: float | int | None = None) -> Any:
        """What the other side returns; it has ``timeout_s`` for that, or the link's own limit.

        Raises:
            ConnectionError: it did not answer in time.
            RemoteFailureError: it answered that the call failed.
            RuntimeError: another thread made the first call.
        """
        limit, zerorpc = timeout_s or self._timeout_s, self._zerorpc
        self._owner = self._owner or threading.get_ident()
        if self._owner != threading.get_ident():
            raise RuntimeError("a link belongs to the thread that called first: make another")
        if self._client is None:
            self._client = self._connect()
        try:
            return self._client(method, *given, timeout=limit)
        except zerorpc.RemoteError as error:
            told = f"{method} failed on the control machine: {error.name}: {error.msg}"
            raise RemoteFailureError(told, error.name) from None  # its traceback is the server's
        except (zerorpc.TimeoutExpired, zerorpc.LostRemote):
            self._drop()
            raise ConnectionError(
                f"the control machine at {self._address} did not answer {method} within "
                f"{limit:g} s: is it on, run_server.py running, the cable in?"
            ) from None

    def close(self) -> None:
        self._drop()
        if self._context is not None:
            self._context.term()
            self._context = None

    def _connect(self) -> Any:
        if self._context is None:
            self._context = self._zerorpc.Context()
            # what is queued dies with its connection: libzmq would wait for ever to send it
            self._context.set(importlib.import_module("zmq").BLOCKY, 0)
        client = self._zerorpc.Client(context=self._context, heartbeat=None)
        client.connect(self._address)
        return client

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()
