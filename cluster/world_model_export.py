"""Writes a trained Ctrl-World back as the file that its own scripts load: an export job."""

import shutil
from pathlib import Path

from rich.console import Console

from cluster.checkpoints import base_folder
from configs.world_model import WorldModelConfig
from models.ctrl_world.checkpoint import export
from models.ctrl_world.world_model import STATISTICS, weights_file

NAME = "checkpoint.pt"


def export_world_model(config: WorldModelConfig, folder: Path) -> Path:
    """Write ``<folder>/checkpoint.pt`` in the layout of ``ctrl_world.published``, and stat.json
    beside it, from ``world_model.checkpoint``. Starts no Ray; needs the memory of one file.

    Raises:
        ValueError: a file is missing, damaged or belongs to another model.
    """
    weights = base_folder("world_model", config.checkpoint)
    if config.kind != "ctrl_world" or weights is None:
        raise ValueError(
            "job=export_world_model writes a trained Ctrl-World: give world_model=ctrl_world "
            "world_model.checkpoint=<folder>"
        )
    if not config.ctrl_world.published:
        raise ValueError(
            "world_model.ctrl_world.published is not set: give the .pt that the training began "
            "with; what training does not touch is copied from it"
        )
    changed = export(weights_file(weights), Path(config.ctrl_world.published), folder / NAME)
    if (weights / STATISTICS).is_file():
        shutil.copyfile(weights / STATISTICS, folder / STATISTICS)
    Console().print(
        f"{folder / NAME}: {changed} tensors differ from {config.ctrl_world.published}",
        highlight=False,
        soft_wrap=True,
    )
    return folder / NAME
