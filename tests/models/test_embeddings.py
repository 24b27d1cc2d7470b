"""Embeddings of the text before masking."""

import numpy as np
import pytest

from data_specs import records
from pipeline.models.embeddings import embed, unmasked_ids
from pipeline.models.masked_lm import MaskedLM

TEXT = np.array([[2, 11, 12, 13, 3], [2, 21, 22, 3, 0]], "int32")
MASKED = np.array([[2, 4, 12, 9, 3], [2, 21, 4, 3, 0]], "int32")
INPUTS = {
    records.INPUT_IDS: MASKED,
    records.INPUT_MASK: (TEXT > 0).astype("int32"),
    records.SEGMENT_IDS: np.zeros_like(TEXT),
    # The label of the padding slot must not replace the first token.
    records.MASKED_LM_POSITIONS: np.array([[1, 3], [2, 0]], "int32"),
}
LABELS = np.array([[11, 13], [22, 0]], "int32")


def test_unmasked_text_is_restored_from_labels() -> None:
    np.testing.assert_array_equal(unmasked_ids(INPUTS, LABELS), TEXT)


def test_pooling_ignores_padding(config) -> None:
    """Pooling covers the last hidden states of the text, and no state after its end."""
    model = MaskedLM(config, seed=3)
    text = {**INPUTS, records.INPUT_IDS: TEXT}
    last = np.asarray(model.activations(text)[records.HIDDEN_STATES][-1])
    np.testing.assert_allclose(embed(model, INPUTS, LABELS, "cls"), last[:, 0], atol=1e-6)
    mean = np.stack([last[0].mean(axis=0), last[1, :4].mean(axis=0)])
    np.testing.assert_allclose(embed(model, INPUTS, LABELS, "mean"), mean, atol=1e-6)
    of_masks = np.asarray(model.activations(INPUTS)[records.HIDDEN_STATES][-1])[:, 0]
    assert np.abs(of_masks - last[:, 0]).max() > 1e-3


@pytest.mark.peers
def test_embeddings_equal_those_of_torch(tmp_path) -> None:
    """Compares the first state and the mean state of a model of `transformers`."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from pipeline.models.formats.model_directory import find_model, load_masked_lm

    torch.manual_seed(1)
    sizes = {"vocab_size": 53, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    settings = transformers.BertConfig(**sizes, intermediate_size=40, initializer_range=0.3)
    peer = transformers.BertForMaskedLM(settings).eval()
    peer.save_pretrained(tmp_path)
    model = load_masked_lm(find_model(tmp_path))
    mask = torch.tensor(INPUTS[records.INPUT_MASK])
    with torch.no_grad():
        last = peer.bert(torch.tensor(TEXT).long(), attention_mask=mask).last_hidden_state
    weights = mask[..., None].float()
    mean = (last * weights).sum(dim=1) / weights.sum(dim=1)
    for pooling, expected in (("cls", last[:, 0]), ("mean", mean)):
        difference = np.abs(np.asarray(embed(model, INPUTS, LABELS, pooling)) - expected.numpy())
        print(pooling, difference.max())
        assert difference.max() < 1e-5
