"""Hugging Face's layout: written by what converts checkpoints, read by whoever is there."""

import functools
import importlib.metadata
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from data_specs.records import INPUT_IDS, INPUT_MASK, SEGMENT_IDS
from pipeline import command_line
from pipeline.models import checkpoints
from pipeline.models.masked_lm import LOGITS
from tools import convert_checkpoint
from tools.exports.batches import Arrays, Run
from tools.exports.program import Program, masked_lm_program, run_program
from tools.exports.subject import Opened, Subject

if TYPE_CHECKING:
    from pipeline.text.tokens import Tokenizer

# What `transformers` calls the inputs.
_NAMES = {
    INPUT_IDS: "input_ids",
    INPUT_MASK: "attention_mask",
    SEGMENT_IDS: "token_type_ids",
}


def masked_lm_subject(
    source: checkpoints.ModelSource, tokenizer: "Tokenizer | None", max_seq_length: int
) -> Subject:
    """Loads a masked LM in float32, and returns it as what is exported.

    Args:
        source: from `checkpoints.find_model`.
        tokenizer: see `Subject`.
        max_seq_length: see `Subject`.
    """
    program = masked_lm_program(checkpoints.load_masked_lm(source, dtype="float32"))
    write = functools.partial(convert_checkpoint.write_model, source, layout=convert_checkpoint.HF)
    open_hf = functools.partial(_open_masked_lm, program=program)
    return Subject(program, tokenizer, max_seq_length, write, open_hf)


def _open_masked_lm(directory: pathlib.Path, *, program: Program) -> Opened:
    """Opens it with `transformers` where that can compute, else with our own reader."""
    if all(importlib.util.find_spec(name) for name in ("transformers", "torch")):
        version = importlib.metadata.version("transformers")
        return Opened(_torch_run(directory, program), f"transformers {version}")
    source = checkpoints.find_model(directory, "--output_dir")
    model = checkpoints.load_masked_lm(source, dtype="float32")
    return Opened(run_program(masked_lm_program(model)), "read again, Keras")


def _torch_run(directory: pathlib.Path, program: Program) -> Run:
    with command_line.silenced_stderr():
        import torch
        from transformers import AutoModelForMaskedLM

        model = AutoModelForMaskedLM.from_pretrained(str(directory)).eval()

    def run(batch: Mapping[str, np.ndarray]) -> Arrays:
        given = {_NAMES[name]: torch.from_numpy(batch[name]).long() for name in program.inputs}
        with torch.no_grad():
            return {LOGITS: model(**given).logits.numpy()}

    return run
