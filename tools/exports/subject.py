"""What is exported, and what a format needs to know besides the program."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

from pipeline.base.errors import InputError
from pipeline.tokenizers.tokens import Tokenizer
from tools.exports.batches import Run
from tools.exports.program import Program


class ExportError(InputError):
    """A format cannot hold a model, or computes something else; other formats may do."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """An export as whoever gets it would run it.

    Attributes:
        run: computes a batch.
        reader: the library that reads it, and its version.
        from_text: computes a text; None where the export takes ids only.
    """

    run: Run
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
    """

    program: Program
    tokenizer: Tokenizer | None
    max_seq_length: int
    write_hf: Callable[[pathlib.Path], None]
    open_hf: Callable[[pathlib.Path], Opened]
    num_texts: int = 1
