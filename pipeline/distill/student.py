"""The student before training: its dimensions, initial weights and frozen parts."""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.base.errors import InputError, Setting, naming_setting
from pipeline.distill.settings import ENCODER, DistillConfig, StudentConfig
from pipeline.models.config import EncoderConfig
from pipeline.models.formats import model_directory
from pipeline.models.initialization import from_teacher
from pipeline.models.initialization.new_head import new_head
from pipeline.models.weight_names import encoder_table
from pipeline.storage import token_counts
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.codecs.base import NO_ID

if TYPE_CHECKING:
    from pipeline.models.masked_lm import MaskedLM


@dataclasses.dataclass(frozen=True)
class StudentStart:
    """The source of a student's initial weights.

    Attributes:
        source: the model that weights are taken from.
        config: the student's dimensions.
        layer_map: the layers taken from the source; None for the unchanged source.
        setting: the setting that names the source.
    """

    source: model_directory.ModelSource
    config: EncoderConfig
    layer_map: tuple[int, ...] | None
    setting: str

    def with_source(self, source: model_directory.ModelSource) -> "StudentStart":
        """Returns the same start with a source that has another vocabulary."""
        config = dataclasses.replace(self.config, vocab_size=source.config.vocab_size)
        return dataclasses.replace(self, source=source, config=config)

    def describe(self) -> dict[str, Any]:
        """Returns the part of the run configuration that decides the initial weights."""
        return {
            "sha256": self.source.sha256(),
            "config": self.config.to_dict(),
            "layer_map": self.layer_map,
        }

    def describe_new_head(self) -> str | None:
        """Returns a line about the new head of a student; None if the source has a head."""
        if not self.source.is_bare:
            return None
        return (
            f"{self.source.location}: no masked-LM head; the student starts with a new one, made "
            "of the identity and the labels' frequencies"
        )

    def build(self, config: DistillConfig, cache: CacheInput) -> "MaskedLM":
        """Returns the student with its initial weights, prepared for training on a cache."""
        settings = {"dtype": config.compute_dtype, "seed": config.random_seed}
        if self.layer_map is None and not self.source.is_bare:
            model = model_directory.load_masked_lm(self.source, **settings)
        else:
            from pipeline.models.masked_lm import MaskedLM

            weights = self._source_weights(cache)
            if self.layer_map is not None:
                weights = self._derive_weights(weights, config.student)
            model = MaskedLM(self.config, **settings)
            model_directory.assign_weights(model, weights)
        prepare_for_training(model, config)
        return model

    def _source_weights(self, cache: CacheInput) -> from_teacher.Weights:
        """Reads the source's weights, and adds a new head if it has none."""
        if not self.source.is_bare:
            return self.source.read_weights()
        config = self.source.config
        head = new_head(config, _count_labels(cache, config.vocab_size))
        return {**self.source.read_weights(encoder_table(config)), **head}

    def _derive_weights(
        self, weights: from_teacher.Weights, config: StudentConfig
    ) -> from_teacher.Weights:
        """Copies layers, then removes segments, then narrows the sizes."""
        source = self.source.config
        whole, weights = from_teacher.student_weights(weights, source, layer_map=self.layer_map)
        if config.drop_segments:
            whole, weights = from_teacher.without_segments(weights, whole)
        return from_teacher.narrow_weights(weights, whole, self.config)


def _count_labels(cache: CacheInput, vocab_size: int) -> np.ndarray:
    """Counts the labels of a cache by the student's ids, int64 [V]."""
    counts = token_counts.count_labels(cache.directory, cache.manifest)
    ids = np.arange(len(counts)) if cache.vocab_subset is None else cache.vocab_subset.table
    known = ids != NO_ID
    return np.bincount(ids[known], counts[known], minlength=vocab_size)


def find_student(config: StudentConfig) -> StudentStart:
    """Finds the model that the settings name.

    Raises:
        InputError: a file is missing, or layers or sizes do not fit.
    """
    if config.student is not None:
        source = model_directory.find_model(config.student)
        start = StudentStart(source, source.config, None, "student")
    elif config.bert_config_file is not None:
        files = config.bert_config_file, config.init_checkpoint
        source = model_directory.ModelSource.from_google(*files)
        start = StudentStart(source, source.config, None, "bert_config_file")
    else:
        source = model_directory.find_model(config.init_from)
        start = StudentStart(source, *derive_config(source.config, config), "init_from")
    with naming_setting(start.setting):
        from_teacher.expect_tied(source.config)
        if not source.is_bare:
            source.expect_head()
    return start


def derive_config(
    teacher: EncoderConfig, config: StudentConfig
) -> tuple[EncoderConfig, tuple[int, ...]]:
    """Returns the dimensions of a student made from a teacher, and the layers to copy.

    Raises:
        InputError: layers or sizes do not fit.
    """
    layer_map = from_teacher.choose_layers(teacher, config.student_layers, config.layer_map)
    student = dataclasses.replace(teacher, num_hidden_layers=len(layer_map))
    if config.drop_segments:
        student = from_teacher.config_without_segments(student)
    student = from_teacher.narrow_config(
        student,
        hidden_size=config.student_hidden_size,
        num_attention_heads=config.student_attention_heads,
        intermediate_size=config.student_intermediate_size,
    )
    return student, layer_map


def prepare_for_training(model: "MaskedLM", config: DistillConfig) -> None:
    """Freezes parts of a student and sets the recomputation of activations.

    Call it before the student's first call.

    Raises:
        InputError: the student has no such table to freeze.
    """
    model.encoder.recompute_activations = config.recompute_activations
    variables = model.encoder.embeddings.trainable_variables
    tables = {variable.path.rpartition("/")[2]: variable for variable in variables}
    for name in config.freeze:
        if name == ENCODER:
            model.encoder.trainable = False
            continue
        if name not in tables:
            expected = "embedding tables that the student has"
            received = f"{name}, which a {model.config.model_type} does not have"
            raise InputError(Setting("freeze"), expected, received)
        tables[name].trainable = False
