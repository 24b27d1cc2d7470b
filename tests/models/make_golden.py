"""Writes golden_bert.npz: a tiny random BERT and what `transformers` computes with it.

Needs torch and transformers; run once: python tests/models/make_golden.py
"""

import json
import pathlib

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM


def main() -> None:
    """Writes the file beside this one."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=53,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=12,
        type_vocab_size=2,
        hidden_act="gelu",
        initializer_range=0.5,
    )
    model = BertForMaskedLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Biases and norms start at 0 and 1, which would hide a mistake.
            if name.endswith("bias") or "LayerNorm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    random = np.random.default_rng(0)
    input_ids = random.integers(5, 53, (3, 10))
    input_mask = (np.arange(10) < np.array([[10], [7], [4]])).astype("int64")
    segment_ids = (np.arange(10) >= np.array([[4], [3], [10]])).astype("int64") * input_mask
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor(input_ids),
            attention_mask=torch.tensor(input_mask),
            token_type_ids=torch.tensor(segment_ids),
            output_hidden_states=True,
        )
    weights = {
        f"weights/{name}": value.numpy()
        for name, value in model.state_dict().items()
        if not name.startswith("cls.predictions.decoder") and "position_ids" not in name
    }
    np.savez_compressed(
        pathlib.Path(__file__).with_name("golden_bert.npz"),
        config=np.frombuffer(json.dumps(config.to_diff_dict()).encode(), np.uint8),
        input_ids=input_ids,
        input_mask=input_mask,
        segment_ids=segment_ids,
        logits=output.logits.numpy(),
        hidden_states=np.stack([state.numpy() for state in output.hidden_states]),
        **weights,
    )


if __name__ == "__main__":
    main()
