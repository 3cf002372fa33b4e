"""What a fine-tuned reward model was trained to look at; other inputs are refused."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from configs.reward import RewardConfig
from models.qwen_reward.preprocess import LAYOUT, template_hash

FILE = "vlaw_reward.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """Train and serve must agree on all of it. ``frame_size`` is (height, width) of one stored
    view; None before the first training batch: a release checkpoint takes any size."""

    num_frames: int
    view: int
    frame_size: tuple[int, int] | None
    layout: str
    template: str
    format: int = FORMAT

    @classmethod
    def of(cls, cfg: RewardConfig, frame_size: tuple[int, int] | None = None) -> "Manifest":
        """What this code and this config would write."""
        return cls(cfg.num_frames, cfg.qwen.view, frame_size, LAYOUT, template_hash())

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """None for a checkpoint that this project did not train. Raises ValueError if damaged."""
        path = folder / FILE
        if not path.exists():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            size = values.pop("frame_size")
            return cls(frame_size=None if size is None else (size[0], size[1]), **values)
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no reward manifest ({error}): train it again") from error

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def check(self, cfg: RewardConfig, folder: Path) -> None:
        """Raises ValueError naming the first thing in which this code and config differ."""
        now = Manifest.of(cfg, self.frame_size)
        advice = {
            "num_frames": f"set reward.num_frames={self.num_frames}",
            "view": f"set reward.qwen.view={self.view}",
            "layout": "train it again: the prompt's token layout changed",
            "template": "train it again: the prompt's wording changed",
            "format": "train it again: the manifest's format changed",
        }
        for name, way_out in advice.items():
            stored, wanted = asdict(self)[name], asdict(now)[name]
            if stored != wanted:
                raise ValueError(
                    f"{folder} was trained with {name}={stored!r}, not {wanted!r}: {way_out}"
                )
