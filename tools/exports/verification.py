"""How far what an export computes is from what the model computes."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What two ways of computing the same outputs make of the same inputs.

    Attributes:
        largest_difference: of any two numbers that should be equal, absolute, among
            outputs of equal shape; NaN where one is no number.
        agreement: share of guesses that are the same; a guess is the place of the
            largest number of the last axis.
        num_guesses: guesses that were compared, for a masked LM as many as tokens.
    """

    largest_difference: float
    agreement: float
    num_guesses: int


def compare(
    pairs: Iterable[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]],
) -> Comparison:
    """Compares outputs by their names.

    Example: [[1, 3], [2, 0]] against [[1, 2], [1, 2]] differs by at most 2, and
    agrees in one guess of two.

    Args:
        pairs: expected and received outputs of one input each. Outputs beyond the
            expected are left alone; those of another shape agree in no guess.
    """
    largest, agreeing, guesses = 0.0, 0, 0
    for expected, received in pairs:
        for name, wanted in expected.items():
            guesses += wanted[..., 0].size
            got = received[name]
            if got.shape != wanted.shape:
                continue
            # NumPy's maximum, unlike Python's, keeps what is no number.
            largest = float(np.maximum(largest, np.abs(got - wanted).max()))
            finite = np.isfinite(got).all(-1)
            agreeing += int(((got.argmax(-1) == wanted.argmax(-1)) & finite).sum())
    return Comparison(largest, agreeing / guesses, guesses)
