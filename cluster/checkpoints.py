"""Versioned, checksummed checkpoint folders: how weights travel between processes."""

import hashlib
import shutil
from pathlib import Path
from typing import Literal

from contracts.types import Checkpoint
from services.stages import read_json, write_json

Kind = Literal["policy", "world_model", "reward"]
MANIFEST = "checkpoint.json"
WAY_OUT = (
    "Delete the folder and the manifest of the stage that made it, in stages/, then run the same "
    "command"
)
BASE = Path(__file__).parents[1] / "models" / "embedded" / "base"


def checksum(folder: Path) -> str:
    """sha256 over the names and contents of all files but the manifest, in name order."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        total.update(str(path.relative_to(folder)).encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


class CheckpointFolder:
    """All checkpoints of one run, ``<root>/<kind>/v0001``. A version is published once."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def publish(
        self, kind: Kind, version: int, weights: Path, lineage: dict[str, object]
    ) -> Checkpoint:
        """Copy ``weights`` into place as one atomic rename; a version that exists is kept."""
        final = self._root / kind / f"v{version:04d}"
        if not final.exists():
            partial = final.with_name(final.name + ".tmp")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(weights, partial)
            facts = {"kind": kind, "version": version, "checksum": checksum(partial)}
            write_json(partial / MANIFEST, facts | {"lineage": lineage})
            partial.rename(final)
        return self.open(kind, version)

    def open(self, kind: Kind, version: int) -> Checkpoint:
        """Raises ValueError when the folder's content is not what was published."""
        return verified(self._root / kind / f"v{version:04d}")

    def lineage(self) -> list[dict[str, object]]:
        """Manifests of every published version, by kind and version."""
        return [read_json(path) for path in sorted(self._root.glob(f"*/v*/{MANIFEST}"))]


def verified(folder: Path) -> Checkpoint:
    """Open a published checkpoint, or raise ValueError naming the folder and the way out."""
    if not (folder / MANIFEST).exists():
        raise ValueError(f"{folder} holds no {MANIFEST}: it is not a published checkpoint")
    try:
        facts, found = read_json(folder / MANIFEST), checksum(folder)
        published = facts["checksum"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is damaged: its {MANIFEST} is torn. {WAY_OUT}") from error
    if found != published:
        raise ValueError(
            f"{folder} is damaged: its checksum is {found[:12]}, published as {published[:12]}. "
            f"{WAY_OUT}"
        )
    return Checkpoint(facts["kind"], str(folder), facts["version"], facts["checksum"])


def base_folder(kind: Kind, setting: str) -> Path | None:
    """Where a base model's weights are; None for fresh ones.

    Raises:
        ValueError: the folder that ``<kind>.checkpoint`` names is not there.
    """
    if setting == "scratch":
        return None
    folder = BASE / kind if setting == "base" else Path(setting)
    if not folder.is_dir():
        raise ValueError(
            f"{kind}.checkpoint={setting}: there is no folder {folder}. Give a folder, or "
            f"{kind}.checkpoint=scratch for fresh weights, or make the base by `make base`"
        )
    return folder
