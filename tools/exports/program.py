"""Programs: models as functions of a batch, and everything else that export formats need."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from keras import ops

from data_specs.records import HIDDEN_STATES, INPUT_IDS, INPUT_MASK, SEGMENT_IDS
from pipeline.base.errors import InputError
from pipeline.models import embeddings
from pipeline.models.masked_lm import LOGITS
from pipeline.tokenizers.tokens import Tokenizer
from tools.exports.examples import Arrays, Run
from tools.sentence_layout import SentenceLayout

if TYPE_CHECKING:
    from pipeline.models.masked_lm import MaskedLM
    from tools.finetuning.heads import TaskModel

_LAST_HIDDEN_STATE = "last_hidden_state"
# Name of the output in `sentence-transformers`.
VECTOR = "sentence_embedding"


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of a batch, for export.

    Attributes:
        inputs: names of the inputs, each int32 [B, L].
        outputs: names of the outputs, each float32 [B, …]; the prediction is the index of the
            largest number of the last axis.
        variables: all TensorFlow variables that `call` reads.
        call: maps a tensor for each input to a tensor for each output.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    variables: tuple[Any, ...]
    call: Callable[[Mapping[str, Any]], Mapping[str, Any]]


def _program(
    model: "MaskedLM | TaskModel", output: str, compute: Callable[[Mapping[str, Any]], Any]
) -> Program:
    """Returns a program for a Keras model in float32 on TensorFlow.

    If the encoder has at most one segment, the program has no input for segments.

    Args:
        model: the model.
        output: name of the output.
        compute: maps a batch to the output.
    """
    inputs = (INPUT_IDS, INPUT_MASK)
    if model.config.type_vocab_size > 1:
        inputs += (SEGMENT_IDS,)

    def call(batch: Mapping[str, Any]) -> Mapping[str, Any]:
        if SEGMENT_IDS not in batch:
            batch = {**batch, SEGMENT_IDS: ops.zeros_like(batch[INPUT_IDS])}
        return {output: compute(batch)}

    variables = tuple(variable.value for variable in model.variables)
    return Program(inputs, (output,), variables, call)


def model_program(model: "MaskedLM | TaskModel") -> Program:
    """Returns the program of a model with its head.

    Its output `logits` is float32:

    - [B, L, V] for a masked LM;
    - [B, C] for classes, or for a number with C = 1;
    - [B, 2, L] for questions: the answer's start and its end at each token;
    - [B, L, C] for tags of tokens.
    """
    return _program(model, LOGITS, functools.partial(model, training=False))


def encoder_program(model: "MaskedLM") -> Program:
    """Returns the program of a model without its head; output `last_hidden_state`, [B, L, D]."""

    def compute(batch: Mapping[str, Any]) -> Any:
        states = model.encoder(batch, training=False)[HIDDEN_STATES]
        return ops.cast(states[-1], "float32")

    return _program(model, _LAST_HIDDEN_STATE, compute)


def vector_program(model: "MaskedLM", layout: SentenceLayout) -> Program:
    """Returns the program for vectors of texts; output `sentence_embedding`, float32 [B, D]."""

    def compute(batch: Mapping[str, Any]) -> Any:
        states = model.encoder(batch, training=False)[HIDDEN_STATES][-1]
        return embeddings.vectors(
            states, batch[INPUT_MASK], layout.pooling, normalize=layout.normalize
        )

    return _program(model, VECTOR, compute)


def compile_program(program: Program) -> tf.types.experimental.PolymorphicFunction:
    """Returns a program as a graph for inputs of any batch size and length, in their order."""
    signature = [tf.TensorSpec([None, None], tf.int32, name=name) for name in program.inputs]

    @tf.function(input_signature=signature, autograph=False)
    def run(*values: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(program.call(dict(zip(program.inputs, values, strict=True))))

    return run


def run_program(program: Program) -> Run:
    """Returns a function that computes batches by the program itself: the reference of exports."""
    compiled = compile_program(program)

    def run(batch: Mapping[str, np.ndarray]) -> Arrays:
        outputs = compiled(*(tf.constant(batch[name]) for name in program.inputs))
        return {name: value.numpy() for name, value in outputs.items()}

    return run


class ExportError(InputError):
    """A format cannot represent a model, or gives other results; other formats may work."""


@dataclasses.dataclass(frozen=True)
class ReloadedExport:
    """An export that was reloaded with its target runtime.

    Attributes:
        run: computes a batch; None if the export takes only text.
        reader: name and version of the library that reads the export.
        from_text: computes a text; None if the export takes only ids.
    """

    run: Run | None
    reader: str
    from_text: Callable[[str], Mapping] | None = None


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to export.

    Attributes:
        program: the model as a program.
        tokenizer: the tokenizer in the model's directory; None if there is none.
        max_seq_length: maximum length of a text in tokens.
        write_hf: writes the model in Hugging Face's layout into a new folder.
        open_hf: opens such a folder.
        num_texts: number of texts of an input, one or two.
        layout: definition of the vectors of texts; None if no vectors are exported.
        vectors: program for these vectors; None if no vectors are exported, or if the model is
            fine-tuned on a task.
    """

    program: Program
    tokenizer: Tokenizer | None
    max_seq_length: int
    write_hf: Callable[[pathlib.Path], None]
    open_hf: Callable[[pathlib.Path], ReloadedExport]
    num_texts: int = 1
    layout: SentenceLayout | None = None
    vectors: Program | None = None
