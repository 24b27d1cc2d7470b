"""Corpus formats: one reader each, in one table.

A new format is a module with a `Reader`, and its entry here.
"""

from collections.abc import Iterator, Mapping

from pipeline.base.tables import load_entry
from pipeline.corpora.documents import CorpusFile, RawDocument
from pipeline.corpora.readers.base import Reader, stem

AUTO = "auto"


class _AutoReader(Reader):
    """Files of several formats: each is read as its name says, and as text if that says nothing."""

    def read(self, file: CorpusFile) -> Iterator[tuple[RawDocument, int]]:
        return _reader_of(file).read(file)

    def text(self, document: RawDocument) -> str:
        return _reader_of(document.file).text(document)


def _reader_of(file: CorpusFile) -> Reader:
    name = stem(file.name)
    named = (reader for reader in READERS.values() if name.endswith(reader.suffixes))
    return next(named, READERS["text"])


# The names that a declaration's `reader` takes.
_READERS = {
    "rows": "rows:RowsReader",
    "text": "text:TextReader",
    "tfds": "tfds:TfdsReader",
}
READERS: Mapping[str, Reader] = {
    AUTO: _AutoReader(),
    **{name: load_entry(__name__, entry)() for name, entry in _READERS.items()},
}
