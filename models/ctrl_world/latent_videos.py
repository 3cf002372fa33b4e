"""Latents that Ctrl-World's own extractor wrote: ``latent_videos/<split>/<episode>/{0,1,2}.pt``."""

import pickle
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from models.ctrl_world.latents import NUM_VIEWS, check_scale, stack_views

FOLDERS = ("latent_videos", "latent_videos_svd")  # the second is upstream's fallback name


def find_latent_videos(root: Path) -> dict[tuple[str, str], Path]:
    """Folders of episodes by (split, episode).

    Raises:
        ValueError: there are none under ``root``.
    """
    for name in FOLDERS:
        folders = [path for path in sorted((root / name).glob("*/*")) if path.is_dir()]
        found = {(path.parent.name, path.name): path for path in folders}
        if found:
            return found
    raise ValueError(
        f"world_model.ctrl_world.latent_videos={root}: no {FOLDERS[0]}/<split>/<episode>/ in it"
    )


def read_latent_videos(
    folder: Path, num_frames: int, shape: tuple[int, int, int]
) -> Float[Tensor, "frames 2 4 stacked columns"]:
    """The three views of one episode, stacked; samples, so their standard deviation is 0.

    ``num_frames`` are the 5 Hz frames of its states. One more is what a recorder's last tick makes
    of it and is left out. ``shape`` is (channels, rows, columns) of a stacked latent.

    Raises:
        ValueError: a file is missing or damaged, or has another size, scale or number of frames.
    """
    views = [_read_view(folder / f"{view}.pt") for view in range(NUM_VIEWS)]
    channels, rows, columns = shape
    for number, view in enumerate(views):
        file = folder / f"{number}.pt"
        if view.shape[1:] != (channels, rows // NUM_VIEWS, columns):
            raise ValueError(
                f"{file} has latents of {tuple(view.shape[1:])}, the world model's are "
                f"{(channels, rows // NUM_VIEWS, columns)}: set robot.height and robot.width"
            )
        if not 0 <= len(view) - num_frames <= 1:
            raise ValueError(
                f"{file} has {len(view)} frames, the episode's states have {num_frames}: "
                "it belongs to another episode or was cut"
            )
        check_scale(view, str(file))
    samples = stack_views(torch.stack([view[:num_frames] for view in views], dim=1))
    return torch.stack([samples, torch.zeros_like(samples)], dim=1)


def _read_view(file: Path) -> Float[Tensor, "frames 4 rows columns"]:
    """Raises ValueError unless the file is one finite tensor of four dimensions."""
    if not file.is_file():
        raise ValueError(f"{file} is missing: an episode has one file per view")
    try:
        latents = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file} is no whole file of latents: {reason}") from error
    if not isinstance(latents, Tensor) or latents.ndim != 4:
        raise ValueError(f"{file} holds no tensor of (frames, 4, rows, columns)")
    if not torch.isfinite(latents).all():
        raise ValueError(f"{file} has latents that are NaN or infinite: extract them anew")
    return latents.float()
