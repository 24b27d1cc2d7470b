"""Table of corpus formats, with one reader for each.

To add a format, write a module with a subclass of `Reader`, and add its entry to `FORMATS`.
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
# Files of a dataset of the hub that have the suffix of a format, but contain no documents.
_DESCRIPTIONS = (
    *("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"),
    *("LICENSE.txt", "requirements.txt"),
)


class FileReader(Reader):
    """Reader of files of any format.

    The format of a file is recognized by its content. If that is not possible, it is the declared
    reader, otherwise the format of the file's suffix, otherwise text.
    """

    def find(self, source: CorpusSource, corpus: Corpus) -> tuple[CorpusFile, ...]:
        """See `Reader`."""
        location = hub_datasets.locate(source, _is_data)
        return tuple(self.select(find_files(location, corpus=corpus)))

    def select(self, files: Sequence[CorpusFile]) -> Sequence[CorpusFile]:
        """See `Reader`: leaves out the descriptions of all formats."""
        for reader in FORMATS.values():
            files = reader.select(files)
        return files

    def read(self, file: CorpusFile) -> Iterator[tuple[RawDocument, int]]:
        """See `Reader`."""
        with content.open_file(file) as raw:
            for document in self._documents(file, raw):
                yield document, raw.tell()

    def _documents(
        self, file: CorpusFile, raw: BinaryIO, *, is_member: bool = False
    ) -> Iterator[RawDocument]:
        start, stream = content.decompress(file, raw)
        if not archives.is_tar(start):
            file = _with_format(file, start)
            reader = FORMATS[file.format]
            yield from reader.documents(file, _in_utf8(file, stream), Cursor())
            return
        if is_member:
            hint = "unpack the outer archive first"
            raise InputError(file.path, "a file in the archive", "a nested archive", hint)
        for member, member_stream in archives.members(file, stream):
            if is_declared(member):
                yield from self._documents(member, member_stream, is_member=True)

    def inspect_file(self, file: CorpusFile) -> tuple[CorpusFile, Mapping[str, object]]:
        """Returns a file with its detected format, and the fields of its first row.

        For an archive, it is the first file in it. For the fields, see `Reader.first_row`.

        Raises:
            InputError: the file cannot be read, or has another format.
        """
        with content.open_file(file) as raw:
            start, stream = content.decompress(file, raw)
            if archives.is_tar(start):
                for member, member_stream in archives.members(file, stream):
                    start, stream = content.decompress(member, member_stream)
                    file = member
                    break
            file = _with_format(file, start)
            return file, FORMATS[file.format].first_row(file, _in_utf8(file, stream))

    def split(self, file: CorpusFile, part_bytes: int) -> list[FilePart]:
        """Returns parts of a file of about `part_bytes`; none if it cannot be split.

        Raises:
            InputError: the file cannot be read, or has another format.
        """
        with content.open_file(file) as raw:
            start, stream = content.decompress(file, raw)
            if stream is not raw or archives.is_tar(start):
                return []
            file = _with_format(file, start)
            if _in_utf8(file, raw) is not raw:
                return []
            return FORMATS[file.format].parts(file, raw, part_bytes)

    def read_part(self, part: FilePart, cursor: Cursor) -> Iterator[RawDocument]:
        """Yields the documents of a part.

        Args:
            part: the part.
            cursor: position of the part in its file. It is advanced to the end of the part.

        Raises:
            InputError: the file cannot be read, or has another format.
        """
        with content.open_file(part.file) as raw:
            yield from FORMATS[part.file.format].part_documents(part, raw, cursor)

    def text(self, document: RawDocument) -> str:
        """See `Reader`."""
        return FORMATS[document.file.format].text(document)


def _is_data(name: str) -> bool:
    """Returns whether a file of a dataset has the suffix of a format and contains documents."""
    suffixes = (suffix for reader in FORMATS.values() for suffix in reader.suffixes)
    has_suffix = stem(name).endswith((*suffixes, ".txt", archives.SUFFIX))
    return has_suffix and posixpath.basename(name) not in _DESCRIPTIONS


def _with_format(file: CorpusFile, start: bytes) -> CorpusFile:
    """Returns a file with its detected format.

    Args:
        file: the file.
        start: the first bytes of its decompressed content.
    """
    recognized = (name for name, reader in FORMATS.items() if reader.recognizes(start))
    file_format = next(recognized, None)
    if file_format is None and file.corpus.reader != AUTO:
        file_format = file.corpus.reader
    if file_format is None:
        name = stem(file.name)
        by_suffix = (key for key, reader in FORMATS.items() if name.endswith(reader.suffixes))
        file_format = next(by_suffix, TEXT)
    return dataclasses.replace(file, format=file_format)


def _in_utf8(file: CorpusFile, stream: BinaryIO) -> BinaryIO:
    """Returns the content of a file, converted to UTF-8 if its format is text."""
    is_text = FORMATS[file.format].is_text
    return text_encoding.utf8_stream(stream, file.path) if is_text else stream


# Readers of the file formats. Their names are also values of a declaration's `reader`.
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
# Readers that a declaration may name.
FILE_READERS = (AUTO, *FORMATS)
READERS: Mapping[str, Reader] = {
    **dict.fromkeys(FILE_READERS, FILES),
    "tfds": load_entry(__name__, "tfds:TfdsReader")(),
}
