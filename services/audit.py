"""A run as its auditors see it: trajectories to browse, a blind sample to label, Table 3."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contracts.constants import FRAME_HZ
from contracts.types import Verdict
from services.audit_films import FilmCache, alone, pair, still
from services.audit_labelling import Labelling
from services.audit_labels import FOLDER, AuditLabel
from services.audit_sample import Drawing
from services.audit_stores import AuditStores

PAGE = 24  # trajectories
BLIND = "hidden"  # verdict of a trajectory that somebody is still to label


@dataclass(frozen=True, slots=True)
class Filter:
    """Which trajectories of a store to list; "" leaves a field open.

    ``verdict`` is accepted, rejected, error, none or hidden; ``label`` success, failure, unsure or
    none.
    """

    store: str = "imagined"
    task: str = ""
    iteration: str = ""
    verdict: str = ""
    label: str = ""


class AuditRun:
    """The stores of the run in ``folder``, read only; labels and sample are in its ``audit``.

    Methods may be called from several threads. They raise ValueError for a store, trajectory or
    key that the run does not have.
    """

    def __init__(self, folder: Path, drawing: Drawing) -> None:
        self._name, self._alpha = folder.name, drawing.alpha
        self._stores = AuditStores(folder)
        self.labelling = Labelling(folder / FOLDER, self._stores, drawing)
        self._films = FilmCache()

    def close(self) -> None:
        self.labelling.close()
        self._stores.close()

    def overview(self) -> dict[str, Any]:
        """What there is to choose from, and how far the labelling is."""
        self._stores.refresh()
        stories = {
            name: [store.provenance(one) for one in store.ids()] for name, store in self._stores
        }
        everything = [story for some in stories.values() for story in some]
        return {
            "run": self._name,
            "stores": {name: len(some) for name, some in stories.items()},
            "tasks": sorted({story.task for story in everything}),
            "iterations": sorted({story.iteration for story in everything}),
            "samples": self.labelling.progress(),
        }

    def listing(self, wanted: Filter, page: int) -> dict[str, Any]:
        """``PAGE`` trajectories that agree with a filter, in the order of their commits."""
        self._stores.refresh()
        ids = self._stores.store(wanted.store).ids(task=wanted.task or None)
        hidden, labels = self.labelling.open, self.labelling.labels
        rows = (self._row(wanted.store, name, hidden, labels) for name in ids)
        found = [
            row
            for row in rows
            if wanted.iteration in ("", str(row["iteration"]))
            and wanted.verdict in ("", row["verdict"])
            and wanted.label in ("", row["label"] or "none")
        ]
        return {"total": len(found), "rows": found[page * PAGE :][:PAGE], "page_size": PAGE}

    def detail(self, store: str, name: str) -> dict[str, Any]:
        """Everything that is known of one trajectory but its frames."""
        self._require(store, name)
        row = self._row(store, name, self.labelling.open, self.labelling.labels)
        (episode,) = self._stores.store(store).episodes([name])
        parent_store = self._stores.holding(episode.provenance.parent)
        return row | {
            **asdict(episode.provenance),
            "ending": episode.ending,
            "parent_store": parent_store,
            "pair": bool(parent_store) and self._fit(name, parent_store, episode.provenance.parent),
        }

    def film(self, store: str, name: str) -> bytes:
        """MP4 of a trajectory; an imagined one beside its real parent where they fit."""
        self._require(store, name)
        return self._films.get(("film", store, name), lambda: self._filmed(store, name))

    def picture(self, store: str, name: str) -> bytes:
        """JPEG of a trajectory's last frame, views beside each other."""
        self._require(store, name)
        opened = self._stores.store(store)
        return still(opened.frames(name, [opened.num_frames(name) - 1])[0])

    def blind_film(self, key: str, wide: bool) -> bytes:
        """MP4 of a trajectory of the sample by its key, without its parent."""
        name = self.labelling.trajectory_id(key)
        frames = self._stores.imagined.trajectory
        return self._films.get(("blind", name, wide), lambda: alone(frames(name).frames, wide))

    def _filmed(self, store: str, name: str) -> bytes:
        facts, trajectory = self.detail(store, name), self._stores.store(store).trajectory(name)
        if not facts["pair"]:
            return alone(trajectory.frames, wide=False)
        parent = self._stores.store(facts["parent_store"]).trajectory(facts["parent"])
        return pair(parent.frames[facts["parent_frame"] :], trajectory.frames)

    def _row(
        self, store: str, name: str, hidden: set[str], labels: Mapping[str, AuditLabel]
    ) -> dict[str, Any]:
        opened = self._stores.store(store)
        story = opened.provenance(name)
        verdict = self._stores.verdicts(store).get(name)
        blind = store == "imagined" and name in hidden
        return {
            "store": store,
            "id": name,
            "task": story.task,
            "iteration": story.iteration,
            "instruction": opened.instruction(name),
            "seconds": (opened.num_frames(name) - 1) / FRAME_HZ,
            "alpha": self._alpha[story.task],
            **self._label(store, name, labels),
            **(_HIDDEN if blind else self._judged(story.task, verdict)),
        }

    def _judged(self, task: str, verdict: Verdict | None) -> dict[str, Any]:
        if verdict is None:
            return _UNSCORED
        facts = {"reward_version": verdict.reward_version, "error": verdict.error}
        if verdict.error:
            return _UNSCORED | facts | {"verdict": "error"}
        accepted = "accepted" if verdict.accepted(self._alpha[task]) else "rejected"
        return facts | {"verdict": accepted, "p_yes": verdict.p_yes, "mass": verdict.mass}

    def _label(self, store: str, name: str, labels: Mapping[str, AuditLabel]) -> dict[str, str]:
        """What a person (or the simulator) said, and who."""
        if store == "imagined":
            said = labels.get(name)
            return {
                "label": said.answer if said else "",
                "said_by": f"{said.who}, {said.when}" if said else "",
            }
        label = self._stores.store(store).label(name)
        if label is None:
            return {"label": "", "said_by": ""}
        source = " ".join(filter(None, (label.source, label.operator)))
        return {"label": "success" if label.success else "failure", "said_by": source}

    def _fit(self, name: str, parent_store: str, parent: str) -> bool:
        """Whether both can be shown in one picture."""
        (one,) = self._stores.imagined.episodes([name])
        (other,) = self._stores.store(parent_store).episodes([parent])
        return (one.height, one.width) == (other.height, other.width)

    def _require(self, store: str, name: str) -> None:
        self._stores.refresh()
        if name not in self._stores.store(store):
            raise ValueError(f"no trajectory {name!r} in the store {store}")


_UNSCORED = {"verdict": "none", "p_yes": None, "mass": None, "reward_version": None, "error": ""}
_HIDDEN = _UNSCORED | {"verdict": BLIND}
