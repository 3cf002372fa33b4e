"""Where results of replays are kept, one file each, so that the same command continues."""

import os
import re
from pathlib import Path

import numpy as np

from services.judging import Found
from services.replay_items import ReplayItem
from services.stages import fingerprint


class Results:
    """Those of one variant: ``<root>/<name>-<key>/<item>.npz``, each whole or absent.

    ``settings`` are all that a result depends on beside its item; others have another folder.
    """

    def __init__(self, root: Path, name: str, settings: object) -> None:
        label = re.sub(r"[^\w+.-]+", "-", name)
        self._folder = root / f"{label}-{fingerprint(settings)}"
        self._folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, item: ReplayItem) -> bool:
        return self._path(item).exists()

    def save(self, item: ReplayItem, found: Found) -> None:
        partial = self._path(item).with_suffix(".tmp")
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **found)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path(item))

    def load(self, item: ReplayItem) -> Found:
        """Raises ValueError naming a damaged file."""
        path = self._path(item)
        try:
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); delete it and run the same command"
            ) from error

    def _path(self, item: ReplayItem) -> Path:
        return self._folder / f"{item.key}.npz"
