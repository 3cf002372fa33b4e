"""What people said of imagined trajectories: a file that only grows, and its exchange as CSV."""

import csv
import io
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from replay.lock import WriterLock

ANSWERS = ("success", "failure", "unsure")
WHO = re.compile(r"[^\W_][\w .@-]{0,63}")  # begins with a letter or digit: no spreadsheet formula
FOLDER = "audit"  # of a run
FILE = "labels.jsonl"
COLUMNS = ("trajectory_id", "answer", "who", "when", "task", "stratum", "reward_version")
NEEDED = COLUMNS[:3]
SHOWN_ERRORS = 10


@dataclass(frozen=True, slots=True)
class AuditLabel:
    """A person's answer to whether an imagined trajectory succeeds; "unsure" is an answer.

    ``when`` is UTC in ISO 8601. ``stratum`` ("" outside the sample) and ``reward_version`` are
    those at that time.

    Raises:
        ValueError: the answer, name or time is none.
    """

    trajectory_id: str
    answer: str
    who: str
    when: str
    task: str
    stratum: str
    reward_version: int

    def __post_init__(self) -> None:
        if self.answer not in ANSWERS:
            raise ValueError(f"answer {self.answer!r} is not one of {', '.join(ANSWERS)}")
        if not WHO.fullmatch(self.who):
            raise ValueError(
                f"who {self.who!r} is no name: 1 to 64 letters, digits, spaces or . @ - _, "
                "a letter or digit first"
            )
        try:
            zone = datetime.fromisoformat(self.when).tzinfo
        except ValueError as error:
            raise ValueError(f"when {self.when!r} is no time in ISO 8601") from error
        if zone is None:
            raise ValueError(f"when {self.when!r} has no time zone, such as +00:00")

    @property
    def success(self) -> bool | None:
        """None: the person was not sure."""
        return None if self.answer == "unsure" else self.answer == "success"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class LabelBook:
    """The labels of a run, in ``folder``; one process writes, threads may share it.

    Of several answers to one trajectory the newest counts; the file keeps all.

    Raises:
        ValueError: a line is damaged, or another process writes.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE
        self._lock = WriterLock(folder / "labels.lock", wait_s=5.0)
        self._mutex = threading.Lock()
        self._closed = False
        try:
            self._cut_torn_tail()
            self._newest = read_labels(self._path)
        except BaseException:  # an interrupt too: the lock must not stay behind
            self._lock.release()
            raise

    def __len__(self) -> int:
        return len(self._newest)

    @property
    def newest(self) -> dict[str, AuditLabel]:
        """The answer that counts, by trajectory id."""
        with self._mutex:
            return dict(self._newest)

    def add(self, labels: Sequence[AuditLabel]) -> None:
        """On disk when this returns. One line of the file, so a crash leaves all of them or none.

        Raises:
            OSError: they could not be written; none of them counts.
            ValueError: the book is closed, and another process may write.
        """
        if not labels:
            return
        line = json.dumps([asdict(label) for label in labels], ensure_ascii=False) + "\n"
        with self._mutex:
            if self._closed:
                raise ValueError("this audit page is over: start job=audit again")
            before = self._path.stat().st_size if self._path.exists() else 0
            try:
                with self._path.open("ab") as file:
                    file.write(line.encode())
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                os.truncate(self._path, before)
                raise
            self._newest |= {label.trajectory_id: label for label in labels}

    def close(self) -> None:
        """Let another process write. Idempotent."""
        with self._mutex:
            self._closed = True
        self._lock.release()

    def _cut_torn_tail(self) -> None:
        """A line without an end was never acknowledged."""
        if self._path.exists():
            content = self._path.read_bytes()
            if not content.endswith(b"\n"):
                os.truncate(self._path, content.rfind(b"\n") + 1)


def labels_of(run: Path) -> Path:
    """The file of the run in a folder, whether or not it is there."""
    return run / FOLDER / FILE


def read_labels(path: Path) -> dict[str, AuditLabel]:
    """The answer that counts of each trajectory; may be read while another process writes.

    Raises:
        ValueError: a line is damaged.
    """
    found: dict[str, AuditLabel] = {}
    if not path.exists():
        return found
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            labels = [AuditLabel(**facts) for facts in json.loads(line)]
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path} line {number} is damaged ({error}): restore the file, or delete that line"
            ) from error
        found |= {label.trajectory_id: label for label in labels}
    return found


def to_csv(labels: Sequence[AuditLabel]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([asdict(label)[column] for column in COLUMNS] for label in labels)
    return text.getvalue()


Known = Callable[[str], dict[str, Any]]  # id -> task, stratum, reward version; KeyError: unknown


def from_csv(text: str, known: Known) -> list[AuditLabel]:
    """The labels in a CSV with the columns ``NEEDED`` and, if given, ``when`` (else: now).

    What else is said of a trajectory comes from ``known``; other columns are ignored.

    Raises:
        ValueError: a row is wrong. It names the first ``SHOWN_ERRORS`` lines with the reason.
    """
    if "\0" in text:
        raise ValueError("line 1: this is no CSV in UTF-8")
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")), strict=True)
    labels: dict[str, AuditLabel] = {}
    wrong: list[str] = []
    try:
        missing = [name for name in NEEDED if name not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"line 1: no column {', '.join(missing)}; needed: {', '.join(NEEDED)}")
        for row in reader:
            wrong += _take(row, labels, known, reader.line_num)
    except csv.Error as error:
        wrong.append(f"from line {reader.line_num + 1} on: {error}")
    if wrong:
        more = f"; and {len(wrong) - SHOWN_ERRORS} more" if len(wrong) > SHOWN_ERRORS else ""
        raise ValueError("; ".join(wrong[:SHOWN_ERRORS]) + more)
    if not labels:
        raise ValueError("line 2: no labels in this file")
    return list(labels.values())


def _take(
    row: dict[str | Any, str | Any], labels: dict[str, AuditLabel], known: Known, line: int
) -> Iterator[str]:
    """Put a row's label into ``labels``, or yield what is wrong with it."""
    name = row["trajectory_id"]
    if None in row or any(row[column] is None for column in NEEDED):
        yield f"line {line}: more or fewer cells than the header has"
    elif name in labels:
        yield f"line {line}: trajectory {name!r} occurs twice"
    else:
        try:
            made = {column: row[column] for column in NEEDED} | {"when": row.get("when") or now()}
            labels[name] = AuditLabel(**made, **known(name))
        except KeyError:
            yield f"line {line}: no imagined trajectory {name!r} in this run"
        except ValueError as error:
            yield f"line {line}: {error}"
