"""Hugging Face's layout: written by what converts checkpoints, read by whoever is there."""

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
from tools.exports.program import Opened, Program, Subject, model_program, run_program
from tools.finetuning import heads

if TYPE_CHECKING:
    from pipeline.models.masked_lm import MaskedLM
    from pipeline.tokenizers.tokens import Tokenizer

# What `transformers` calls the inputs.
_NAMES = {INPUT_IDS: "input_ids", INPUT_MASK: "attention_mask", SEGMENT_IDS: "token_type_ids"}


def load_subject(
    source: ModelSource, task: ModelTask, tokenizer: "Tokenizer | None", max_seq_length: int
) -> Subject:
    """Loads a model in float32 with the head of its task, and returns it as what is exported.

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
    return Subject(program, tokenizer, max_seq_length, write, open_hf, task.num_texts)


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
