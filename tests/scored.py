"""Splits with the probabilities of a simulated classifier."""

import numpy as np


def make_split(images, classes, seed=0, step=None):
    """Labels, probabilities and one patient for each image; step rounds the logits, so that scores tie."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=images)
    logits = rng.normal(size=(images, classes)) + 1.2 * np.eye(classes)[labels]
    if step:
        logits = np.round(logits / step) * step
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return labels, probabilities, np.array([f"person{i}" for i in range(images)])
