"""Writes golden_*.npz: a tiny random model of a family and its outputs in `transformers`.

Needs torch and transformers; run once: python tests/models/make_golden.py [FAMILY ...]
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers

SIZES = {
    "vocab_size": 53,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "hidden_act": "gelu",
    "initializer_range": 0.5,
    "attn_implementation": "eager",
}
# Settings of each family, in addition to BERT's.
MODELS = {
    "bert": {"max_position_embeddings": 12, "type_vocab_size": 2},
    "camembert": {"max_position_embeddings": 14, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "ernie": {
        "max_position_embeddings": 12,
        "type_vocab_size": 4,
        "use_task_id": True,
        "task_type_vocab_size": 3,
        "layer_norm_eps": 1e-5,
        "hidden_act": "relu",
    },
    "electra": {"max_position_embeddings": 12, "type_vocab_size": 2, "embedding_size": 6},
    # A global layer, two local ones and a global one.
    "modernbert": {
        "max_position_embeddings": 12,
        "num_hidden_layers": 4,
        "local_attention": 4,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
        "pad_token_id": 0,
    },
    # Inputs reach the last bucket of distances.
    "mpnet": {"max_position_embeddings": 98, "initializer_range": 0.3},
}
LENGTHS = {"mpnet": 96}


def make_model(model_type: str) -> transformers.PreTrainedModel:
    """Returns a random model; biases and norms do not have their usual initial values."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **MODELS[model_type]})
    model = transformers.AutoModelForMaskedLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Biases and norms start at 0 and 1, which would hide a mistake.
            if "bias" in name or "norm" in name.lower():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def write(model_type: str) -> None:
    """Writes a family's file into this folder."""
    model, length = make_model(model_type), LENGTHS.get(model_type, 10)
    random = np.random.default_rng(0)
    input_ids = random.integers(5, 53, (3, length))
    input_mask = (np.arange(length) < np.array([[length], [7], [4]])).astype("int64")
    segment_ids = (np.arange(length) >= np.array([[4], [3], [length]])).astype("int64") * input_mask
    input_ids = np.where(input_mask == 1, input_ids, model.config.pad_token_id)
    inputs = {"input_ids": torch.tensor(input_ids), "attention_mask": torch.tensor(input_mask)}
    if MODELS[model_type].get("type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.tensor(segment_ids)
    else:
        segment_ids = np.zeros_like(segment_ids)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True, output_attentions=True)
    tied = model._tied_weights_keys
    weights = {
        f"weights/{name}": value.numpy()
        for name, value in model.state_dict().items()
        if name not in tied and not name.endswith("_ids")
    }
    np.savez_compressed(
        pathlib.Path(__file__).with_name(f"golden_{model_type}.npz"),
        config=np.frombuffer(json.dumps(model.config.to_dict()).encode(), np.uint8),
        input_ids=input_ids,
        input_mask=input_mask,
        segment_ids=segment_ids,
        logits=output.logits.numpy(),
        hidden_states=np.stack([state.numpy() for state in output.hidden_states]),
        attentions=np.stack([attention.numpy() for attention in output.attentions]),
        **weights,
    )


if __name__ == "__main__":
    for family in sys.argv[1:] or MODELS:
        write(family)
