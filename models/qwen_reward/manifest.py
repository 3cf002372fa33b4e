"""What a fine-tuned reward model was trained to look at; other inputs are refused."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from configs.reward import RewardConfig
from contracts.constants import FRAME_HZ
from models.qwen_reward.preprocess import LAYOUT, QUESTION, template_hash

FILE = "vlaw_reward.json"
FORMAT = 2

_ADVICE = {
    "format": "train it again: the manifest's format changed",
    "layout": "train it again: the prompt's token layout changed",
    "question": "train it again: the prompt's wording changed",
    "template": "train it again: the order of video and text in the prompt changed",
    "frame_hz": "train it again: the clock of the frames changed",
    "num_frames": "set reward.num_frames={}",
    "views": "set reward.qwen.views={}",
}


@dataclass(frozen=True, slots=True)
class Manifest:
    """Train and serve must agree on all of it, and on the order in which it is shown.

    ``views``: cameras, each judged alone. ``frame_size``: (height, width) of one stored view;
    ``shown_size``: what the vision tower is given of it, after resizing. Both are None before the
    first training batch: a release checkpoint takes any size. ``template``: a hash of a whole
    rendered prompt; ``question``: its words, for people.
    """

    num_frames: int
    views: tuple[int, ...]
    frame_size: tuple[int, int] | None = None
    shown_size: tuple[int, int] | None = None
    frame_hz: int = FRAME_HZ
    layout: str = LAYOUT
    question: str = QUESTION
    template: str = template_hash()
    format: int = FORMAT

    @classmethod
    def of(cls, cfg: RewardConfig) -> "Manifest":
        """What this code and this config would write before any training."""
        return cls(cfg.num_frames, tuple(cfg.qwen.views))

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """None for a checkpoint that this project did not train. Raises ValueError if damaged."""
        path = folder / FILE
        if not path.exists():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise ValueError(
                    f"{folder} was trained with format={values['format']!r}, not {FORMAT}: "
                    f"{_ADVICE['format']}"
                )
            return cls(**{name: _tupled(value) for name, value in values.items()})
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no reward manifest ({error}): train it again") from error

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def check(self, cfg: RewardConfig, folder: Path) -> None:
        """Raises ValueError naming the first thing in which this code and config differ."""
        now = replace(Manifest.of(cfg), frame_size=self.frame_size, shown_size=self.shown_size)
        stored, wanted = asdict(self), asdict(now)
        for name, way_out in _ADVICE.items():
            if stored[name] != wanted[name]:
                raise ValueError(
                    f"{folder} was trained with {name}={_plain(stored, name)!r}, not "
                    f"{_plain(wanted, name)!r}: {way_out.format(_plain(stored, name))}"
                )


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plain(values: Mapping[str, Any], name: str) -> Any:
    """As a flag would spell it: lists, without spaces."""
    value = values[name]
    return list(value) if isinstance(value, tuple) else value
