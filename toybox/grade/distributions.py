"""How two sets of pictures differ, by the features of their pictures: Frechet distance, precision, recall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

NEIGHBOUR = 3  # the k of k nearest neighbours


@dataclass(frozen=True)
class Distance:
    """Of pictures from true ones.

    frechet: between normal distributions with the sets' means and covariances (Heusel et al. 2017); it is
        above 0 for finite sets of the same distribution too.
    precision: share of the pictures that lie among true ones; recall: share of the true ones that lie among
        the pictures (Kynkaanniemi et al. 2019).
    """

    frechet: float
    precision: float
    recall: float

    def text(self) -> str:
        p, r = 100 * self.precision, 100 * self.recall
        return f"Frechet distance {self.frechet:7.2f}, precision {p:5.1f} %, recall {r:5.1f} %"


def distance(pictures: np.ndarray, truth: np.ndarray) -> Distance:
    """Features [n, d] of pictures against those of true ones [m, d]."""
    return Distance(frechet_distance(pictures, truth), covered(pictures, truth), covered(truth, pictures))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)) of features [n, d] and [m, d] with covariances A, B.

    >>> frechet_distance(np.array([[-1.0], [1.0]]), np.array([[1.0], [7.0]]))  # deviations 2^(1/2), 18^(1/2)
    24.0
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    A, B = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    # (A B)^(1/2) has the trace of (A^(1/2) B A^(1/2))^(1/2), which is symmetric
    values, vectors = np.linalg.eigh(A)
    root = (vectors * np.sqrt(values.clip(0.0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ B @ root).clip(0.0)).sum()
    return round(float(shift + np.trace(A) + np.trace(B) - 2.0 * cross), 9)


def covered(points: np.ndarray, by: np.ndarray, k: int = NEIGHBOUR) -> float:
    """Share of points [n, d] within a ball around one of `by` [m, d], which reaches to its k-th neighbour.

    >>> covered(np.array([[0.5], [4.0]]), np.array([[0.0], [1.0], [2.0]]), k=1)
    0.5
    """
    radii = np.sort(cdist(by, by), axis=1)[:, min(k, len(by) - 1)]  # column 0 is the point itself
    return float((cdist(points, by) <= radii).any(axis=1).mean())
