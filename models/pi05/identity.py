"""What a pi0.5 checkpoint means beyond its tensors: action space, tokenizer and sizes."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

from configs.policy import Pi05Config

IDENTITY_FILE = "pi05.json"
ACTION_SPACE_FILE = "action_space.json"  # beside norm_stats.json: the numbers are of that space
NOT_SIZES = (
    *("tokenizer", "exterior_view", "asset_id", "augment", "recompute", "dtype", "action_space"),
    *("lora_rank", "lora_alpha", "lora_targets"),
)

log = logging.getLogger(__name__)


def stats_path(cfg: Pi05Config, folder: Path) -> Path:
    """Where openpi keeps the normalisation of a checkpoint."""
    return folder / "assets" / cfg.asset_id / "norm_stats.json"


def write_identity(cfg: Pi05Config, tokenizer: str, folder: Path) -> None:
    """Write the sizes beside the weights and the action space beside the norm stats."""
    (folder / IDENTITY_FILE).write_text(json.dumps(_sizes(cfg, tokenizer), indent=2))
    path = stats_path(cfg, folder).with_name(ACTION_SPACE_FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"action_space": cfg.action_space}))


def check_identity(cfg: Pi05Config, tokenizer: str, folder: Path) -> None:
    """Compare a folder with the config. openpi and lerobot write neither file: shapes are checked
    all the same, and the action space is taken from the config, which is logged.

    Raises:
        ValueError: sizes, tokenizer or action space differ; says how.
    """
    space = stats_path(cfg, folder).with_name(ACTION_SPACE_FILE)
    if space.is_file():
        _compare(space, {"action_space": cfg.action_space})
    else:
        log.warning(
            "%s is not there: policy.pi05.action_space=%s is taken on trust",
            space,
            cfg.action_space,
        )
    if (folder / IDENTITY_FILE).is_file():
        _compare(folder / IDENTITY_FILE, _sizes(cfg, tokenizer))


def _sizes(cfg: Pi05Config, tokenizer: str) -> dict[str, str | int]:
    sizes = {name: value for name, value in asdict(cfg).items() if name not in NOT_SIZES}
    return {"tokenizer": tokenizer, **sizes}


def _compare(path: Path, wanted: dict[str, str | int]) -> None:
    try:
        stored = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again") from error
    wrong = [
        f"{name}: stored {stored.get(name)!r}, wanted {value!r}"
        for name, value in wanted.items()
        if stored.get(name) != value
    ]
    if wrong:
        raise ValueError(f"{path} is of another policy.pi05: {'; '.join(wrong)}")
