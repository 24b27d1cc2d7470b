"""Hugging Face's layout: written by what converts checkpoints, read by whoever is there."""

import functools
import importlib.metadata
import importlib.util
import pathlib
from collections.abc import Callable, Mapping
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
    Opened,
    Program,
    Subject,
    head_program,
    masked_lm_program,
    run_program,
)
from tools.finetuning import heads

if TYPE_CHECKING:
    from pipeline.tokenizers.tokens import Tokenizer

# What `transformers` calls the inputs.
_NAMES = {INPUT_IDS: "input_ids", INPUT_MASK: "attention_mask", SEGMENT_IDS: "token_type_ids"}


def masked_lm_subject(
    source: ModelSource, tokenizer: "Tokenizer | None", max_seq_length: int
) -> Subject:
    """Loads a masked LM in float32, and returns it as what is exported.

    Args:
        source: from `checkpoints.find_model`.
        tokenizer: see `Subject`.
        max_seq_length: see `Subject`.
    """
    program = _read_masked_lm(source)
    write = functools.partial(convert_checkpoint.write_model, source, layout=convert_checkpoint.HF)
    open_hf = functools.partial(_open, program=program, task=ModelTask(), read=_read_masked_lm)
    return Subject(program, tokenizer, max_seq_length, write, open_hf)


def head_subject(
    source: ModelSource, task: ModelTask, tokenizer: "Tokenizer | None", max_seq_length: int
) -> Subject:
    """Loads a fine-tuned model in float32, and returns it as what is exported.

    Args:
        source: from `checkpoints.find_model`.
        task: of `find_task`, with a head.
        tokenizer: see `Subject`.
        max_seq_length: see `Subject`.

    Raises:
        InputError: the weights are not those of the configuration.
    """
    model = _read_head(source, task)
    save = functools.partial(heads.save_head, model=model, labels=task.head.labels)
    write = functools.partial(
        convert_checkpoint.write_with_tokenizer, source, write=save, last=model_directory.HF_CONFIG
    )
    program = head_program(model)
    open_hf = functools.partial(
        _open, program=program, task=task, read=lambda again: head_program(_read_head(again, task))
    )
    return Subject(program, tokenizer, max_seq_length, write, open_hf, task.num_texts)


def _read_masked_lm(source: ModelSource) -> Program:
    return masked_lm_program(model_directory.load_masked_lm(source, dtype="float32"))


def _read_head(source: ModelSource, task: ModelTask) -> heads.TaskModel:
    head = task.head
    return heads.build_head(
        source, head.kind, num_labels=head.num_outputs, dtype="float32", keep_head=True
    )


def _open(
    directory: pathlib.Path,
    *,
    program: Program,
    task: ModelTask,
    read: Callable[[ModelSource], Program],
) -> Opened:
    """Opens it with `transformers` where that can compute, else with our own reader."""
    if all(importlib.util.find_spec(name) for name in ("transformers", "torch")):
        version = importlib.metadata.version("transformers")
        return Opened(_torch_run(directory, program, task), f"transformers {version}")
    source = model_directory.find_model(directory)
    return Opened(run_program(read(source)), "read again, Keras")


def _torch_run(directory: pathlib.Path, program: Program, task: ModelTask) -> Run:
    with running.silenced_stderr():
        import torch
        import transformers

        auto_class = getattr(transformers, task.auto_class)
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
