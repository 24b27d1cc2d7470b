"""Data classes for corpora, their files, and their documents before decoding."""

import dataclasses
from typing import Any, NamedTuple

from data_specs.corpora import CorpusSpec
from pipeline.base.errors import InputError
from pipeline.base.location import Location


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A corpus of a run, with its settings resolved.

    Attributes:
        label: name of the corpus; empty for a single corpus.
        spec: declaration of the corpus.
        reader: name of its reader in `pipeline.corpora.readers.READERS`.
        weight: factor by which the number of masked copies is multiplied.
        tfds_name: name of a TensorFlow dataset; None for files.
        tfds_dir: directory of TensorFlow datasets; None for their default.
        split: split of a dataset; None for the default split.
    """

    label: str = ""
    spec: CorpusSpec = dataclasses.field(default_factory=CorpusSpec)
    reader: str = "auto"
    weight: float = 1.0
    tfds_name: str | None = None
    tfds_dir: str | None = None
    split: str | None = None

    def reading(self) -> dict[str, Any]:
        """Returns the settings that determine how files are divided into documents."""
        values = {"name": self.label, "tfds_name": self.tfds_name, "weight": self.weight}
        if self.split is not None:
            values["split"] = self.split
        return values | self.spec.reading()


@dataclasses.dataclass(frozen=True)
class CorpusFile:
    """A file of a corpus, a member of a tar archive, or a split of a TensorFlow dataset.

    Attributes:
        path: location of a file; archive and name of a member; name of a TensorFlow dataset.
        name: path of a file relative to the input folder; name of a split.
        bytes: size in bytes.
        corpus: the corpus that the file belongs to.
        format: name of the reader that its content requires; empty until it is detected.
    """

    path: Location | str
    name: str
    bytes: int
    corpus: Corpus = dataclasses.field(default_factory=Corpus)
    format: str = ""

    @property
    def key(self) -> str:
        """A name that differs from those of the other corpora's files."""
        return f"{self.corpus.label}/{self.name}" if self.corpus.label else self.name


@dataclasses.dataclass
class Cursor:
    """The position of a reader in a file: the number of documents and lines before it."""

    documents: int = 0
    lines: int = 0


@dataclasses.dataclass(frozen=True)
class FilePart:
    """A part of a large file, which begins and ends between two documents.

    Attributes:
        file: the file, with its detected format.
        begin: offset of the first byte, or number of the first row.
        end: offset after the last byte, or number after the last row.
        bytes_read: number of bytes of the file up to the end of the part.
        documents: number of documents; None if the part must be read to count them.
    """

    file: CorpusFile
    begin: int
    end: int
    bytes_read: int
    documents: int | None = None


class RawDocument(NamedTuple):
    """A document as it is stored in its file.

    Attributes:
        file: the file that contains it.
        ordinal: number of the document within the file, from 0.
        position: start of the document, for messages, for example `line 12` or `row 3`.
        content: encoded text, or an encoded JSON object.
        split_key: key that determines the split. By default the content determines it. All
            documents that were cut from one long document have the same key.
        fault: the error that makes the document invalid; None if the reader found none.
    """

    file: CorpusFile
    ordinal: int
    position: str
    content: bytes
    split_key: bytes | None = None
    fault: InputError | None = None

    @property
    def origin(self) -> str:
        """The file and the position in it, for messages."""
        return f"{self.file.path}, {self.position}"
