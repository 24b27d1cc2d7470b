"""How far what an export computes is from what the model computes."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

# Where the guess is one number, how far it may be off, as a share of it, or of 1 if that is more.
_NEAR = 0.05


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What two ways of computing the same outputs make of the same inputs.

    Attributes:
        largest_difference: of any two numbers that should be equal, absolute, among
            outputs of equal shape; NaN where one is no number.
        agreement: share of guesses that are the same; a guess is the place of the
            largest number of the last axis, where that has one number only this
            itself, the same within a twentieth.
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
            agreeing += int(_are_same(wanted, got).sum())
    return Comparison(largest, agreeing / guesses, guesses)


def _are_same(wanted: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Returns whether guesses are the same: bool, without the last axis."""
    if wanted.shape[-1] == 1:
        # NaN is near nothing.
        return (np.abs(got - wanted) <= _NEAR * np.maximum(np.abs(wanted), 1.0))[..., 0]
    return (got.argmax(-1) == wanted.argmax(-1)) & np.isfinite(got).all(-1)
