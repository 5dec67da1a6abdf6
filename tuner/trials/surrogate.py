"""A Gaussian process that smooths a noisy function of one variable from few values."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

SCALES = (0.15, 0.3, 0.6, 1.2)
NOISES = (0.003, 0.01, 0.03, 0.1, 0.3)
"""The length scales, and parts of the variance that are noise, among which the likeliest are taken."""


@dataclass(frozen=True)
class Surrogate:
    """A Gaussian process with a squared exponential kernel (Rasmussen & Williams 2006, algorithm 2.1).

    `noise` is the standard deviation that each value has of its own.
    """

    points: Array
    scale: float
    mean: float
    deviation: float
    noise: float
    factor: Array
    weights: Array

    @classmethod
    def fit(cls, points: Array, values: Array) -> Surrogate:
        """Fits values (N,) at points (N,) in [0, 1]; scale and noise are those of the largest likelihood."""
        mean, deviation = float(values.mean()), float(values.std())
        targets = (values - mean) / (deviation or 1.0)
        scale, part = max(product(SCALES, NOISES), key=lambda one: _likelihood(points, targets, *one))
        factor = _factor(points, scale, part)
        weights = np.linalg.solve(factor.T, np.linalg.solve(factor, targets))
        return cls(points, scale, mean, deviation, deviation * part**0.5, factor, weights)

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Returns mean and standard deviation (M,) of the function, without noise, at points (M,)."""
        shared = _kernel(points, self.points, self.scale)
        spread = np.linalg.solve(self.factor, shared.T)
        variance = np.clip(1 - (spread**2).sum(axis=0), 0, None)
        return self.mean + self.deviation * (shared @ self.weights), self.deviation * np.sqrt(variance)


def _kernel(left: Array, right: Array, scale: float) -> Array:
    return np.asarray(np.exp(-0.5 * ((left[:, None] - right[None]) / scale) ** 2))


def _factor(points: Array, scale: float, part: float) -> Array:
    return np.asarray(np.linalg.cholesky(_kernel(points, points, scale) + part * np.eye(len(points))))


def _likelihood(points: Array, targets: Array, scale: float, part: float) -> float:
    factor = _factor(points, scale, part)
    solved = np.linalg.solve(factor, targets)
    return float(-0.5 * solved @ solved - np.log(np.diag(factor)).sum())
