"""The 15 Hz loop beside the arm: the only place from which a command reaches it."""

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from contracts.constants import CONTROL_HZ
from envs.droid.homing import Homing
from envs.droid.operator import Episode, Operator, Unattended
from envs.droid.rig import Arm, Cameras, Scene
from envs.droid.tick import NoRecord, Planned, Record, Tick
from envs.safety import FaultError, Guard, Limits

PERIOD_S = 1 / CONTROL_HZ
CLEAR_S = 15.0  # a library may take seconds to recover an arm
OPEN_S = 60.0

Tell = Callable[[dict[str, Any]], None]  # an answer, or part of one, to whoever asked

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rig:
    """All that one host drives. ``scene`` is given where a simulator lays the table."""

    arm: Arm
    cameras: Cameras
    operator: Operator
    scene: Scene | None = None
    record: Record = field(default_factory=NoRecord)


@dataclass
class _Reset:
    """An episode that is to begin: the person lays the scene, the arm drives home."""

    episode: Episode
    tell: Tell
    homing: Homing | None = None  # None: the arm stands
    started: bool = False  # whether the person has agreed to the start


class Control:
    """Owns the arm. ``run`` in one thread; every other public method may be called by any thread.

    Whoever asks is answered through a ``Tell``, from the control thread: with what the method says,
    or with "error" (refused, nothing happened) or "stopped" (a fault holds the arm).
    """

    def __init__(
        self,
        rig: Rig,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or Limits()
        self._rig, self._clock = rig, clock
        self._guard = Guard(self.limits)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._closed, self._opened, self._why_not = False, threading.Event(), ""
        self._number = self._lost_ticks = 0
        self._now: Tick | None = None
        self._fault: FaultError | None = None
        self._held = True  # whether the arm knows that it is to hold
        self._reset: _Reset | None = None
        self._episode: Episode | None = None
        self._to_label = ""  # the last episode, unless a fault came after it
        self._plan: deque[Planned] = deque()
        self._chunks = 0  # plans of this episode
        self._tell_play: Tell | None = None
        self._lookers: list[Tell] = []
        self._commanded_s = 0.0

    # ---- any thread ----------------------------------------------------------------------

    def reset(self, task: str, seed: int, episode: Episode, tell: Tell) -> None:
        """Begin an episode: "instruction" once the scene is laid, the person has agreed and the arm
        is verified at home. Waits for a person for as long as it takes."""
        self._inbox.put(lambda: self._begin_reset(task, seed, episode, tell))

    def play(
        self,
        actions: Float32[np.ndarray, "n 8"],
        seen: int,
        tell: Tell,
        latency_s: float = math.nan,
    ) -> None:
        """Execute a plan that was made from tick ``seen``: "tick" for each tick, with "done" in the
        one after the last command. ``latency_s`` is for the record."""
        self._inbox.put(lambda: self._begin_plan(actions, seen, latency_s, tell))

    def observe(self, tell: Tell) -> None:
        """Answers with the next "tick"."""
        self._inbox.put(lambda: self._lookers.append(tell))

    def hold(self, tell: Tell) -> None:
        """Drop the plan and hold; answers with nothing."""
        self._inbox.put(lambda: self._drop_plan(tell))

    def end(self, ending: str, tell: Tell) -> None:
        """Hold and end the episode, if a fault has not; answers with nothing."""
        self._inbox.put(lambda: self._end(ending, tell))

    def lost(self, why: str) -> None:
        """Whoever drove is gone: hold, and give up what it had begun."""
        self._inbox.put(lambda: self._abandon(why))

    def stop(self) -> None:
        """A fault, because a person wants it."""
        self._inbox.put(lambda: self._fail(FaultError("operator_stop", "stop pressed")))

    def clear(self) -> None:
        """A person has looked at the arm: motions may be asked for again. Moves nothing. Returns
        once it is so.

        Raises:
            OSError: something still stops the arm; the fault stays.
            TimeoutError: the control loop does not answer.
        """
        answer: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self._inbox.put(lambda: answer.put(_failure(self._clear)))
        try:
            failure = answer.get(timeout=CLEAR_S)
        except queue.Empty:
            words = "the control loop does not answer: look at the host's terminal"
            raise TimeoutError(words) from None
        if failure:
            raise failure

    def health(self) -> dict[str, Any]:
        """Of the last tick: its number, lateness, ages of frames, and what holds the arm."""
        tick, fault = self._now, self._fault
        ages = tick.frame_age_s() if tick else {}
        return {
            "tick": self._number,
            "lateness_ms": 1000 * tick.lateness_s if tick else None,
            "lost_ticks": self._lost_ticks,
            "frame_age_ms": {view: 1000 * age for view, age in ages.items()},
            "fault": str(fault) if fault else "",
            "doing": self._doing(),
        }

    @property
    def latest(self) -> Tick | None:
        return self._now

    def close(self) -> None:
        """End ``run`` after its tick, the arm held."""
        self._closed = True

    # ---- the control thread --------------------------------------------------------------

    def wait_until_open(self) -> None:
        """Raises ValueError when the arm or a camera could not be opened."""
        if not self._opened.wait(OPEN_S):
            self._why_not = f"the rig did not open within {OPEN_S:g} s"
        if self._why_not:
            raise ValueError(self._why_not)

    def run(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Open the rig, tick on absolute deadlines until ``close``, close the rig. Deadlines that
        are a whole period behind are lost."""
        parts = {id(part): part for part in (self._rig.arm, self._rig.cameras)}.values()
        try:
            for part in parts:  # in simulation both are one
                part.open()
        except Exception as error:  # told to whoever waits in ``wait_until_open``
            self._why_not = f"the rig cannot be opened: {error}"
            log.debug("the rig cannot be opened", exc_info=True)
        self._opened.set()
        if not self._why_not:
            self._tick_on(sleep)
        for part in parts:
            _tell(lambda part: part.close(), part)

    def _tick_on(self, sleep: Callable[[float], None]) -> None:
        due = self._clock()
        while not self._closed:
            self.tick(due)
            due += PERIOD_S
            lost = max(0, int((self._clock() - due) / PERIOD_S))
            self._lost_ticks += lost
            due += lost * PERIOD_S
            sleep(max(0.0, due - self._clock()))
        _tell(self._abandon, "the host was ended")

    def tick(self, due: float) -> None:
        """One tick that was due at ``due``. Never raises: what goes wrong is a fault."""
        now = self._clock()
        self._number += 1
        try:
            self._run_inbox()  # first: who asks is answered although the arm may not be
            rig = self._rig
            tick = Tick(self._number, now, now - due, rig.arm.read(), rig.cameras.frames())
            if self._fault and not self._held:
                self._hold()  # the arm is back, and was not told yet
            self._publish(tick if self._fault else self._act(tick))
        except FaultError as fault:
            self._fail(fault)
        except Exception as error:  # a lost cable, a bug: whatever it is, the arm must stop
            if self._fault is None:
                log.exception("the control loop failed")
            self._fail(FaultError("rig", f"{type(error).__name__}: {error}"))

    def _run_inbox(self) -> None:
        while not self._inbox.empty():
            self._inbox.get_nowait()()

    def _act(self, tick: Tick) -> Tick:
        """Whatever this tick asks for; returns it with the command that was sent."""
        if self._episode:
            self._watch(self._guard, tick)
            return self._play_on(tick)
        reset = self._reset
        if reset and reset.homing is None and self._rig.operator.may_start():
            reset.started, reset.homing = True, Homing(self.limits)
        if reset is None or reset.homing is None:
            return tick
        self._watch(reset.homing.guard, tick)
        action = reset.homing.action(tick.arm.state)
        if action is not None:
            return self._send(reset.homing.guard, tick, action)
        self._hold()
        self._arrived(reset)
        return tick

    def _watch(self, guard: Guard, tick: Tick) -> None:
        if self._rig.operator.stop_asked():
            raise FaultError("operator_stop", "stop pressed")
        guard.watch(tick.reading(), tick.time_s)

    def _play_on(self, tick: Tick) -> Tick:
        if self._plan:
            planned = self._plan.popleft()
            return replace(self._send(self._guard, tick, planned.action), planned=planned)
        if not self._held and tick.time_s - self._commanded_s >= self.limits.command_age_s:
            self._hold()
        return tick

    def _send(self, guard: Guard, tick: Tick, action: np.ndarray) -> Tick:
        command = guard.command(action, tick.arm.state)
        self._held, self._commanded_s = False, tick.time_s
        target = self._rig.arm.move(command.action)
        return replace(tick, sent=command, target=target)

    def _hold(self) -> None:
        self._rig.arm.hold()
        self._held = True
        self._guard.rest()

    def _arrived(self, reset: _Reset) -> None:
        if not reset.started:
            reset.homing = None  # it drove home after a label; now the person lays the scene
            return
        self._reset = None
        try:
            self._rig.operator.began(reset.episode)
        except ValueError as error:
            reset.tell({"error": str(error)})
            return
        self._rig.record.begin(reset.episode)
        self._episode, self._chunks = reset.episode, 0
        self._guard.begin()
        reset.tell({"instruction": reset.episode["instruction"]})

    def _publish(self, tick: Tick) -> None:
        self._now = tick
        finished = bool(self._episode) and self._rig.operator.finished()
        if self._episode:
            self._rig.record.tick(tick)
        seen = {"tick": tick, "finished": finished, "done": tick.sent is None}
        for tell in self._lookers:
            tell(seen)
        self._lookers.clear()
        if self._tell_play:
            self._tell_play(seen)
            if tick.sent is None:
                self._tell_play = None

    def _doing(self) -> str:
        if self._fault:
            return "fault"
        if self._episode:
            return "episode"
        reset = self._reset
        return "idle" if reset is None else "wait" if reset.homing is None else "home"

    # ---- requests, run by the control thread ---------------------------------------------

    def _begin_reset(self, task: str, seed: int, episode: Episode, tell: Tell) -> None:
        if self._episode or self._reset:
            tell({"error": "an episode is under way: end it first"})
            return
        operator, scene = self._rig.operator, self._rig.scene
        labelled = bool(self._to_label) and operator.label(self._to_label) is not None
        try:
            instruction = operator.expect(task, seed, scene.lay(task, seed) if scene else "")
        except ValueError as error:
            tell({"error": str(error)})
            return
        if isinstance(operator, Unattended):
            self._clear()
        self._reset = _Reset(episode | {"task": task, "instruction": instruction}, tell)
        if labelled and not self._fault:  # the person has just spoken, so knows where the arm is
            self._reset.homing = Homing(self.limits)

    def _begin_plan(self, actions: np.ndarray, seen: int, latency_s: float, tell: Tell) -> None:
        if self._fault or not self._episode:
            tell({"stopped": str(self._fault)} if self._fault else {"error": "no episode runs"})
            return
        if self._plan:
            tell({"error": "a plan is being played"})
            return
        self._tell_play = tell
        age = (self._number - seen) * PERIOD_S
        if age > self.limits.plan_age_s:
            raise FaultError("stale_plan", f"it was made from an observation {age:.1f} s ago")
        self._plan.extend(
            Planned(action, self._chunks, row, latency_s) for row, action in enumerate(actions)
        )
        self._chunks += 1

    def _drop_plan(self, tell: Tell) -> None:
        self._plan.clear()
        self._tell_play = None
        if self._episode and not self._fault:
            self._hold()
        tell({})

    def _end(self, ending: str, tell: Tell) -> None:
        if self._episode:
            self._hold()
            self._finish(ending)
        tell({})

    def _finish(self, ending: str) -> None:
        """The arm is held, or was told so in vain."""
        episode, self._episode = self._episode, None
        self._plan.clear()
        self._tell_play = None
        if episode is None:
            return
        ended = episode | {"ending": ending}
        self._to_label = episode["trajectory_id"]
        for tell in (self._rig.record.end, self._rig.operator.ended):
            _tell(tell, ended)

    def _abandon(self, why: str) -> None:
        moving = self._episode is not None or self._reset is not None
        self._reset = None
        self._lookers.clear()
        if moving and not self._fault:
            self._hold()
        self._finish(f"aborted:client_lost, {why}")

    def _fail(self, fault: FaultError) -> None:
        """Hold first, then tell everybody. A second fault changes nothing but tries to hold."""
        first, self._fault = self._fault is None, self._fault or fault
        try:
            if first or not self._held:
                self._hold()
        except Exception as error:  # noqa: BLE001 - tried again at every tick
            self._held = False
            log.log(logging.ERROR if first else logging.DEBUG, "the arm cannot be held: %s", error)
        if not first:
            return
        waiting = [self._tell_play, *self._lookers, self._reset.tell if self._reset else None]
        self._reset, self._to_label = None, ""
        self._lookers.clear()
        self._finish(f"aborted:{fault.reason}")
        self._to_label = ""
        _tell(self._rig.operator.fault, str(fault))
        for tell in filter(None, waiting):
            tell({"stopped": str(fault)})

    def _clear(self) -> None:
        self._rig.arm.ready()
        self._fault = None


def _failure(work: Callable[[], None]) -> Exception | None:
    """What it raised, for whoever waits in another thread."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - raised again there
        return error
    return None


def _tell(who: Callable[[Any], None], what: Any) -> None:
    """What must not fail any more: the arm is held, and others are still to be told."""
    try:
        who(what)
    except Exception:  # logged; whoever it was, the loop goes on
        log.exception("%r was told of %r in vain", who, what)
