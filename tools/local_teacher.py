"""Small teachers trained from scratch, for use without a pre-trained teacher."""

import dataclasses

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
from tools.commands import Step, run_command

_SEED = 12345
# More positions than the inputs of its short training have.
_POSITIONS = 128
BATCH_SIZE = 64
LOG_STEPS = 10


def local_config(manifest: Manifest, *, num_hidden_layers: int, hidden_size: int) -> EncoderConfig:
    """Returns the configuration of a small BERT with four heads for the inputs of a directory."""
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


def write_initial_model(
    examples_dir: Location, directory: Location, config: EncoderConfig, *, seed: int
) -> None:
    """Writes a model directory with initial weights from which a model learns within minutes.

    Args:
        examples_dir: masked examples or unmasked windows. Tokens are counted in the first
            shard of the train split.
        directory: the model directory to write.
        config: the configuration from `local_config`.
        seed: seed of the random weights.
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


@dataclasses.dataclass(frozen=True)
class LocalTraining:
    """The training of a teacher of 4 layers × 192 on a directory of examples or windows.

    Attributes:
        examples: the directory of examples or windows.
        start: directory for the initial weights.
        teacher: directory for the teacher.
        num_steps: number of training steps.
        compute_dtype: the setting of `run_distill`.
    """

    examples: Location
    start: Location
    teacher: Location
    num_steps: int
    compute_dtype: str

    def steps(self) -> list[Step]:
        """Returns the ordered steps."""
        return [
            Step("a teacher's first weights", self.start / "config.json", self._make_start),
            Step("training the teacher", self.teacher / "config.json", self._train),
        ]

    def _make_start(self) -> None:
        manifest = manifests.load(self.examples)
        config = local_config(manifest, num_hidden_layers=4, hidden_size=192)
        config = dataclasses.replace(config, max_position_embeddings=_POSITIONS)
        write_initial_model(self.examples, self.start, config, seed=_SEED)

    def _train(self) -> None:
        run_command(
            "run_distill",
            input_dir=self.examples,
            student=self.start,
            output_dir=self.teacher,
            losses="masked_lm=1",
            num_train_steps=self.num_steps,
            num_warmup_steps=20,
            train_batch_size=BATCH_SIZE,
            learning_rate=2e-3,
            save_checkpoints_steps=250,
            log_steps=LOG_STEPS,
            max_eval_steps=20,
            compute_dtype=self.compute_dtype,
        )
