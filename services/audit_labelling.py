"""The blind sample of a run: its queue, the answers, and what they say of the reward model."""

import hashlib
from pathlib import Path
from typing import Any

from services.audit_labels import AuditLabel, LabelBook, from_csv, now, to_csv
from services.audit_sample import Drawing, Sample, kept_or_drawn
from services.audit_stores import AuditStores
from services.audit_table import Line, table3


class Labelling:
    """Labels and sample of a run, kept in ``folder``. Methods may be called from several threads.

    A trajectory of the sample goes by a key that tells neither its number nor its score, and that
    stays its own whatever is drawn later.

    Raises:
        ValueError: a damaged file, another audit page of this run, or a sample of another run.
    """

    def __init__(self, folder: Path, stores: AuditStores, drawing: Drawing) -> None:
        self._stores = stores
        self._book = LabelBook(folder)
        try:
            path = folder / "sample.json"
            self.samples = kept_or_drawn(path, stores.populations, drawing)
            self._keys = self._blind_keys(path)
        except BaseException:  # an interrupt too: the lock must not stay behind
            self._book.close()
            raise
        self._drawn = {name for _, name in self._keys.values()}

    def close(self) -> None:
        self._book.close()

    @property
    def labels(self) -> dict[str, AuditLabel]:
        """The answer that counts of each trajectory."""
        return self._book.newest

    @property
    def open(self) -> set[str]:
        """Trajectories of the sample that nobody has answered: their verdict stays hidden."""
        return self._drawn - self._book.newest.keys()

    def queue(self, task: str) -> list[dict[str, Any]]:
        """The sample of a task in the order of labelling; nothing here tells P('yes').

        Raises:
            ValueError: no trajectory of such a task is scored.
        """
        if task not in self.samples:
            raise ValueError(f"no sample of task {task!r}: none of its trajectories is scored")
        sample, labels = self.samples[task], self.labels
        return [
            {
                "key": _key(sample, name),
                "instruction": self._stores.imagined.instruction(name),
                "answer": labels[name].answer if name in labels else "",
            }
            for name in sample.order
        ]

    def trajectory_id(self, key: str) -> str:
        """Raises ValueError for a key of no trajectory of the sample."""
        if key not in self._keys:
            raise ValueError("this trajectory is not in the sample any more: load the page again")
        return self._keys[key][1]

    def answer(self, key: str, answer: str, who: str) -> None:
        """Store what a person said; on disk when this returns.

        Raises:
            ValueError: no such key, answer or name.
            OSError: it could not be written.
        """
        name = self.trajectory_id(key)
        self._book.add([AuditLabel(name, answer, who, now(), **self._facts(name))])

    def table(self) -> list[Line]:
        """Table 3 by the labels of the sample so far."""
        of_version = {
            version: self._stores.imagined.verdicts(version)
            for version in {sample.reward_version for sample in self.samples.values()}
        }
        verdicts = {
            name: of_version[sample.reward_version][name] for sample, name in self._keys.values()
        }
        return table3(self.samples.values(), verdicts, self.labels)

    def export(self) -> str:
        """The answer that counts of every trajectory as CSV."""
        return to_csv(list(self.labels.values()))

    def take(self, text: str) -> int:
        """Add the labels of a CSV, all or none; returns how many.

        Raises:
            ValueError: the lines that are wrong, and why.
            OSError: they could not be written.
        """
        labels = from_csv(text, self._facts)
        self._book.add(labels)
        return len(labels)

    def progress(self) -> list[dict[str, Any]]:
        """Of every task: what was drawn from what, and how much of it is labelled."""
        labels = self.labels
        return [self._progress(sample, labels) for sample in self.samples.values()]

    def _progress(self, sample: Sample, labels: dict[str, AuditLabel]) -> dict[str, Any]:
        answers = [labels[name].answer for name in sample.order if name in labels]
        there = self._stores.populations.get(sample.task, {})
        scored = sum(not verdict.error for verdict in there.values())
        version = max((v.reward_version for v in there.values()), default=0)
        return {
            "task": sample.task,
            "drawn": len(sample.order),
            "labelled": len(answers),
            "unsure": answers.count("unsure"),
            "population": sample.population,
            "unscored": sample.unscored,
            "alpha": sample.alpha,
            "seed": sample.seed,
            "reward_version": sample.reward_version,
            "stale": (scored, version) != (sample.population, sample.reward_version),
            "strata": [
                {"name": part.name, "size": part.size, "drawn": len(part.drawn)}
                for part in sample.strata
            ],
        }

    def _blind_keys(self, path: Path) -> dict[str, tuple[Sample, str]]:
        found: dict[str, tuple[Sample, str]] = {}
        for sample in self.samples.values():
            scored = self._stores.imagined.verdicts(sample.reward_version)
            for name in sample.order:
                if name not in scored:
                    raise ValueError(
                        f"{path} names {name!r}, which reward v{sample.reward_version} has not "
                        "scored here: give audit.redraw=true to draw a new sample"
                    )
                found[_key(sample, name)] = sample, name
        return found

    def _facts(self, name: str) -> dict[str, Any]:
        """What a label notes beside the answer. Raises KeyError for an unknown trajectory."""
        if name not in self._stores.imagined:
            raise KeyError(name)
        task = self._stores.imagined.provenance(name).task
        sample = self.samples.get(task)
        verdict = self._stores.verdicts("imagined").get(name)
        return {
            "task": task,
            "stratum": sample.stratum(name) if sample else "",
            "reward_version": verdict.reward_version if verdict else 0,
        }


def _key(sample: Sample, name: str) -> str:
    return hashlib.sha256(f"audit/{sample.seed}/{name}".encode()).hexdigest()[:24]
