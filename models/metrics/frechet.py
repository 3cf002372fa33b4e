"""Frechet distance between two sets of features: what FID and FVD are, given their networks."""

import numpy as np
from jaxtyping import Float

MIN_SAMPLES = 16  # of either set; below, the distance says more about n than about the pictures


class TooFewError(ValueError):
    """There are too few samples for a distance that means anything."""


def frechet_distance(
    first: Float[np.ndarray, "n features"], second: Float[np.ndarray, "m features"]
) -> float:
    """``|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` of the normals fitted to both (Heusel et
    al. 2017), in float64, with the unbiased covariances.

    ``tr (S1 S2)^(1/2)`` is the sum of the singular values of ``A B^T``, A and B being the centred
    samples over ``sqrt(n - 1)``: no matrix square root, and exact when n is below the number of
    features. The distance of two finite samples of one distribution is above zero, and the more
    the fewer they are: compare at equal n, and beside the distance of two real halves.

    Raises:
        TooFewError: fewer than 16 samples in either set.
        ValueError: a feature is not finite.
    """
    fewest = min(len(first), len(second))
    if fewest < MIN_SAMPLES:
        raise TooFewError(f"{fewest} samples, needs {MIN_SAMPLES} or more")
    first, second = first.astype(np.float64), second.astype(np.float64)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a feature is not finite: the network or its input is damaged")
    means = first.mean(axis=0) - second.mean(axis=0)
    a, b = _scaled(first), _scaled(second)
    overlap = np.linalg.norm(_product(a, b), ord="nuc")
    return max(0.0, float(means @ means + np.sum(a * a) + np.sum(b * b) - 2 * overlap))


def _scaled(samples: np.ndarray) -> np.ndarray:
    """Centred and over ``sqrt(n - 1)``: its transpose times itself is the covariance."""
    return (samples - samples.mean(axis=0)) / np.sqrt(len(samples) - 1)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A matrix with the singular values of ``a @ b.T`` and at most features x features large."""
    return _reduced(a) @ _reduced(b).T


def _reduced(samples: np.ndarray) -> np.ndarray:
    """At most as many rows as features, with the same covariance."""
    rows, features = samples.shape
    return np.asarray(np.linalg.qr(samples, mode="r")) if rows > features else samples
