"""Where a student comes from, and what it is made into before training."""

import dataclasses
from typing import Any

from pipeline.distill import student_shape
from pipeline.distill.settings import DistillConfig, StudentConfig
from pipeline.models.config import EncoderConfig
from pipeline.models.formats import model_directory
from pipeline.models.initialization import from_teacher
from pipeline.models.masked_lm import MaskedLM


@dataclasses.dataclass(frozen=True)
class StudentStart:
    """Where training begins.

    Attributes:
        source: the model that weights are taken from.
        config: the student's dimensions.
        layer_map: the source's layers; None for the source as it is.
        setting: the setting that names the source.
    """

    source: model_directory.ModelSource
    config: EncoderConfig
    layer_map: tuple[int, ...] | None
    setting: str

    def describe(self) -> dict[str, Any]:
        """Returns what decides the first weights, for the request."""
        return {
            "sha256": self.source.sha256(),
            "config": self.config.to_dict(),
            "layer_map": self.layer_map,
        }

    def build(self, config: DistillConfig) -> MaskedLM:
        """Returns the student with its first weights, its frozen tables frozen."""
        if self.layer_map is None:
            model = model_directory.load_masked_lm(
                self.source, dtype=config.compute_dtype, seed=config.random_seed
            )
        else:
            model = MaskedLM(self.config, dtype=config.compute_dtype, seed=config.random_seed)
            model_directory.assign_weights(model, self._weights(config.student))
        student_shape.prepare_for_training(model, config)
        return model

    def _weights(self, config: StudentConfig) -> from_teacher.Weights:
        """Takes layers, then leaves out segments, then cuts."""
        source = self.source.config
        whole, weights = from_teacher.student_weights(
            self.source.read_weights(), source, layer_map=self.layer_map
        )
        if config.drop_segments:
            whole, weights = from_teacher.without_segments(weights, whole)
        return from_teacher.narrow_weights(weights, whole, self.config)


def find_student(config: StudentConfig) -> StudentStart:
    """Finds what the flags name.

    Raises:
        InputError: a file is missing, or layers or sizes do not fit.
    """
    if config.student is not None:
        source = model_directory.find_model(config.student)
        return StudentStart(source, source.config, None, "student")
    if config.bert_config_file is not None:
        source = model_directory.ModelSource.from_google(
            config.bert_config_file, config.init_checkpoint
        )
        return StudentStart(source, source.config, None, "bert_config_file")
    source = model_directory.find_model(config.init_from)
    student, layer_map = student_shape.derive_config(source.config, config)
    return StudentStart(source, student, layer_map, "init_from")
