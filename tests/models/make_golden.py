"""Writes golden_bert.npz and golden_modernbert.npz: what `transformers` computes with tiny models.

Needs torch and transformers; run once: python tests/models/make_golden.py [bert] [modernbert]
"""

import json
import pathlib
import sys

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

SIZES = {"vocab_size": 53, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24}
MODELS = {
    "bert": (
        BertForMaskedLM,
        BertConfig(
            **SIZES,
            num_hidden_layers=2,
            max_position_embeddings=12,
            type_vocab_size=2,
            hidden_act="gelu",
            initializer_range=0.5,
        ),
    ),
    "modernbert": (
        ModernBertForMaskedLM,
        ModernBertConfig(
            **SIZES,
            # Global, local, local, global.
            num_hidden_layers=4,
            max_position_embeddings=12,
            local_attention=4,
            initializer_range=0.5,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
        ),
    ),
}


def _write(name: str) -> None:
    torch.manual_seed(0)
    kind, config = MODELS[name]
    model = kind._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            # Biases and norms start at 0 and 1, which would hide a mistake.
            if path.endswith("bias") or "norm" in path.lower():
                parameter.add_(0.3 * torch.randn_like(parameter))
    random = np.random.default_rng(0)
    input_ids = random.integers(5, 53, (3, 10))
    input_mask = (np.arange(10) < np.array([[10], [7], [4]])).astype("int64")
    segment_ids = (np.arange(10) >= np.array([[4], [3], [10]])).astype("int64") * input_mask
    segments = {"token_type_ids": torch.tensor(segment_ids)} if name == "bert" else {}
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor(input_ids),
            attention_mask=torch.tensor(input_mask),
            **segments,
            output_hidden_states=True,
            output_attentions=True,
        )
    weights = {
        f"weights/{path}": value.numpy()
        for path, value in model.state_dict().items()
        if "decoder.weight" not in path
        and "predictions.decoder" not in path
        and "position_ids" not in path
    }
    np.savez_compressed(
        pathlib.Path(__file__).with_name(f"golden_{name}.npz"),
        config=np.frombuffer(json.dumps(config.to_dict()).encode(), np.uint8),
        input_ids=input_ids,
        input_mask=input_mask,
        segment_ids=segment_ids,
        logits=output.logits.numpy(),
        hidden_states=np.stack([state.numpy() for state in output.hidden_states]),
        attentions=np.stack([attention.numpy() for attention in output.attentions]),
        **weights,
    )


if __name__ == "__main__":
    for model_name in sys.argv[1:] or MODELS:
        _write(model_name)
