"""The identity of the inputs of a split, and the models that can read them."""

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
        task: its name.
        head: what a model has to say of them.
        vocab: of the tokenizer.
        special_ids: of the tokenizer.
        max_seq_length: tokens of the longest that may be.
        doc_stride: tokens between the windows of a context; None where there are none.
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
        """Returns what logits of them are logits of, as JSON values."""
        return {
            "task": self.task,
            "head": self.head.kind,
            "labels": list(self.head.labels),
            "vocab": msgspec.to_builtins(self.vocab),
            "max_seq_length": self.max_seq_length,
            "doc_stride": self.doc_stride,
            "num_windows": len(self.features),
            # The last of all: what the others decide differs first.
            "windows": self.sha256(),
        }


def expect_reader(source: ModelSource, inputs: TaskInputs) -> None:
    """Checks that a model knows the tokens of inputs, and has positions for the longest.

    Raises:
        InputError: it does not; prints both.
    """
    config, directory = source.config, source.directory
    if inputs.max_seq_length > config.max_input_length:
        expected = f"a model of at least {inputs.max_seq_length} positions (`max_seq_length`)"
        raise InputError(directory, expected, config.max_input_length)
    if inputs.vocab.size > config.vocab_size:
        expected = f"a model of at least {inputs.vocab.size} tokens, as the tokenizer has"
        raise InputError(directory, expected, config.vocab_size)
    paths = loading.tokenizer_files(directory)
    found = [loading.read_vocab_info(path) for path in paths]
    if found and inputs.vocab not in found:
        raise InputError(
            directory,
            f"the tokens of `model` (SHA-256 {inputs.vocab.sha256}, {inputs.vocab.size} tokens)",
            f"{paths[0]} (SHA-256 {found[0].sha256}, {found[0].size} tokens)",
        )


def expect_teacher(source: ModelSource, inputs: TaskInputs) -> None:
    """Checks that a teacher was fine-tuned on the task and can read the inputs.

    Raises:
        InputError: its head is another one or none, or it knows other tokens or
            fewer positions.
    """
    head = read_head(source)
    if head is None or not inputs.head.fits(head):
        expected, received = f"{inputs.head} for `task`={inputs.task}", head or "none"
        setting = Setting("finetune_teacher")
        raise InputError(setting, expected, f"{source.directory} with {received}")
    expect_reader(source, inputs)
