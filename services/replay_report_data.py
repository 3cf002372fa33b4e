"""What a replay evaluation shows: the results of every variant, and where they come from."""

from dataclasses import dataclass, field
from typing import Any

from contracts.types import Label
from services.judging import Found
from services.replay_items import Kind, ReplayItem

REAL, COPY_FIRST, COPY_LAST = "real", "copy first", "copy last"


@dataclass(frozen=True, slots=True)
class Episode:
    """A real episode that parts were taken from."""

    task: str
    instruction: str
    num_frames: int
    label: Label | None


@dataclass(frozen=True, slots=True)
class VariantResults:
    """One world model, or a baseline; ``found[i]`` was measured of ``items[i]``."""

    name: str
    is_model: bool
    checksum: str
    note: str
    no_futures: str  # why no policy acted in it
    items: list[ReplayItem]
    found: list[Found]

    def of(self, kind: Kind) -> list[tuple[ReplayItem, Found]]:
        pairs = zip(self.items, self.found, strict=True)
        return [(item, found) for item, found in pairs if item.kind == kind]


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """One evaluation. ``created`` is shown as given, so equal data give an equal page."""

    title: str
    created: str
    source: str  # folder of the store
    config: dict[str, Any]
    models: dict[str, str]  # name -> what was given
    variants: list[VariantResults]
    episodes: dict[str, Episode]
    num_episodes: int  # in the source, used or not
    alpha: float
    judge: str  # "": none
    weights: dict[str, str]  # metric -> file and checksum
    unavailable: dict[str, str] = field(default_factory=dict)

    def variant(self, name: str) -> VariantResults:
        return next(one for one in self.variants if one.name == name)

    @property
    def shown(self) -> list[VariantResults]:
        """All but the truth: baselines, then models."""
        return [one for one in self.variants if one.name != REAL]

    @property
    def world_models(self) -> list[VariantResults]:
        return [one for one in self.variants if one.is_model]
