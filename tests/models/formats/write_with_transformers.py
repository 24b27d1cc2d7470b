"""Writes tiny models of each family as `transformers` does, in TensorFlow's and PyTorch's formats.

PYTHON tests/models/formats/write_with_transformers.py FOLDER

PYTHON has transformers 4 with its TensorFlow classes and torch, for example transformers 4.46,
tensorflow-cpu 2.17, tf-keras 2.17, numpy 1.26 and torch 2.13. Each folder in FOLDER is a model
directory with `inputs.npz` and `outputs.npz`: of a masked LM the logits, of a bare encoder the
last hidden states. `test_real_writers.py` reads them; nothing of the project is imported here.
"""

import os
import pathlib
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf
import torch
import transformers

VOCAB_SIZE, LENGTH = 61, 13
_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 30,
    "type_vocab_size": 2,
}
_DISTILBERT = {
    "vocab_size": VOCAB_SIZE,
    "dim": 24,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 40,
    "max_position_embeddings": 30,
}
CONFIGS = {
    "Bert": transformers.BertConfig(**_SIZES),
    "Roberta": transformers.RobertaConfig(**_SIZES | {"type_vocab_size": 1}),
    "DistilBert": transformers.DistilBertConfig(**_DISTILBERT),
    "Albert": transformers.AlbertConfig(**_SIZES, embedding_size=16),
    "Camembert": transformers.CamembertConfig(**_SIZES | {"type_vocab_size": 1}),
    "Electra": transformers.ElectraConfig(**_SIZES, embedding_size=16),
    "MPNet": transformers.MPNetConfig(**_SIZES),
    # `transformers` has no ERNIE for TensorFlow.
    "Ernie": transformers.ErnieConfig(**_SIZES, use_task_id=True),
}
_SHARD_SIZE = "8KB"


def make_inputs(family: str) -> dict[str, np.ndarray]:
    """Returns a batch with padding, by the names of `transformers`."""
    random = np.random.default_rng(0)
    mask = np.ones((3, LENGTH), np.int32)
    mask[1, LENGTH - 4 :] = 0
    ids = random.integers(5, VOCAB_SIZE, mask.shape, dtype=np.int32)
    # RoBERTa's positions count tokens that are not its padding, 1.
    ids[mask == 0] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    if family in ("Bert", "Albert", "Electra", "Ernie"):
        inputs["token_type_ids"] = np.repeat([[0] * 6 + [1] * (LENGTH - 6)], 3, 0).astype(np.int32)
    return inputs


def _random(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 0.2, shape).astype(np.float32)


def write_torch(folder: pathlib.Path, family: str, kind: str) -> None:
    """Writes `pytorch_model.bin` as one file, in shards and in bfloat16, and PyTorch's outputs."""
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}{kind}")(CONFIGS[family]).eval()
    with torch.no_grad():
        for seed, weight in enumerate(model.parameters()):
            weight.add_(torch.tensor(_random(tuple(weight.shape), seed)))
    inputs = make_inputs(family)

    def save(name: str, **settings: object) -> None:
        place = folder / f"{family}{kind}-bin-{name}"
        with torch.no_grad():
            given = {key: torch.tensor(value).long() for key, value in inputs.items()}
            output = model(**given)[0].float().numpy()
        model.save_pretrained(place, safe_serialization=False, **settings)
        np.savez(place / "inputs.npz", **inputs)
        np.savez(place / "outputs.npz", output)

    save("whole")
    save("sharded", max_shard_size=_SHARD_SIZE)
    # The numbers are rounded to bfloat16; computation is in float32.
    state = {name: value.to(torch.bfloat16).float() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    save("bfloat16")
    state = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    torch.save(state, folder / f"{family}{kind}-bin-bfloat16" / "pytorch_model.bin")


def write_tensorflow(folder: pathlib.Path, family: str, kind: str) -> None:
    """Writes `tf_model.h5` as one file and in shards, a safetensors file, and the outputs."""
    model = getattr(transformers, f"TF{family}{kind}")(CONFIGS[family])
    inputs = make_inputs(family)
    model({key: tf.constant(value) for key, value in inputs.items()})
    for seed, weight in enumerate(model.weights):
        weight.assign_add(_random(tuple(weight.shape), seed))
    output = model({key: tf.constant(value) for key, value in inputs.items()})[0].numpy()
    for name, settings in (
        ("h5-whole", {}),
        ("h5-sharded", {"max_shard_size": _SHARD_SIZE}),
        ("tf_safetensors-whole", {"safe_serialization": True}),
    ):
        place = folder / f"{family}{kind}-{name}"
        model.save_pretrained(place, **settings)
        np.savez(place / "inputs.npz", **inputs)
        np.savez(place / "outputs.npz", output)


def write_refused(folder: pathlib.Path) -> None:
    """Writes unsupported files of PyTorch, which are not zip archives of tensors by name."""
    for name in ("legacy", "module", "script", "nested"):
        (folder / name).mkdir()
        CONFIGS["Bert"].save_pretrained(folder / name)
    path = "pytorch_model.bin"
    model = transformers.BertForMaskedLM(CONFIGS["Bert"]).eval()
    old = {"_use_new_zipfile_serialization": False}
    torch.save(model.state_dict(), folder / "legacy" / path, **old)
    torch.save(model, folder / "module" / path)
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, folder / "nested" / path)
    linear = torch.jit.script(torch.nn.Linear(2, 2))
    torch.jit.save(linear, folder / "script" / path)


def main() -> None:
    """Writes all models."""
    folder = pathlib.Path(sys.argv[1])
    for family in CONFIGS:
        for kind in ("ForMaskedLM", "Model"):
            write_torch(folder, family, kind)
            if hasattr(transformers, f"TF{family}{kind}"):
                write_tensorflow(folder, family, kind)
    (folder / "refused").mkdir()
    write_refused(folder / "refused")


if __name__ == "__main__":
    main()
