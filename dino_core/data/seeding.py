"""Random generators for data: the same seed and place always give the same numbers."""

from __future__ import annotations

import numpy as np

_BITS = 0xFFFFFFFF


def generator(seed: int, *place: int) -> np.random.Generator:
    """The generator of one place in a run.

    Args:
        seed: Random seed of the run; a negative one counts as its low 32 bits.
        place: Non-negative numbers that identify the place, e.g. epoch and image.
    """
    return np.random.default_rng((seed & _BITS, *place))
