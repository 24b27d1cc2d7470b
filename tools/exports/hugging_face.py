"""Hugging Face's layout: written by what converts checkpoints, read by whoever is there."""

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
    Opened,
    Program,
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

# What `transformers` calls the inputs.
_NAMES = {INPUT_IDS: "input_ids", INPUT_MASK: "attention_mask", SEGMENT_IDS: "token_type_ids"}


def load_subject(
    source: ModelSource,
    task: ModelTask,
    tokenizer: "Tokenizer | None",
    max_seq_length: int,
    layout: SentenceLayout | None = None,
) -> Subject:
    """Loads a model in float32 with the head of its task, and returns it as what is exported.

    `layout` says how vectors are made, where they are wanted.

    Raises:
        InputError: the weights are not those of the configuration.
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
        ExportError: the model's head is of a task.
    """
    if subject.vectors is None:
        raise ExportError("it is for masked LMs, and this model is fine-tuned on a task")
    subject.write_hf(directory)
    layout = dataclasses.replace(subject.layout, max_seq_length=subject.max_seq_length)
    hidden_size = model_directory.find_model(directory).config.hidden_size
    write_layout(directory, layout, hidden_size)


def open_sentences(subject: Subject, directory: pathlib.Path) -> Opened:
    """Opens it with `sentence-transformers` where that can compute, else with our own reader."""
    if importlib.util.find_spec("sentence_transformers") is None:
        source = model_directory.find_model(directory)
        model = model_directory.load_masked_lm(source, dtype="float32")
        program = vector_program(model, read_layout(directory))
        return Opened(run_program(program), "read again, Keras")
    with running.silenced_stderr():
        import sentence_transformers
        import torch

        model = sentence_transformers.SentenceTransformer(str(directory), device="cpu").eval()

    def run(batch: Mapping[str, np.ndarray]) -> Arrays:
        names = subject.vectors.inputs
        given = {_NAMES[name]: torch.from_numpy(batch[name]).long() for name in names}
        with torch.no_grad():
            return {VECTOR: model(given)[VECTOR].numpy()}

    return Opened(run, f"sentence-transformers {sentence_transformers.__version__}")


def _read(source: ModelSource, task: ModelTask) -> "MaskedLM | heads.TaskModel":
    if task.head is None:
        return model_directory.load_masked_lm(source, dtype="float32")
    return heads.build_head(source, task.head, dtype="float32", keep_head=True)


def _open(directory: pathlib.Path, *, program: Program, task: ModelTask) -> Opened:
    """Opens it with `transformers` where that can compute, else with our own reader."""
    if all(importlib.util.find_spec(name) for name in ("transformers", "torch")):
        version = importlib.metadata.version("transformers")
        return Opened(_torch_run(directory, program, task), f"transformers {version}")
    model = _read(model_directory.find_model(directory), task)
    return Opened(run_program(model_program(model)), "read again, Keras")


def _torch_run(directory: pathlib.Path, program: Program, task: ModelTask) -> Run:
    with running.silenced_stderr():
        import torch
        import transformers

        auto_class = getattr(transformers, task.hub.auto_class)
        model = auto_class.from_pretrained(str(directory)).eval()

    def run(batch: Mapping[str, np.ndarray]) -> Arrays:
        given = {_NAMES[name]: torch.from_numpy(batch[name]).long() for name in program.inputs}
        with torch.no_grad():
            found = model(**given)
        if "logits" in found:
            return {LOGITS: found.logits.numpy()}
        # Of questions.
        return {LOGITS: torch.stack([found.start_logits, found.end_logits], dim=1).numpy()}

    return run
