"""The interface of corpus readers, and the files that formats share."""

import codecs
import fnmatch
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO

from data_specs.corpora import CorpusSource, CorpusSpec
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.base.text_encoding import not_utf8
from pipeline.corpora import archives, compressions
from pipeline.corpora.documents import Corpus, CorpusFile, Cursor, FilePart, RawDocument

# Any files, read as their content and their names say.
_ANY_CORPUS = Corpus()
_WINDOW_BUFFER = 2**18


class Reader:
    """A corpus format: finds the files of a source and yields their documents, undecoded.

    A subclass has `documents`, and whatever else its format does in another way.

    Attributes:
        suffixes: endings of its files' names, compression left out; empty if no name tells it.
        is_text: whether its files are text, which may have another encoding than UTF-8.
    """

    suffixes: tuple[str, ...] = ()
    is_text: bool = True

    def resolve(self, source: CorpusSource, spec: CorpusSpec) -> CorpusSpec:
        """Returns the declaration of a source with the settings that only the data tells.

        Raises:
            InputError: the source does not have what the declaration names.
        """
        return spec

    def find(self, source: CorpusSource, corpus: Corpus) -> tuple[CorpusFile, ...]:
        """Returns the files that are read, in their order.

        Raises:
            InputError: there are none, or all are empty.
        """
        raise NotImplementedError

    def select(self, files: Sequence[CorpusFile]) -> Sequence[CorpusFile]:
        """Returns files without those that only describe others of this format.

        Raises:
            InputError: a description names what is not there.
        """
        return files

    def recognises(self, start: bytes) -> bool:
        """Returns whether the first bytes of a file's content are of this format alone."""
        return False

    def read(self, file: CorpusFile) -> Iterator[tuple[RawDocument, int]]:
        """Yields a file's documents, and how many of its bytes have been read.

        Raises:
            InputError: the file cannot be read, or has another format.
        """
        raise NotImplementedError

    def documents(
        self, file: CorpusFile, stream: BinaryIO, cursor: Cursor
    ) -> Iterator[RawDocument]:
        """Yields the documents of an open file or of a part of it.

        Args:
            file: the file.
            stream: its content, unpacked; of text, in UTF-8.
            cursor: where the content begins; afterwards, where it ends.

        Raises:
            InputError: the content has another format.
        """
        raise NotImplementedError

    def first_row(self, file: CorpusFile, stream: BinaryIO) -> Mapping[str, object]:
        """Returns the fields of an open file with their values in its first row.

        None of them is needed. A format without fields, or a file without rows, has none.

        Raises:
            InputError: the content has another format.
        """
        return {}

    def parts(self, file: CorpusFile, stream: BinaryIO, part_bytes: int) -> list[FilePart]:
        """Returns parts of about `part_bytes` of an open file; none if only one can read it."""
        return []

    def part_documents(
        self, part: FilePart, stream: BinaryIO, cursor: Cursor
    ) -> Iterator[RawDocument]:
        """Yields the documents of a part of an open file; see `documents`."""
        window = io.BufferedReader(_Window(stream, part.begin, part.end), _WINDOW_BUFFER)
        return self.documents(part.file, window, cursor)

    def text(self, document: RawDocument) -> str:
        """Returns a document's text, before cleaning.

        Raises:
            InputError: the content is invalid.
        """
        if document.fault is not None:
            raise document.fault
        try:
            return document.content.decode("utf-8")
        except UnicodeDecodeError as error:
            if self.is_text:
                raise not_utf8(document.content, error, document.origin) from error
            received = f"byte 0x{document.content[error.start]:02x}"
            raise InputError(document.origin, "UTF-8 text", received) from error


class _Window(io.RawIOBase):
    """The bytes of a file from `begin` to `end`."""

    def __init__(self, stream: BinaryIO, begin: int, end: int) -> None:
        super().__init__()
        self._stream, self._left = stream, end - begin
        stream.seek(begin)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        content = self._stream.read(min(len(buffer), self._left))
        buffer[: len(content)] = content
        self._left -= len(content)
        return len(content)


def line_parts(
    file: CorpusFile,
    stream: BinaryIO,
    part_bytes: int,
    find_border: Callable[[BinaryIO, int], int | None],
) -> list[FilePart]:
    """Returns parts of an open file of lines.

    Args:
        file: the file.
        stream: its content, as it is stored.
        part_bytes: the size of a part, about.
        find_border: called with the stream, which is at the begin of a line, and a limit; returns
            where the next document begins, or None if that is not below the limit.
    """
    parts, begin, wanted = [], 0, part_bytes
    while wanted + part_bytes // 2 < file.bytes:
        limit = wanted + part_bytes
        border = None
        if _skip_line(stream, wanted - 1, limit):
            border = find_border(stream, limit)
        if border is not None and border < file.bytes and not _has_mark(stream, border):
            parts.append(FilePart(file, begin, border, border))
            begin = border
        wanted = max(wanted, border or 0) + part_bytes
    return [*parts, FilePart(file, begin, file.bytes, file.bytes)] if parts else []


def _skip_line(stream: BinaryIO, position: int, limit: int) -> bool:
    """Goes behind the line at a position; returns whether it ends below the limit."""
    stream.seek(position)
    return stream.readline(limit - position).endswith(b"\n")


def _has_mark(stream: BinaryIO, position: int) -> bool:
    """Returns whether what would be the mark of UTF-8 stands there, in the middle of a file."""
    stream.seek(position)
    return stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def stem(name: str) -> str:
    """Returns a file's name without the suffix of its compression."""
    return compressions.split_name(name)[0]


def find_files(pattern: Location, *, corpus: Corpus = _ANY_CORPUS) -> tuple[CorpusFile, ...]:
    """Returns a corpus's files, sorted by name.

    Args:
        pattern: a file, a directory or a glob; hidden files are left out.
        corpus: of a directory, only files that its declaration names are taken.

    Raises:
        InputError: there are none, or all are empty.
    """
    paths, root = _list_paths(pattern)
    files = [
        CorpusFile(path, name, size, corpus)
        for path, size in paths.items()
        if "/." not in "/" + (name := os.path.relpath(str(path), root or "."))
    ]
    if not files:
        raise InputError(pattern, "a file, a directory or a glob of files", "no files")
    if pattern.is_dir():
        files = [file for file in files if is_declared(file)]
        if not files:
            names = f"{', '.join(corpus.spec.files)}; from {corpus.spec.url}"
            expected = f"the files of `corpus_spec`={corpus.spec.name} ({names})"
            raise InputError(pattern, expected, "none of them")
    if not any(file.bytes for file in files):
        raise InputError(pattern, "text", "nothing: every file there is empty")
    return tuple(sorted(files, key=lambda file: file.name))


def _list_paths(pattern: Location) -> tuple[dict[Location, int], str]:
    """Returns the files of a path or glob with their sizes, and the folder of relative names."""
    sizes = pattern.find()
    if pattern.is_dir() or not sizes:
        return sizes, str(pattern)
    return sizes, os.path.commonpath([os.path.dirname(str(path)) for path in sizes])


def is_declared(file: CorpusFile) -> bool:
    """Returns whether a corpus's declaration names a file, or it is an archive of files."""
    name = os.path.basename(stem(file.name))
    patterns = (*file.corpus.spec.files, f"*{archives.SUFFIX}")
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
