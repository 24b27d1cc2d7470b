"""Exports in Hugging Face's layout, for `transformers` and `sentence-transformers`."""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from data_specs.records import INPUT_IDS, INPUT_MASK, SEGMENT_IDS
from pipeline.commands import running
from pipeline.models.formats import model_directory
from pipeline.models.formats.model_directory import ModelSource
from pipeline.models.masked_lm import LOGITS
from tools import convert_checkpoint
from tools.exports.examples import Arrays, Run
from tools.exports.model_task import ModelTask
from tools.exports.program import (
    VECTOR,
    ExportError,
    Program,
    ReloadedExport,
    Subject,
    model_program,
    run_program,
    vector_program,
)
from tools.finetuning import heads
from tools.sentence_layout import SentenceLayout, read_layout, write_layout

if TYPE_CHECKING:
    from pipeline.models.masked_lm import MaskedLM
    from pipeline.tokenizers.tokens import Tokenizer

# Names of the inputs in `transformers`.
_NAMES = {INPUT_IDS: "input_ids", INPUT_MASK: "attention_mask", SEGMENT_IDS: "token_type_ids"}


def load_subject(
    source: ModelSource,
    task: ModelTask,
    tokenizer: "Tokenizer | None",
    max_seq_length: int,
    layout: SentenceLayout | None = None,
) -> Subject:
    """Loads a model in float32, with the head of its task, for export.

    Args:
        source: the model.
        task: the task of its head.
        tokenizer: the model's tokenizer, if it has one.
        max_seq_length: maximum length of a text in tokens.
        layout: definition of the vectors of texts; None if no vectors are exported.

    Raises:
        InputError: the weights do not match the configuration.
    """
    model = _read(source, task)
    program = model_program(model)
    hf = convert_checkpoint.HF
    write = functools.partial(convert_checkpoint.write_model, source, layout=hf)
    if task.head is not None:
        save = functools.partial(heads.save_head, model=model)
        write = functools.partial(
            convert_checkpoint.write_with_tokenizer,
            source,
            write=save,
            last=model_directory.HF_CONFIG,
        )
    open_hf = functools.partial(_open, program=program, task=task)
    vectors = None
    if layout is not None and task.head is None:
        vectors = vector_program(model, layout)
    return Subject(
        program, tokenizer, max_seq_length, write, open_hf, task.num_texts, layout, vectors
    )


def write_sentences(subject: Subject, directory: pathlib.Path) -> None:
    """Writes a model with the files that `sentence-transformers` reads.

    Raises:
        ExportError: the model is fine-tuned on a task.
    """
    if subject.vectors is None:
        raise ExportError("it requires a masked LM, and this model is fine-tuned on a task")
    subject.write_hf(directory)
    layout = dataclasses.replace(subject.layout, max_seq_length=subject.max_seq_length)
    hidden_size = model_directory.find_model(directory).config.hidden_size
    write_layout(directory, layout, hidden_size)


def open_sentences(subject: Subject, directory: pathlib.Path) -> ReloadedExport:
    """Opens the export with `sentence-transformers` if installed, or else with our own reader."""
    if importlib.util.find_spec("sentence_transformers") is None:
        source = model_directory.find_model(directory)
        model = model_directory.load_masked_lm(source, dtype="float32")
        program = vector_program(model, read_layout(directory))
        return ReloadedExport(run_program(program), "reloaded, Keras")
    with running.silenced_stderr():
        import sentence_transformers
        import torch

        model = sentence_transformers.SentenceTransformer(str(directory), device="cpu").eval()

    def run(batch: Mapping[str, np.ndarray]) -> Arrays:
        names = subject.vectors.inputs
        tensors = {_NAMES[name]: torch.from_numpy(batch[name]).long() for name in names}
        with torch.no_grad():
            return {VECTOR: model(tensors)[VECTOR].numpy()}

    return ReloadedExport(run, f"sentence-transformers {sentence_transformers.__version__}")


def _read(source: ModelSource, task: ModelTask) -> "MaskedLM | heads.TaskModel":
    if task.head is None:
        return model_directory.load_masked_lm(source, dtype="float32")
    return heads.build_head(source, task.head, dtype="float32", keep_head=True)


def _open(directory: pathlib.Path, *, program: Program, task: ModelTask) -> ReloadedExport:
    """Opens the export with `transformers` if installed, or else with our own reader."""
    if all(importlib.util.find_spec(name) for name in ("transformers", "torch")):
        version = importlib.metadata.version("transformers")
        return ReloadedExport(_torch_run(directory, program, task), f"transformers {version}")
    model = _read(model_directory.find_model(directory), task)
    return ReloadedExport(run_program(model_program(model)), "reloaded, Keras")


def _torch_run(directory: pathlib.Path, program: Program, task: ModelTask) -> Run:
    with running.silenced_stderr():
        import torch
        import transformers

        auto_class = getattr(transformers, task.hub.auto_class)
        model = auto_class.from_pretrained(str(directory)).eval()

    def run(batch: Mapping[str, np.ndarray]) -> Arrays:
        tensors = {_NAMES[name]: torch.from_numpy(batch[name]).long() for name in program.inputs}
        with torch.no_grad():
            outputs = model(**tensors)
        if "logits" in outputs:
            return {LOGITS: outputs.logits.numpy()}
        # A model for question answering has logits for the start and the end of the answer.
        return {LOGITS: torch.stack([outputs.start_logits, outputs.end_logits], dim=1).numpy()}

    return run
