"""The identity of the inputs of a split, and checks that a model can read them."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pipeline.base.errors import InputError, Setting
from pipeline.models.formats.model_directory import ModelSource
from pipeline.tokenizers import loading
from pipeline.tokenizers.vocabulary import VocabInfo
from tools.finetuning.head_layout import Head, read_head
from tools.finetuning.inputs import Feature, input_digest


@dataclasses.dataclass(frozen=True)
class TaskInputs:
    """The inputs of a split, in order.

    Attributes:
        task: the task's name.
        head: the head that computes their outputs.
        vocab: the tokenizer's vocabulary.
        special_ids: the tokenizer's special tokens.
        max_seq_length: maximum number of tokens of an input.
        doc_stride: tokens between the starts of windows; None for kinds without windows.
        features: the inputs.
    """

    task: str
    head: Head
    vocab: VocabInfo
    special_ids: Mapping[str, int]
    max_seq_length: int
    doc_stride: int | None
    features: Sequence[Feature]

    def sha256(self) -> str:
        """Returns a digest of all tokens and segments, in their order."""
        digest = hashlib.sha256()
        for feature in self.features:
            digest.update(input_digest(feature))
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Returns the identity of the inputs as JSON values, to store with their logits."""
        return {
            "task": self.task,
            "head": self.head.kind,
            "labels": list(self.head.labels),
            "vocab": msgspec.to_builtins(self.vocab),
            "max_seq_length": self.max_seq_length,
            "doc_stride": self.doc_stride,
            "num_windows": len(self.features),
            # The digest depends on the entries above, so it comes last: a message about a
            # difference names the cause first.
            "windows": self.sha256(),
        }


def expect_reader(source: ModelSource, inputs: TaskInputs) -> None:
    """Checks that a model has the tokens of inputs, and positions for the longest input.

    Raises:
        InputError: the model lacks tokens or positions; the error has both values.
    """
    config, directory = source.config, source.directory
    if inputs.max_seq_length > config.max_input_length:
        expected = f"a model of at least {inputs.max_seq_length} positions (`max_seq_length`)"
        raise InputError(directory, expected, config.max_input_length)
    if inputs.vocab.size > config.vocab_size:
        expected = f"a model of at least {inputs.vocab.size} tokens, the tokenizer's number"
        raise InputError(directory, expected, config.vocab_size)
    paths = loading.tokenizer_files(directory)
    vocabularies = [loading.read_vocab_info(path) for path in paths]
    if vocabularies and inputs.vocab not in vocabularies:
        raise InputError(
            directory,
            f"the tokens of `model` (SHA-256 {inputs.vocab.sha256}, {inputs.vocab.size} tokens)",
            f"{paths[0]} (SHA-256 {vocabularies[0].sha256}, {vocabularies[0].size} tokens)",
        )


def expect_teacher(source: ModelSource, inputs: TaskInputs) -> None:
    """Checks that a teacher was fine-tuned on the task and can read the inputs.

    Raises:
        InputError: it has no head or a different one, or it has different tokens or too few
            positions.
    """
    head = read_head(source)
    if head is None or not inputs.head.fits(head):
        expected, received = f"{inputs.head} for `task`={inputs.task}", head or "none"
        setting = Setting("finetune_teacher")
        raise InputError(setting, expected, f"{source.directory} with {received}")
    expect_reader(source, inputs)
