"""Documents: what a corpus is made of, before they are tokens."""

import dataclasses
import json

from data_specs.corpora import CorpusSpec
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.corpora import cleaning


@dataclasses.dataclass(frozen=True)
class Corpus:
    """One corpus of a run, its settings resolved.

    Attributes:
        label: what it is called; empty for the only one.
        spec: how it is read.
        weight: how much it counts.
        tfds_name: the TensorFlow dataset that it is, if it is one.
        tfds_dir: where such datasets are kept; None for their usual place.
    """

    label: str = ""
    spec: CorpusSpec = dataclasses.field(default_factory=CorpusSpec)
    weight: float = 1.0
    tfds_name: str | None = None
    tfds_dir: str | None = None


@dataclasses.dataclass(frozen=True)
class CorpusFile:
    """A file of a corpus, or a split of a TensorFlow dataset.

    Attributes:
        path: where it is.
        name: its path below the folder that was given; a split's name.
        bytes: its size.
        corpus: the corpus that it is a file of.
    """

    path: Location
    name: str
    bytes: int
    corpus: Corpus = dataclasses.field(default_factory=Corpus)

    @property
    def holds_rows(self) -> bool:
        """Whether it is JSON; other files are text."""
        if self.corpus.tfds_name is not None:
            return True
        if self.corpus.spec.reader == "auto":
            return self.name.removesuffix(".gz").endswith((".json", ".jsonl"))
        return self.corpus.spec.reader == "rows"

    @property
    def key(self) -> str:
        """What it is called in keys: files of two corpora may have the same name."""
        return f"{self.corpus.label}/{self.name}" if self.corpus.label else self.name


@dataclasses.dataclass(frozen=True)
class RawDocument:
    """A document as it stands in its file.

    Attributes:
        file: where it stands.
        ordinal: its number within the file, from 0.
        place: where it begins, for messages: `line 12` or `row 3`.
        content: text, or one JSON object; not yet decoded.
        split_key: what decides its split where that is not its content: for
            the pieces of one long document.
    """

    file: CorpusFile
    ordinal: int
    place: str
    content: bytes
    split_key: bytes | None = None


def document_text(document: RawDocument) -> str:
    """Returns a document's text: a row's fields joined by a newline, then cleaned.

    Raises:
        InputError: it is not UTF-8, not a JSON object, or lacks a field.
    """
    where = f"{document.file.path}, {document.place}"
    try:
        text = document.content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            where,
            "UTF-8 text",
            f"byte 0x{document.content[error.start]:02x} (convert the file first, for "
            "example with iconv -f gb18030 -t utf-8)",
        ) from error
    spec = document.file.corpus.spec
    if document.file.holds_rows:
        text = _row_text(_parse_row(text, where), where, spec)
    return cleaning.clean(text, spec.cleaning).strip()


def _parse_row(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            where, received=f"not JSON ({error.msg} at character {error.pos})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(where, received=f"not JSON ({error})") from error


def _row_text(row: object, where: str, spec: CorpusSpec) -> str:
    text_fields = spec.text_fields
    if not isinstance(row, dict):
        raise InputError(where, "a JSON object", type(row).__name__)
    source = f"--corpus_spec={spec.name}" if spec.name else "--text_fields"
    values = []
    for name in text_fields:
        if name not in row:
            there = ",".join(" ".join(key.split())[:40] for key in list(row)[:8])
            raise InputError(
                where, f"the fields {','.join(text_fields)} ({source})", there or "none"
            )
        value = row[name]
        if value is not None and not isinstance(value, str):
            raise InputError(where, f"text in the field {name}", type(value).__name__)
        values.append(value or "")
    text = "\n".join(value for value in values if value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # An escape such as \\ud800 is valid JSON and no character.
        raise InputError(where, "text", "half a surrogate pair") from error
    return text
