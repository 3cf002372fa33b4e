"""Judges a training while it runs: which weights are kept, and when it is no use to go on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Measurement = tuple[int, float]  # steps taken, what was measured then


@dataclass(frozen=True, slots=True)
class Validation:
    """Calls ``measure()`` every ``every`` steps and after the last one; lower is better.

    ``measure`` sees the model in eval mode with the weights that would be published (averaged
    ones, where an average is kept), without gradients; it must follow from these weights alone.
    Every learner process calls it and the mean counts, so all of them decide alike.

    ``patience``: training ends after this many measurements without a new best; 0: never.
    ``keep``: which weights the module ends with, the best or the last.
    """

    every: int
    measure: Callable[[], float]
    patience: int = 0
    keep: Literal["best", "last"] = "best"

    def due(self, step: int, steps: int) -> bool:
        return step % self.every == 0 or step == steps

    def exhausted(self, history: Sequence[Measurement]) -> bool:
        """Whether the last ``patience`` measurements brought nothing new."""
        best = best_of(history)
        if not self.patience or best is None:
            return False
        return sum(step > best[0] for step, _ in history) >= self.patience

    @property
    def recipe(self) -> list[int | str]:
        """What makes it another training when it changes."""
        return [self.every, self.patience, self.keep]


def best_of(history: Sequence[Measurement]) -> Measurement | None:
    """The lowest measurement, the earliest of equal ones; None without any."""
    return min(history, key=lambda one: one[1], default=None)
