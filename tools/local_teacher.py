"""First weights of small teachers that are trained in minutes, where no real one is at hand."""

import numpy as np

from data_specs import records
from pipeline.base.location import Location
from pipeline.models.config import EncoderConfig
from pipeline.models.formats import model_directory
from pipeline.storage import manifest as manifests
from pipeline.storage import serialization
from pipeline.storage.arrays import Column
from pipeline.storage.manifest import Manifest
from tools import quickstart_teacher_init


def local_config(manifest: Manifest, *, num_hidden_layers: int, hidden_size: int) -> EncoderConfig:
    """Returns the configuration of a small BERT of four heads for the inputs of a directory."""
    return EncoderConfig(
        vocab_size=manifest.vocab.size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=4,
        intermediate_size=4 * hidden_size,
        hidden_act="gelu",
        max_position_embeddings=manifest.max_seq_length,
        type_vocab_size=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def write_start(
    examples_dir: Location, directory: Location, config: EncoderConfig, *, seed: int
) -> None:
    """Writes weights from which a small model learns within minutes, as a model directory.

    Args:
        examples_dir: masked examples or unmasked windows: tokens are counted in
            the first shard of their train split.
        directory: where the model goes.
        config: from `local_config`.
        seed: of the random numbers among the weights.
    """
    manifest = manifests.load(examples_dir)
    path = examples_dir / manifest.splits[manifests.TRAIN][0].file
    examples = [serialization.decode_example(record) for record in serialization.read_records(path)]
    declared = {feature.name: feature for feature in manifest.features}
    feature = declared.get(records.MASKED_LM_IDS, declared[records.INPUT_IDS])
    contents = [example[feature.name] for example in examples]
    tokens = Column.decode(feature, contents, config.vocab_size).values
    counts = np.bincount(tokens, minlength=config.vocab_size)
    weights = quickstart_teacher_init.neighbor_weights(config, counts, seed=seed)
    folder = directory.make_directory()
    manifests.copy_tokenizer(examples_dir, manifest, folder)
    model_directory.save_hf_weights(folder, config, weights)
