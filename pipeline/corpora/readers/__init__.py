"""Corpus formats: one reader each, in one table.

A new format is a module with a `Reader`, and its entry here.
"""

import dataclasses
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from data_specs.corpora import CorpusSource
from pipeline.base import text_encoding
from pipeline.base.errors import InputError
from pipeline.base.tables import load_entry
from pipeline.corpora import archives, content, hub_datasets
from pipeline.corpora.documents import Corpus, CorpusFile, Cursor, FilePart, RawDocument
from pipeline.corpora.readers.base import Reader, find_files, is_declared, stem

AUTO, TEXT = "auto", "text"
# Files beside those of a dataset of the hub that hold no documents.
_DESCRIPTIONS = (
    *("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"),
    *("LICENSE.txt", "requirements.txt"),
)


class FileReader(Reader):
    """Files of several formats: each is read as its content says.

    Where that says nothing, a declared reader reads it, else the one of its name, else text.
    """

    def find(self, source: CorpusSource, corpus: Corpus) -> tuple[CorpusFile, ...]:
        """See `Reader`."""
        location = hub_datasets.locate(source, _is_data)
        return tuple(self.select(find_files(location, corpus=corpus)))

    def select(self, files: Sequence[CorpusFile]) -> Sequence[CorpusFile]:
        """See `Reader`: without the descriptions of any format."""
        for reader in FORMATS.values():
            files = reader.select(files)
        return files

    def read(self, file: CorpusFile) -> Iterator[tuple[RawDocument, int]]:
        """See `Reader`."""
        with content.opened(file) as raw:
            for document in self._documents(file, raw):
                yield document, raw.tell()

    def _documents(
        self, file: CorpusFile, raw: BinaryIO, *, is_member: bool = False
    ) -> Iterator[RawDocument]:
        start, stream = content.unpacked(file, raw)
        if not archives.is_tar(start):
            file = _with_format(file, start)
            reader = FORMATS[file.format]
            yield from reader.documents(file, _in_utf8(file, stream), Cursor())
            return
        if is_member:
            hint = "unpack the outer archive first"
            raise InputError(file.path, "a file in an archive", "another archive", hint)
        for member, member_stream in archives.members(file, stream):
            if is_declared(member):
                yield from self._documents(member, member_stream, is_member=True)

    def look_into(self, file: CorpusFile) -> tuple[CorpusFile, Mapping[str, object]]:
        """Returns a file with its format, and its fields as `Reader.first_row`.

        Of an archive it is the first file there.

        Raises:
            InputError: the file cannot be read, or has another format.
        """
        with content.opened(file) as raw:
            start, stream = content.unpacked(file, raw)
            if archives.is_tar(start):
                for member, member_stream in archives.members(file, stream):
                    start, stream = content.unpacked(member, member_stream)
                    file = member
                    break
            file = _with_format(file, start)
            return file, FORMATS[file.format].first_row(file, _in_utf8(file, stream))

    def split(self, file: CorpusFile, part_bytes: int) -> list[FilePart]:
        """Returns parts of a file of about `part_bytes`; none if only one can read it.

        Raises:
            InputError: the file cannot be read, or has another format.
        """
        with content.opened(file) as raw:
            start, stream = content.unpacked(file, raw)
            if stream is not raw or archives.is_tar(start):
                return []
            file = _with_format(file, start)
            if _in_utf8(file, raw) is not raw:
                return []
            return FORMATS[file.format].parts(file, raw, part_bytes)

    def read_part(self, part: FilePart, cursor: Cursor) -> Iterator[RawDocument]:
        """Yields the documents of a part, which begins at a cursor; moves that to its end.

        Raises:
            InputError: the file cannot be read, or has another format.
        """
        with content.opened(part.file) as raw:
            yield from FORMATS[part.file.format].part_documents(part, raw, cursor)

    def text(self, document: RawDocument) -> str:
        """See `Reader`."""
        return FORMATS[document.file.format].text(document)


def _is_data(name: str) -> bool:
    """Returns whether a file of a dataset has the name of a format, and describes no other."""
    suffixes = (suffix for reader in FORMATS.values() for suffix in reader.suffixes)
    is_named = stem(name).endswith((*suffixes, ".txt", archives.SUFFIX))
    return is_named and posixpath.basename(name) not in _DESCRIPTIONS


def _with_format(file: CorpusFile, start: bytes) -> CorpusFile:
    """Returns a file with the name of its format."""
    recognised = (name for name, reader in FORMATS.items() if reader.recognises(start))
    found = next(recognised, None)
    if found is None and file.corpus.reader != AUTO:
        found = file.corpus.reader
    if found is None:
        name = stem(file.name)
        named = (key for key, reader in FORMATS.items() if name.endswith(reader.suffixes))
        found = next(named, TEXT)
    return dataclasses.replace(file, format=found)


def _in_utf8(file: CorpusFile, stream: BinaryIO) -> BinaryIO:
    """Returns the content of a file whose format is known; text is converted if it has to be."""
    is_text = FORMATS[file.format].is_text
    return text_encoding.utf8_stream(stream, file.path) if is_text else stream


# The formats of files, which a declaration's `reader` takes, too.
FORMATS: Mapping[str, Reader] = {
    name: load_entry(__name__, entry)()
    for name, entry in {
        "arrow": "arrow:ArrowReader",
        "csv": "delimited:CsvReader",
        "parquet": "parquet:ParquetReader",
        "rows": "rows:RowsReader",
        TEXT: "text:TextReader",
        "tsv": "delimited:TsvReader",
    }.items()
}
FILES = FileReader()
READERS: Mapping[str, Reader] = {
    **dict.fromkeys((AUTO, *FORMATS), FILES),
    "tfds": load_entry(__name__, "tfds:TfdsReader")(),
}
