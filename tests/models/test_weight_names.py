"""The table of weights has every variable and unique names in both layouts."""

import re

from pipeline.models.masked_lm import MaskedLM
from pipeline.models.weight_names import HF, TF1, weight_table


def test_table_has_every_variable_once(config):
    model = MaskedLM(config)
    variables = {
        variable.path.removeprefix("masked_lm/"): tuple(variable.shape)
        for variable in model.weights
    }
    table = weight_table(config)
    assert len(table) == len(model.weights) == 5 + 16 * config.num_hidden_layers + 5
    assert variables == {row.ours: row.shape for row in table}


def test_names_are_unique_in_each_layout(config):
    table = weight_table(config)
    for field in ("ours", "hf", "tf1"):
        assert len({getattr(row, field) for row in table}) == len(table)


def test_rows_equal_published_names_and_shapes(config):
    rows = {row.ours: row for row in weight_table(config)}
    inner = rows["encoder/layer_2/feed_forward/intermediate/kernel"]
    assert inner.hf == "bert.encoder.layer.2.intermediate.dense.weight"
    assert inner.tf1 == "bert/encoder/layer_2/intermediate/dense/kernel"
    assert inner.stored(HF) == (inner.hf, (24, 16))
    assert inner.stored(TF1) == (inner.tf1, (16, 24))
    norm = rows["encoder/layer_0/attention/layer_norm/gamma"]
    assert norm.hf == "bert.encoder.layer.0.attention.output.LayerNorm.weight"
    assert norm.tf1 == "bert/encoder/layer_0/attention/output/LayerNorm/gamma"
    segments = rows["encoder/embeddings/segment_embeddings"]
    assert segments.tf1 == "bert/embeddings/token_type_embeddings"
    assert rows["head/bias"].tf1 == "cls/predictions/output_bias"


def test_only_dense_kernels_are_transposed(config):
    for row in weight_table(config):
        assert row.transpose_hf == bool(re.search(r"/kernel$", row.ours))
