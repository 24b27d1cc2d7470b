"""A model as one function of a batch, and what a format needs to know besides it."""

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
# As `sentence-transformers` calls it.
VECTOR = "sentence_embedding"


@dataclasses.dataclass(frozen=True)
class Program:
    """What is exported.

    Attributes:
        inputs: names, each int32 [B, L].
        outputs: names, each float32 [B, …]; the largest of its last axis is its guess.
        variables: TensorFlow's variables, all that `call` reads.
        call: from a tensor for each input to a tensor for each output.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    variables: tuple[Any, ...]
    call: Callable[[Mapping[str, Any]], Mapping[str, Any]]


def _program(
    model: "MaskedLM | TaskModel", output: str, compute: Callable[[Mapping[str, Any]], Any]
) -> Program:
    """Returns the program of what a Keras model, in float32 on TensorFlow, computes of a batch.

    Where the encoder knows one segment only, or none, there is no input of segments.
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

    Its `logits` are float32, of a masked LM [B, L, V]; of a task [B, C], of each class or of
    the one number; for questions [B, 2, L], of the answer's start and then of its end at each
    token; for the tags of tokens [B, L, C].
    """
    return _program(model, LOGITS, functools.partial(model, training=False))


def encoder_program(model: "MaskedLM") -> Program:
    """Returns the program of a model without its head: `last_hidden_state`, [B, L, D]."""

    def compute(batch: Mapping[str, Any]) -> Any:
        states = model.encoder(batch, training=False)[HIDDEN_STATES]
        return ops.cast(states[-1], "float32")

    return _program(model, _LAST_HIDDEN_STATE, compute)


def vector_program(model: "MaskedLM", layout: SentenceLayout) -> Program:
    """Returns the program of the vectors of texts: `sentence_embedding`, float32 [B, D]."""

    def compute(batch: Mapping[str, Any]) -> Any:
        states = model.encoder(batch, training=False)[HIDDEN_STATES][-1]
        return embeddings.vectors(
            states, batch[INPUT_MASK], layout.pooling, normalize=layout.normalize
        )

    return _program(model, VECTOR, compute)


def compile_program(program: Program) -> tf.types.experimental.PolymorphicFunction:
    """Returns a program as a graph of its inputs, in their order: any batch, any length."""
    signature = [tf.TensorSpec([None, None], tf.int32, name=name) for name in program.inputs]

    @tf.function(input_signature=signature, autograph=False)
    def run(*values: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(program.call(dict(zip(program.inputs, values, strict=True))))

    return run


def run_program(program: Program) -> Run:
    """Returns what computes batches by the program itself, which exports are compared with."""
    compiled = compile_program(program)

    def run(batch: Mapping[str, np.ndarray]) -> Arrays:
        outputs = compiled(*(tf.constant(batch[name]) for name in program.inputs))
        return {name: value.numpy() for name, value in outputs.items()}

    return run


class ExportError(InputError):
    """A format cannot hold a model, or computes something else; other formats may do."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """An export as whoever gets it would run it.

    Attributes:
        run: computes a batch; None where the export takes text only.
        reader: the library that reads it, and its version.
        from_text: computes a text; None where the export takes ids only.
    """

    run: Run | None
    reader: str
    from_text: Callable[[str], Mapping] | None = None


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to export.

    Attributes:
        program: what it computes.
        tokenizer: the model's own; None where there is none beside it.
        max_seq_length: tokens that a text is cut to.
        write_hf: writes it in Hugging Face's layout into a folder that it makes.
        open_hf: opens what that wrote.
        num_texts: texts of an input, one or two.
        layout: how vectors of texts are made; None where none are wanted.
        vectors: what computes them; None where none are wanted, or the model's head is of a task.
    """

    program: Program
    tokenizer: Tokenizer | None
    max_seq_length: int
    write_hf: Callable[[pathlib.Path], None]
    open_hf: Callable[[pathlib.Path], Opened]
    num_texts: int = 1
    layout: SentenceLayout | None = None
    vectors: Program | None = None
