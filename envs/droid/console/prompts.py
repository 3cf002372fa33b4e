"""What the robot is asked to do and how the person lays the scene, drawn from a seed."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from contracts.seeds import fold

STANDARD = Path(__file__).with_name("prompts.toml")
_PLACE = re.compile(r"\{([a-z_]+)(\d*)\}")  # {colour2}: the second that is drawn of `colour`


@dataclass(frozen=True, slots=True)
class Prompt:
    """One draw: the policy is given ``instruction``, the person is shown ``scene`` as well."""

    task: str
    seed: int
    instruction: str
    scene: str


@dataclass(frozen=True, slots=True)
class _Table:
    instructions: Sequence[str]
    scene: str
    lists: Mapping[str, Sequence[str]]


class Prompts:
    """Prompts of every task of one table. Equal (task, seed) give equal prompts on any machine."""

    def __init__(self, path: Path = STANDARD) -> None:
        """Raises ValueError naming what to change where the table cannot be used."""
        try:
            raw = tomllib.loads(path.read_text())
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no table of prompts: {error}") from error
        shared = raw.pop("lists", {})
        self._tables = {task: _table(path, task, entry, shared) for task, entry in raw.items()}
        self._path = path

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self._tables)

    def draw(self, task: str, seed: int) -> Prompt:
        """Raises ValueError for a task that the table lacks."""
        if task not in self._tables:
            raise ValueError(
                f"no prompts for the task {task!r} (there are: {', '.join(self._tables)}); add a "
                f"section [{task}] to {self._path}"
            )
        table = self._tables[task]
        shuffled = {
            name: sorted(words, key=lambda word: fold(seed, task, "word", word))
            for name, words in table.lists.items()
        }
        instruction = min(table.instructions, key=lambda text: fold(seed, task, "text", text))

        def fill(text: str) -> str:
            return _PLACE.sub(lambda at: shuffled[at[1]][int(at[2] or 1) - 1], text)

        return Prompt(task, seed, fill(instruction), fill(table.scene))


def _table(path: Path, task: str, entry: object, shared: object) -> _Table:
    where = f"{path}, section [{task}]"
    if not isinstance(entry, dict) or not isinstance(shared, dict):
        raise ValueError(f"{where}: must be a section with instructions and scene")
    instructions, scene = entry.get("instructions") or [], entry.get("scene")
    if not _texts(instructions) or not isinstance(scene, str):
        raise ValueError(f'{where}: needs instructions = ["...", ...] and scene = "..."')
    lists = shared | entry.get("lists", {})
    for name, words in lists.items():
        if not _texts(words) or len(set(words)) != len(words):
            raise ValueError(f"{where}: the list {name} must hold different texts, got {words!r}")
    for name, number in _PLACE.findall(" ".join([*instructions, scene])):
        if not 1 <= int(number or 1) <= len(lists.get(name, [])):
            raise ValueError(
                f"{where}: {{{name}{number}}} asks for more than lists.{name} holds "
                f"({len(lists.get(name, []))})"
            )
    return _Table(tuple(instructions), scene, lists)


def _texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)
