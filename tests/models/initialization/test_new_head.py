"""Initial weights of a new head, for every family."""

import numpy as np
import pytest

from pipeline.models.families import FAMILIES
from pipeline.models.formats.model_directory import assign_weights, get_weights
from pipeline.models.initialization.new_head import new_head
from pipeline.models.masked_lm import MaskedLM
from tests.family_examples import example_config


@pytest.mark.parametrize("model_type", FAMILIES)
def test_new_head_of_every_family_is_identity_and_log_frequencies(model_type: str) -> None:
    config = example_config(model_type)
    counts = np.arange(config.vocab_size)
    head = new_head(config, counts)
    model = MaskedLM(config)
    # This raises unless the weights are exactly those of the head.
    assign_weights(model, {**get_weights(model), **head})
    assert head.keys() == {name for name in get_weights(model) if name.startswith("head/")}
    hidden, width = config.hidden_size, config.embedding_width
    np.testing.assert_array_equal(head["head/transform/kernel"], np.eye(hidden, width))
    np.testing.assert_array_equal(head["head/layer_norm/gamma"], np.ones(width))
    for name in {"head/transform/bias", "head/layer_norm/beta"} & head.keys():
        np.testing.assert_array_equal(head[name], 0.0)
    expected = (counts + 1) / (counts + 1).sum()
    np.testing.assert_allclose(np.exp(head["head/bias"]), expected, rtol=1e-5)
