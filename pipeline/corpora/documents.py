"""A corpus, its files, and its documents before they are decoded."""

import dataclasses
from typing import Any

from data_specs.corpora import CorpusSpec
from pipeline.base.errors import InputError
from pipeline.base.location import Location


@dataclasses.dataclass(frozen=True)
class Corpus:
    """One corpus of a run, its settings resolved.

    Attributes:
        label: its name; empty for the only one.
        spec: its declaration.
        reader: the name of its reader in `pipeline.corpora.readers.READERS`.
        weight: the factor of its number of masked copies.
        tfds_name: the name of a TensorFlow dataset; None for files.
        tfds_dir: the directory of TensorFlow datasets; None for their default.
        split: the split of a dataset; None for the usual one.
    """

    label: str = ""
    spec: CorpusSpec = dataclasses.field(default_factory=CorpusSpec)
    reader: str = "auto"
    weight: float = 1.0
    tfds_name: str | None = None
    tfds_dir: str | None = None
    split: str | None = None

    def reading(self) -> dict[str, Any]:
        """Returns the settings that decide the documents."""
        own = {"name": self.label, "tfds_name": self.tfds_name, "weight": self.weight}
        if self.split is not None:
            own["split"] = self.split
        return own | self.spec.reading()


@dataclasses.dataclass(frozen=True)
class CorpusFile:
    """A file of a corpus, a member of a tar archive, or a split of a TensorFlow dataset.

    Attributes:
        path: its location; the archive and the member; the name of a TensorFlow dataset.
        name: its path below the folder that was given; a split's name.
        bytes: its size.
        corpus: the corpus that it is a file of.
        format: the name of its reader, once its content has been looked at.
    """

    path: Location | str
    name: str
    bytes: int
    corpus: Corpus = dataclasses.field(default_factory=Corpus)
    format: str = ""

    @property
    def key(self) -> str:
        """Its name in keys: files of two corpora may have the same name."""
        return f"{self.corpus.label}/{self.name}" if self.corpus.label else self.name


@dataclasses.dataclass
class Cursor:
    """The position of a reader in a file: how many documents and lines are behind it."""

    documents: int = 0
    lines: int = 0


@dataclasses.dataclass(frozen=True)
class FilePart:
    """A part of a large file, which begins and ends between two documents.

    Attributes:
        file: the file, whose format is known.
        begin: the first byte, or the first row.
        end: the byte or the row behind the last one.
        bytes_read: how many bytes of the file have been read at the end of the part.
        documents: how many documents it has; None where only a reader of it knows.
    """

    file: CorpusFile
    begin: int
    end: int
    bytes_read: int
    documents: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class RawDocument:
    """A document as its file holds it.

    Attributes:
        file: its file.
        ordinal: its number within the file, from 0.
        place: its begin, for messages: `line 12` or `row 3`.
        content: text, or one JSON object; not yet decoded.
        split_key: decides its split instead of its content, for the pieces of one long document.
        fault: why the document cannot be read, if the reader has found that already.
    """

    file: CorpusFile
    ordinal: int
    place: str
    content: bytes
    split_key: bytes | None = None
    fault: InputError | None = None

    @property
    def origin(self) -> str:
        """The file and the place in it, for messages."""
        return f"{self.file.path}, {self.place}"
