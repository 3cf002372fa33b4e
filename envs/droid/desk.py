"""The person at the robot as a state machine: who may start, how an episode went, who said so.

    waiting_for_reset -> ready -> running -> to_label -> waiting_for_reset -> ...

and, from anywhere, ``stopped`` until a person clears it. The robot's host drives one side, pages of
the console the other. Everything is in the journal before it counts.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from envs.droid.console.journal import Entry, Journal
from envs.droid.console.prompts import Prompt, Prompts
from envs.droid.console.state import OUTCOMES, Episode, Facts, State

UNDO_S = 3.0  # for so long a person may take a label back; only then does the host get it
HOST = "robot host"


class RefusedError(ValueError):
    """The desk did not do what a person asked; the message says why and what to do instead."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the page showed when its person acted. A page that was behind acts on nothing."""

    state: str
    trajectory_id: str
    turn: int


def _utc() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Desk:
    """One person (or several, at several pages) and one robot. Any thread may call anything.

    After a restart it stands where the journal left it: an episode that was running is to be
    labelled, a stop still holds, and the scene is to be confirmed again. Methods of a person raise
    RefusedError when they did nothing.
    """

    def __init__(
        self,
        journal: Path,
        prompts: Prompts | None = None,
        undo_s: float = UNDO_S,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], str] = _utc,
    ) -> None:
        """Raises ValueError where the journal is damaged or in use."""
        self._prompts = prompts or Prompts()
        self._undo_s, self._clock, self._now = undo_s, clock, now
        self._lock = threading.RLock()
        self._journal = Journal(journal)
        self._facts = Facts()
        self._undo_until = self._began_at = -float("inf")
        self._trouble = ""
        self._prompts_used = False  # a host that says what comes next is waited for
        for number, entry in enumerate(self._journal.entries, start=1):
            try:
                self._facts.apply(entry)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{journal}, line {number} makes no sense: {error!r}") from error
        self._stop_asked = bool(self._facts.stopped)
        self._end_asked = False
        self._take_up()

    # What the robot's host calls.

    def stop_asked(self) -> bool:
        """Whether nothing may move. For every tick: takes no lock, so no disk can delay it."""
        return self._stop_asked

    def finished(self) -> bool:
        """Whether the person has ended the running episode by saying what it was worth."""
        return self._end_asked

    def expect(self, task: str, seed: int, instruction: str = "") -> str:
        """The next episode is (task, seed): show how to lay it; returns its instruction.

        With ``instruction`` a simulator has laid the scene and says what it is for. A scene that
        was confirmed before is confirmed again, unless it is this very one.

        Raises:
            ValueError: the task has no prompts, or an episode is running.
        """
        laid = Prompt(task, seed, instruction, "The simulator has laid the scene.")
        prompt = laid if instruction else self._prompts.draw(task, seed)
        with self._lock:
            self._prompts_used = True
            if self._facts.at == "running":
                raise ValueError(f"{self._facts.trajectory_id} still runs: call ended() first")
            if _prompt_of(self._facts.scene) != prompt:
                self._record({"act": "scene", "who": HOST, **asdict(prompt)})
        return prompt.instruction

    def may_start(self) -> bool:
        """Whether a person has laid the scene and pressed start, and nobody has stopped since."""
        with self._lock:
            facts = self._facts
            return facts.state == "ready" and facts.start_asked and not self._stop_asked

    def began(self, episode: dict[str, Any]) -> None:
        """The arm may move once this has returned, and not if it raises.

        Raises:
            ValueError: nobody agreed to this start, or somebody stopped since, or the person laid
                the scene of another instruction, or the episode was run before.
        """
        with self._lock:
            self._check_start(begun := Episode.read(episode))
            self._record({"act": "began", "who": HOST, "episode": asdict(begun)})
            self._began_at, self._end_asked = self._clock(), False

    def ended(self, episode: dict[str, Any]) -> None:
        """The arm is held. Told twice, it counts once.

        Raises:
            ValueError: it is not the episode that runs.
        """
        done = Episode.read(episode)
        with self._lock:
            facts = self._facts
            if done.trajectory_id != facts.trajectory_id:
                raise ValueError(
                    f"{done.trajectory_id} ended, but {facts.trajectory_id or 'none'} began"
                )
            if facts.at != "running":
                return
            wish = facts.pending
            self._record({"act": "ended", "who": HOST, "episode": asdict(done)}, must=False)
            self._end_asked = False
            # What was said before a fault was not said about how the episode went on to end.
            if wish and not done.ending.startswith("aborted") and not facts.stopped:
                self._give(wish["who"], wish["outcome"], wish["progress"], must=False)

    def label(self, trajectory_id: str) -> dict[str, Any] | None:
        """What a person said, once it can no longer be taken back: success (None if discarded),
        discarded, who, when (UTC, ISO 8601), progress (0 to 100, None if not given)."""
        with self._lock:
            entry = self._facts.labels.get(trajectory_id)
            if entry is None or (
                trajectory_id == self._facts.trajectory_id and self._undo_left() > 0
            ):
                return None
            discarded = entry["outcome"] == "discard"
            return {
                "trajectory_id": trajectory_id,
                "success": None if discarded else entry["outcome"] == "success",
                "discarded": discarded,
                **{name: entry[name] for name in ("who", "when", "progress")},
            }

    def fault(self, reason: str) -> None:
        """Stop, because the host says so. Told again while stopped, it changes nothing."""
        self._stop_asked = True
        with self._lock:
            if not self._facts.stopped:
                self._record({"act": "stop", "who": HOST, "why": f"fault: {reason}"}, must=False)

    # What a person does.

    def stop(self, who: str = "", why: str = "stop pressed") -> None:
        """From any state, whatever the page showed; holds until it is cleared."""
        self._stop_asked = True  # first: neither a lock nor a full disk may delay it
        with self._lock:
            self._record({"act": "stop", "who": who, "why": why}, must=False)
            self._stop_asked = True  # somebody may have cleared an older stop in between

    def clear(self, who: str, shown: Shown) -> None:
        """Nobody is in the arm's reach, and what stopped it is gone. Starts nothing."""
        with self._lock:
            self.check_clear(who, shown)
            self._do({"act": "clear", "who": who})
            self._stop_asked = self._end_asked = False

    def check_clear(self, who: str, shown: Shown) -> None:
        """Raises RefusedError where ``clear`` would."""
        with self._lock:
            self._check(who, shown, "stopped")
            if self._facts.at == "running":
                raise RefusedError("the host has not ended the episode yet: wait, then clear")

    def reset_done(self, who: str, shown: Shown) -> None:
        """The scene is laid and hands are off the table."""
        with self._lock:
            self._check(who, shown, "waiting_for_reset")
            if self._awaits_scene():
                raise RefusedError("nothing done: the host has not said yet what comes next; wait")
            self._do({"act": "reset_done", "who": who})

    def start(self, who: str, shown: Shown) -> None:
        """The robot may move as soon as its host wants to."""
        with self._lock:
            self._check(who, shown, "ready")
            if not self._facts.start_asked:
                self._do({"act": "start", "who": who})

    def say(self, who: str, shown: Shown, outcome: str, progress: int | None = None) -> None:
        """Label the episode, or end a running one with this label."""
        if outcome not in OUTCOMES:
            raise RefusedError(f"outcome {outcome!r}: must be one of {', '.join(OUTCOMES)}")
        if progress is not None and not 0 <= progress <= 100:
            raise RefusedError(f"progress {progress}: must lie in 0..100")
        with self._lock:
            self._check(who, shown, "running", "to_label")
            if self._facts.at == "to_label":
                self._give(who, outcome, progress)
            else:
                self._do({"act": "end", "who": who, "outcome": outcome, "progress": progress})
                self._end_asked = True

    def undo(self, who: str, shown: Shown) -> None:
        """Take the last label back before the host has it."""
        with self._lock:
            self._check(who, shown, "waiting_for_reset")
            if self._undo_left() <= 0:
                raise RefusedError("too late to undo: the robot host already has the label")
            self._do({"act": "undo", "who": who, "trajectory_id": self._facts.trajectory_id})

    def view(self) -> dict[str, Any]:
        """All that a page shows of the desk."""
        with self._lock:
            facts, episode = self._facts, self._facts.episode
            running = facts.at == "running"
            last = facts.labels.get(facts.trajectory_id)
            return {
                **{"state": facts.state, "turn": facts.turn, "stopped": facts.stopped},
                "trajectory_id": facts.trajectory_id,
                "episode": asdict(episode) if episode else None,
                "running": running,
                "elapsed_s": self._clock() - self._began_at if running else 0.0,
                "start_asked": facts.start_asked,
                "pending": facts.pending["outcome"] if facts.pending else "",
                "label": last["outcome"] if last else "",
                "scene": asdict(scene) if (scene := _prompt_of(facts.scene)) else None,
                "awaits_scene": self._awaits_scene(),
                "undo_s": max(0.0, self._undo_left()),
                "tally": facts.tally(),
                "trouble": self._trouble,
            }

    def close(self) -> None:
        """Let another process open the journal."""
        self._journal.close()

    def _take_up(self) -> None:
        """Go on after a restart of the host: nothing moves now, whatever the journal ended with."""
        episode = self._facts.episode
        if self._facts.at == "running" and episode:
            lost = replace(episode, ending="aborted:the robot host was restarted")
            self._record({"act": "ended", "who": HOST, "episode": asdict(lost)})
        elif self._facts.at == "ready":
            self._facts.at, self._facts.start_asked = "waiting_for_reset", False

    def _check_start(self, begun: Episode) -> None:
        facts, name = self._facts, begun.trajectory_id
        if name in facts.episodes:
            raise ValueError(f"{name} was run before: give every episode an id of its own")
        scene = facts.scene
        if scene and (scene["task"], scene["instruction"]) != (begun.task, begun.instruction):
            raise ValueError(
                f"{name} is {begun.task!r}, {begun.instruction!r}, but the scene was laid for "
                f"{scene['task']!r}, {scene['instruction']!r}; call expect() with its task and seed"
            )
        if not self.may_start():
            raise ValueError(f"{name} may not begin: the desk is {facts.state}; ask may_start()")

    def _check(self, who: str, shown: Shown, *allowed: State) -> None:
        facts = self._facts
        now = Shown(facts.state, facts.trajectory_id, facts.turn)
        if shown != now:
            raise RefusedError(
                f"nothing done: your page still showed {_words(shown)}, by now it is "
                f"{_words(now)}. Look again, then press again"
            )
        if facts.state not in allowed:
            wanted = " or ".join(state.replace("_", " ") for state in allowed)
            raise RefusedError(
                f"nothing done: the desk is {facts.state.replace('_', ' ')}, this needs {wanted}"
            )
        if not who:
            raise RefusedError("nothing done: say who you are first")

    def _give(self, who: str, outcome: str, progress: int | None, must: bool = True) -> None:
        entry = {"act": "label", "trajectory_id": self._facts.trajectory_id}
        self._do(entry | {"who": who, "outcome": outcome, "progress": progress}, must)
        self._undo_until = self._clock() + self._undo_s

    def _awaits_scene(self) -> bool:
        """Whether nobody can know yet what to lay."""
        return self._prompts_used and self._facts.scene is None

    def _undo_left(self) -> float:
        facts = self._facts
        undoable = facts.at == "waiting_for_reset" and facts.trajectory_id in facts.labels
        return self._undo_until - self._clock() if undoable else 0.0

    def _do(self, entry: Entry, must: bool = True) -> None:
        try:
            self._record(entry, must)
        except OSError as error:
            raise RefusedError(
                f"nothing done: {self._journal.path} cannot be written ({error}). Make room, then "
                "press again"
            ) from error

    def _record(self, entry: Entry, must: bool = True) -> None:
        """Into the journal, then into effect. What happened anyway (``must`` false) takes effect
        without the journal too, and every page shows that it is not kept."""
        entry = entry | {"when": self._now()}
        try:
            self._journal.append(entry)
            self._trouble = ""
        except OSError as error:
            self._trouble = f"{self._journal.path} cannot be written: {error}"
            if must:
                raise
        self._facts.apply(entry)


def _prompt_of(scene: Entry | None) -> Prompt | None:
    if scene is None:
        return None
    return Prompt(scene["task"], scene["seed"], scene["instruction"], scene["scene"])


def _words(shown: Shown) -> str:
    state = shown.state.replace("_", " ")
    return f"{state} of {shown.trajectory_id}" if shown.trajectory_id else state
