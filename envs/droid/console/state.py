"""Where the person and the robot stand, as a function of the entries of the desk's journal."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from contracts.statistics import wilson
from envs.droid.console.journal import Entry

State = Literal["waiting_for_reset", "ready", "running", "to_label", "stopped"]
OUTCOMES = ("success", "failure", "discard")


@dataclass(frozen=True, slots=True)
class Episode:
    """What the host says about one attempt. ``ending`` is "" while it runs."""

    trajectory_id: str
    task: str
    instruction: str
    policy_version: int
    max_ticks: int
    ending: str = ""

    @classmethod
    def read(cls, said: dict[str, Any]) -> "Episode":
        """Raises ValueError naming the field that is missing or of the wrong kind."""
        kinds = {name: str for name in ("trajectory_id", "task", "instruction")} | {
            name: int for name in ("policy_version", "max_ticks")
        }
        for name, kind in kinds.items():
            if not isinstance(said.get(name), kind) or isinstance(said[name], bool):
                raise ValueError(f"episode[{name!r}]={said.get(name)!r} must be {kind.__name__}")
        if not said["trajectory_id"]:
            raise ValueError("episode['trajectory_id'] must not be empty")
        ending = said.get("ending") or ""
        return cls(*(said[name] for name in kinds), ending=str(ending))


@dataclass
class Facts:
    """All that the journal says. ``at`` is where the work stands; a stop hides it until cleared."""

    at: State = "waiting_for_reset"
    turn: int = 0  # number of entries: no two moments of a desk share it, not even over a restart
    stopped: str = ""  # why, "" if not
    start_asked: bool = False
    scene: Entry | None = None  # what the next episode needs on the table
    pending: Entry | None = None  # the label that a person gave to end the running episode
    episode: Episode | None = None  # the newest
    episodes: dict[str, Episode] = field(default_factory=dict)
    labels: dict[str, Entry] = field(default_factory=dict)

    @property
    def state(self) -> State:
        return "stopped" if self.stopped else self.at

    @property
    def trajectory_id(self) -> str:
        return self.episode.trajectory_id if self.episode else ""

    def apply(self, entry: Entry) -> None:
        """Take one entry that is in the journal. Raises ValueError for one of an unknown kind."""
        if entry["act"] not in _APPLY:
            raise ValueError(f"no desk writes entries of the kind {entry['act']!r}")
        self.turn += 1
        _APPLY[entry["act"]](self, entry)

    def tally(self) -> list[dict[str, Any]]:
        """Per task and policy version, in the order in which they first ran; intervals Wilson 95 %.

        Discarded episodes are counted, and are in no rate.
        """
        rows: dict[tuple[str, int], dict[str, int]] = {}
        for trajectory_id, episode in self.episodes.items():
            if trajectory_id in self.labels:
                key = (episode.task, episode.policy_version)
                counts = rows.setdefault(key, dict.fromkeys(OUTCOMES, 0))
                counts[self.labels[trajectory_id]["outcome"]] += 1
        return [_row(task, version, counts) for (task, version), counts in rows.items()]


def _row(task: str, version: int, counts: dict[str, int]) -> dict[str, Any]:
    n = counts["success"] + counts["failure"]
    interval = wilson(counts["success"], n)
    return {
        "task": task,
        "policy_version": version,
        **counts,
        "n": n,
        "low": interval.low,
        "high": interval.high,
    }


def _scene(facts: Facts, entry: Entry) -> None:
    facts.scene = entry
    if facts.at == "ready":  # nobody has laid this one yet
        facts.at, facts.start_asked = "waiting_for_reset", False


def _reset_done(facts: Facts, _: Entry) -> None:
    facts.at = "ready"


def _start(facts: Facts, _: Entry) -> None:
    facts.start_asked = True


def _began(facts: Facts, entry: Entry) -> None:
    facts.episode = Episode.read(entry["episode"])
    facts.episodes[facts.episode.trajectory_id] = facts.episode
    facts.at, facts.start_asked, facts.scene, facts.pending = "running", False, None, None


def _end(facts: Facts, entry: Entry) -> None:
    facts.pending = entry


def _ended(facts: Facts, entry: Entry) -> None:
    facts.episode = Episode.read(entry["episode"])
    facts.episodes[facts.episode.trajectory_id] = facts.episode
    facts.at, facts.pending = "to_label", None


def _label(facts: Facts, entry: Entry) -> None:
    facts.labels[entry["trajectory_id"]] = entry
    facts.at = "waiting_for_reset"


def _undo(facts: Facts, entry: Entry) -> None:
    del facts.labels[entry["trajectory_id"]]
    facts.at = "to_label"


def _stop(facts: Facts, entry: Entry) -> None:
    facts.stopped, facts.start_asked = entry["why"], False
    if facts.at == "ready":  # whatever was moved meanwhile: somebody looks at the scene again
        facts.at = "waiting_for_reset"


def _clear(facts: Facts, _: Entry) -> None:
    facts.stopped = ""


_APPLY: dict[str, Callable[[Facts, Entry], None]] = {
    "scene": _scene,
    "reset_done": _reset_done,
    "start": _start,
    "began": _began,
    "end": _end,
    "ended": _ended,
    "label": _label,
    "undo": _undo,
    "stop": _stop,
    "clear": _clear,
}
