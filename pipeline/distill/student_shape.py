"""A student's dimensions, and what of it is trained and how: all that needs no weights."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.base.errors import InputError, Setting
from pipeline.distill.settings import DistillConfig, StudentConfig
from pipeline.models.config import EncoderConfig
from pipeline.models.initialization import from_teacher

if TYPE_CHECKING:
    from pipeline.models.masked_lm import MaskedLM


def derive_config(
    teacher: EncoderConfig, config: StudentConfig
) -> tuple[EncoderConfig, tuple[int, ...]]:
    """Returns the dimensions of a student that takes a teacher's layers, and which layers.

    Args:
        teacher: the dimensions of `config.init_from`.
        config: says what becomes of them.

    Raises:
        InputError: layers or sizes do not fit.
    """
    layer_map = from_teacher.choose_layers(
        teacher.num_hidden_layers, config.student_layers, config.layer_map
    )
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
    """Freezes what is not trained and says what is computed again for gradients.

    Args:
        model: the student, not yet called.
        config: what was asked for.

    Raises:
        InputError: the student has no such table to freeze.
    """
    model.encoder.recompute_activations = config.recompute_activations
    _freeze(model, config.freeze)


def _freeze(model: "MaskedLM", names: Sequence[str]) -> None:
    """Keeps tables of embeddings as they are.

    Raises:
        InputError: the student has no such table.
    """
    tables = {
        variable.path.rpartition("/")[2]: variable
        for variable in model.encoder.embeddings.trainable_variables
    }
    for name in names:
        if name not in tables:
            raise InputError(
                Setting("freeze"),
                "tables that the student has",
                f"{name} for a {model.config.model_type}",
            )
        tables[name].trainable = False
