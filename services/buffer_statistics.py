"""Percentiles of states and actions, as Ctrl-World and openpi normalise with them."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from contracts.constants import TICKS_PER_FRAME
from replay.quantiles import moments, quantiles
from replay.store import ReplayStore

AT_A_TIME = 64  # episodes of a store in memory


@runtime_checkable
class Rows(Protocol):
    """The 15 Hz rows of an episode, stored or recorded; units as in ``Trajectory``."""

    @property
    def actions(self) -> np.ndarray: ...
    @property
    def joint_position(self) -> np.ndarray: ...
    @property
    def gripper_position(self) -> np.ndarray: ...
    @property
    def cartesian_position(self) -> np.ndarray: ...


Episodes = Callable[[], Iterable[Rows]]


def stored(folders: Iterable[Path]) -> Iterator[Rows]:
    """The rows of every trajectory of these stores, without their frames."""
    for folder in folders:
        store = ReplayStore.open(folder)
        ids = store.ids()
        for first in range(0, len(ids), AT_A_TIME):
            yield from store.episodes(ids[first : first + AT_A_TIME])
        store.close()


def world_model_statistics(episodes: Episodes) -> dict[str, list[float]]:
    """Ctrl-World's ``stat.json``: percentiles 1 and 99 of pose and gripper at 5 Hz, exact.

    Raises:
        ValueError: there is no episode.
    """
    low, high = quantiles(partial(_each, episodes, _poses), (0.01, 0.99))
    return {"state_01": low.tolist(), "state_99": high.tolist()}


def policy_statistics(episodes: Episodes) -> dict[str, Any]:
    """openpi's ``norm_stats.json`` for DROID: joints and gripper, joint velocities and gripper.

    Every 15 Hz step counts once, and percentiles are exact; openpi counts a step once for each
    chunk that it is in and takes percentiles from 5000 bins, so its numbers differ a little.

    Raises:
        ValueError: there is no episode.
    """
    columns = {"state": _states, "actions": _actions}
    return {
        "norm_stats": {name: _normal(partial(_each, episodes, of)) for name, of in columns.items()}
    }


def _normal(portions: Callable[[], Iterable[np.ndarray]]) -> dict[str, list[float]]:
    found, (low, high) = moments(portions), quantiles(portions, (0.01, 0.99))
    named = {"mean": found.mean, "std": found.std, "q01": low, "q99": high}
    return {name: values.tolist() for name, values in named.items()}


def _each(episodes: Episodes, of: Callable[[Rows], np.ndarray]) -> Iterator[np.ndarray]:
    return (of(episode) for episode in episodes())


def _poses(episode: Rows) -> Float32[np.ndarray, "frames 7"]:
    rows = np.concatenate([episode.cartesian_position, episode.gripper_position[:, None]], axis=1)
    return rows[::TICKS_PER_FRAME]


def _states(episode: Rows) -> Float32[np.ndarray, "ticks 8"]:
    rows = np.concatenate([episode.joint_position, episode.gripper_position[:, None]], axis=1)
    return rows[: len(episode.actions)]


def _actions(episode: Rows) -> Float32[np.ndarray, "ticks 8"]:
    return episode.actions
