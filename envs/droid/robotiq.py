"""A Robotiq 2F-85 on a serial port (Modbus RTU), where no control machine drives it.

Registers: Robotiq's manual of the 2F-85, section "Control". Positions, speed and force are those of
polymetis' driver under DROID: 0 (open, register 3) to 1 (closed, register 230).
"""

import importlib
import termios
import threading
import time
from typing import Any

SLAVE = 9
COMMAND, STATUS = 0x03E8, 0x07D0  # first of the registers to write, and to read
OPEN, CLOSED = 3, 230
SPEED, FORCE = 146, 0  # of 255: what DROID's 0.05 m/s and 0.1 N come to
ACTIVATE, GO = 0x01, 0x09
BAUD = 115_200
ANSWER_S = 0.1
EVERY_S = 0.02  # between two exchanges
GONE_S = 0.5  # without an answer
READY_S = 15.0  # activation opens and closes the fingers once


class Robotiq:
    """Talks in a thread of its own, so that the control loop never waits for a serial line."""

    def __init__(self, port: str) -> None:
        """Raises ValueError where pyserial is missing."""
        try:
            self._serial_module = importlib.import_module("serial")
        except ImportError as error:
            raise ValueError(
                f"the gripper needs pyserial ({error}): pip install pyserial"
            ) from error
        self._port = port
        self._line: Any = None
        self._goal: int | None = None
        self._position, self._heard_s = 0.0, 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="gripper", daemon=True)

    def open(self) -> None:
        """Connect and, after power-up, activate: the fingers open and close once.

        Raises:
            OSError: there is no gripper; it says what to check.
        """
        try:
            self._line = self._serial_module.Serial(self._port, BAUD, timeout=ANSWER_S)
            self._activate()
        except OSError as error:  # pyserial's errors are OSErrors
            raise OSError(
                f"no Robotiq gripper at {self._port} ({error}): is it powered, the USB adapter in, "
                "this user in the group dialout? [arm] gripper = '/dev/serial/by-id/...'"
            ) from error
        self._thread.start()

    def go(self, position: float | int) -> None:
        """Move to 0 (open) to 1 (closed); returns at once.

        Raises:
            ValueError: it is neither.
        """
        if not 0 <= position <= 1:
            raise ValueError(f"gripper position={position} must lie within 0 and 1")
        self._goal = round(OPEN + (CLOSED - OPEN) * position)

    def position(self) -> float:
        """Measured: 0 open, 1 closed. Raises OSError when the gripper has gone silent."""
        silent = time.monotonic() - self._heard_s
        if silent > GONE_S:
            raise OSError(f"the gripper at {self._port} has not answered for {silent:.1f} s")
        return self._position

    def close(self) -> None:
        self._closed = True
        if self._thread.is_alive():
            self._thread.join(1)
        if self._line is not None:
            self._line.close()

    def _activate(self) -> None:
        if not self._look():
            self._write(0, 0)
            self._write(ACTIVATE, 0)
        until = time.monotonic() + READY_S
        while not self._look():
            if time.monotonic() > until:
                raise OSError(f"it did not activate within {READY_S:g} s")
            time.sleep(EVERY_S)

    def _run(self) -> None:
        sent = None
        while not self._closed:
            goal = self._goal
            try:
                if goal is not None and goal != sent:
                    self._write(GO, goal)
                    sent = goal
                self._look()
            except OSError:
                sent = None  # to be sent again; ``position`` tells how long it has been silent
            time.sleep(EVERY_S)

    def _look(self) -> bool:
        """Read the measured position; whether the gripper is activated."""
        body = bytes([SLAVE, 3, *STATUS.to_bytes(2), 0, 3])
        answer = self._exchange(body, 11)
        status, position = answer[3], answer[7]
        self._position = min(max((position - OPEN) / (CLOSED - OPEN), 0.0), 1.0)
        self._heard_s = time.monotonic()
        return (status >> 4) & 3 == 3

    def _write(self, action: int, position: int) -> None:
        registers = bytes([action, 0, 0, position, SPEED, FORCE])
        body = bytes([SLAVE, 16, *COMMAND.to_bytes(2), 0, 3, 6]) + registers
        self._exchange(body, 8)

    def _exchange(self, body: bytes, size: int) -> bytes:
        """The answer of ``size`` bytes. Raises OSError where there is none, or a spoilt one."""
        try:
            self._line.reset_input_buffer()
            self._line.write(body + crc(body))
            answer = self._line.read(size)
        except termios.error as error:  # an adapter that was pulled out
            raise OSError(str(error)) from error
        if len(answer) != size or answer[:2] != body[:2] or crc(answer[:-2]) != answer[-2:]:
            raise OSError(f"it answered {answer.hex(' ') or 'nothing'}")
        return answer


def crc(body: bytes) -> bytes:
    """CRC-16 of Modbus, low byte first."""
    value = 0xFFFF
    for byte in body:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ 0xA001 * (value & 1)
    return value.to_bytes(2, "little")
