"""SplitMix64 (Steele, Lea and Flood 2014): from one 64-bit word to another, every bit depending on every bit."""

from __future__ import annotations

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # a stream's next word is the mixed sum of its last and this


def mixed(words: np.ndarray) -> np.ndarray:
    """Another word for each of ``words``, uint64 of any shape; nought stays nought."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
