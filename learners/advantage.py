"""How much better a trajectory ended than others from the same start (Eq. 7)."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np


def advantages(score: Mapping[str, float], start: Mapping[str, str]) -> dict[str, float]:
    """A of each trajectory of ``score``: its score minus the mean of all that share its ``start``.

    ``score``: P('yes') of an imagined trajectory, 1 or 0 of a labelled real one, rejected ones and
    failures included: their mean estimates the value of the start under the policies that tried.
    So a success where others fail counts for more than one where everything succeeds.
    """
    shared: defaultdict[str, list[float]] = defaultdict(list)
    for name, value in score.items():
        shared[start[name]].append(value)
    value = {name: float(np.mean(found)) for name, found in shared.items()}
    return {name: found - value[start[name]] for name, found in score.items()}


def advantage_weights(
    advantage: Mapping[str, float], task: Mapping[str, str], beta: float
) -> dict[str, float]:
    """exp(A / beta) of Eq. 7 by trajectory, scaled to mean 1 over those of each task, which share
    the policy's batches equally; 1 for all when ``beta`` is 0.

    Raises:
        ValueError: a trajectory has no advantage.
    """
    if not beta:
        return dict.fromkeys(task, 1.0)
    unscored = sorted(task.keys() - advantage.keys())
    if unscored:
        raise ValueError(
            f"method.advantage_beta={beta:g} needs a score of every trajectory, none of "
            f"{', '.join(unscored[:3])} ({len(unscored)} in all). Score them or set it to 0"
        )
    weights: dict[str, float] = {}
    for kind in set(task.values()):
        names = [name for name in task if task[name] == kind]
        found = np.array([advantage[name] for name in names])
        # A common factor cancels in the scaling; the largest exponent 0 keeps exp finite.
        raw = np.exp((found - found.max()) / beta)
        weights |= zip(names, (raw / raw.mean()).tolist(), strict=True)
    return weights
