"""Checks of head states at any masked position, many positions at once.

Letters as in `data_specs.records`: E numbers of a state, V vocabulary. Any finite state is a
distribution. What shows a wrong one is the label's log-probability, which is stored of the
teacher's own logits.
"""

import numpy as np

from data_specs import records
from pipeline.storage.codecs.states import StatesCodec
from tools.cache_analysis import fidelity
from tools.verification.topk_checks import FLOAT16_STEP, ROUNDING, Problems

# Standard deviations of a logit's error: none of millions is further off.
_DEVIATIONS = 10.0


def state_problems(
    codec: StatesCodec,
    states: np.ndarray,
    labels: np.ndarray,
    label_log_probs: np.ndarray,
    rebuilt: np.ndarray,
) -> Problems:
    """Yields what must hold, as a sentence, and at which positions it does not: bool [positions].

    Args:
        codec: of the cache.
        states: rotated, float32 [positions, E].
        labels: int [positions].
        label_log_probs: float32 [positions], as stored.
        rebuilt: int [n], the positions whose distributions are rebuilt.
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
    yield f"{records.LABEL_LOG_PROBS}: expected that of the head state", bad


def label_differences(
    codec: StatesCodec, states: np.ndarray, labels: np.ndarray, label_log_probs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns how far stored and rebuilt log-probabilities are apart, and may be, [positions]."""
    rebuilt = fidelity.log_softmax(codec.output.logits(states))
    rebuilt = rebuilt[np.arange(len(states)), labels]
    known = np.isfinite(label_log_probs)
    said = np.where(known, label_log_probs, 0.0)
    limits = ROUNDING + FLOAT16_STEP * np.abs(said) + _DEVIATIONS * codec.logit_deviations(states)
    # Beyond its range float16 has infinity only.
    return np.where(known, np.abs(rebuilt - said), 0.0), limits
