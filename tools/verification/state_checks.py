"""Checks of head states at any masked position, many positions at once.

Letters as in `data_specs.records`: E numbers of a state, V vocabulary. Any finite state gives a
distribution. The stored log-probability of the label reveals a wrong state, as it was computed
from the teacher's logits.
"""

import numpy as np

from data_specs import records
from pipeline.storage.codecs.states import StatesCodec
from tools.cache_analysis import fidelity
from tools.verification.topk_checks import FLOAT16_STEP, ROUNDING, Problems

# Threshold in standard deviations of a logit's error, which no error among millions exceeds.
_NUM_DEVIATIONS = 10.0


def state_problems(
    codec: StatesCodec,
    states: np.ndarray,
    labels: np.ndarray,
    label_log_probs: np.ndarray,
    rebuilt: np.ndarray,
) -> Problems:
    """Yields problems, as text, with the positions that have them: bool [positions].

    Args:
        codec: of the cache.
        states: rotated, float32 [positions, E].
        labels: int [positions].
        label_log_probs: float32 [positions], as stored.
        rebuilt: int [n], the positions whose distributions are computed from the states.
    """
    is_finite = np.isfinite(states).all(axis=-1)
    yield f"{records.HEAD_STATES}: expected finite numbers", ~is_finite
    problem = f"{records.LABEL_LOG_PROBS}: expected logarithms of probabilities, at most 0"
    yield problem, ~(label_log_probs <= ROUNDING)
    chosen = rebuilt[is_finite[rebuilt]]
    differences, limits = label_differences(
        codec, states[chosen], labels[chosen], label_log_probs[chosen]
    )
    bad = np.zeros(len(states), bool)
    bad[chosen] = differences > limits
    problem = (
        f"{records.LABEL_LOG_PROBS}: differs from the log-probability that the head state gives"
    )
    yield problem, bad


def label_differences(
    codec: StatesCodec, states: np.ndarray, labels: np.ndarray, label_log_probs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compares stored log-probabilities of labels with those of the states.

    Returns:
        the absolute differences, [positions]; their limits, [positions].
    """
    rebuilt = fidelity.log_softmax(codec.output.logits(states))
    rebuilt = rebuilt[np.arange(len(states)), labels]
    # Float16 stores a log-probability beyond its range as infinity, which is not compared.
    is_finite = np.isfinite(label_log_probs)
    stored = np.where(is_finite, label_log_probs, 0.0)
    rounding = ROUNDING + FLOAT16_STEP * np.abs(stored)
    limits = rounding + _NUM_DEVIATIONS * codec.logit_deviations(states)
    return np.where(is_finite, np.abs(rebuilt - stored), 0.0), limits
