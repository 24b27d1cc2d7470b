"""The interface of corpus readers, and functions that several readers use."""

import codecs
import fnmatch
import glob
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO

from data_specs.corpora import CorpusSource, CorpusSpec
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.base.text_encoding import not_utf8_error
from pipeline.corpora import archives, compressions
from pipeline.corpora.documents import Corpus, CorpusFile, Cursor, FilePart, RawDocument

# A corpus without a declaration, whose files may have any name and format.
_ANY_CORPUS = Corpus()
_WINDOW_BUFFER = 2**18


class Reader:
    """Reader of a corpus format: finds the files of a source and yields raw documents.

    A subclass defines `documents`, and overrides other methods where its format differs.

    Attributes:
        suffixes: suffixes of file names, without those of compressions; empty if no suffix
            identifies the format.
        is_text: whether the files are text, which may have another encoding than UTF-8.
    """

    suffixes: tuple[str, ...] = ()
    is_text: bool = True

    def resolve(self, source: CorpusSource, spec: CorpusSpec) -> CorpusSpec:
        """Returns the declaration of a source, completed by settings that depend on the data.

        Raises:
            InputError: the source lacks a split or a field that the settings name.
        """
        return spec

    def find(self, source: CorpusSource, corpus: Corpus) -> tuple[CorpusFile, ...]:
        """Returns the files to read, in order.

        Raises:
            InputError: there are no files, or all are empty.
        """
        raise NotImplementedError

    def select(self, files: Sequence[CorpusFile]) -> Sequence[CorpusFile]:
        """Returns the files without those that only describe other files of this format.

        Raises:
            InputError: a description names a missing file.
        """
        return files

    def recognizes(self, start: bytes) -> bool:
        """Returns whether the first bytes of a file's content identify this format."""
        return False

    def read(self, file: CorpusFile) -> Iterator[tuple[RawDocument, int]]:
        """Yields a file's documents, each with the number of bytes read so far.

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
            stream: the decompressed content; that of a text format is in UTF-8.
            cursor: position of the content in the file. It is advanced to the end.

        Raises:
            InputError: the content has another format.
        """
        raise NotImplementedError

    def first_row(self, file: CorpusFile, stream: BinaryIO) -> Mapping[str, object]:
        """Returns the values of the first row of an open file, keyed by field.

        The file may lack text fields. A format without fields gives an empty mapping.

        Raises:
            InputError: the content has another format.
        """
        return {}

    def parts(self, file: CorpusFile, stream: BinaryIO, part_bytes: int) -> list[FilePart]:
        """Returns parts of about `part_bytes` of an open file; none if it cannot be split."""
        return []

    def part_documents(
        self, part: FilePart, stream: BinaryIO, cursor: Cursor
    ) -> Iterator[RawDocument]:
        """Yields the documents of a part of an open file; see `documents`."""
        window = io.BufferedReader(_Window(stream, part.begin, part.end), _WINDOW_BUFFER)
        return self.documents(part.file, window, cursor)

    def text(self, document: RawDocument) -> str:
        """Returns a document's text before cleaning.

        Raises:
            InputError: the content is invalid.
        """
        if document.fault is not None:
            raise document.fault
        try:
            return document.content.decode("utf-8")
        except UnicodeDecodeError as error:
            if self.is_text:
                raise not_utf8_error(document.content, error, document.origin) from error
            received = f"byte 0x{document.content[error.start]:02x}"
            raise InputError(document.origin, "UTF-8 text", received) from error


class _Window(io.RawIOBase):
    """The bytes of a file from `begin` to `end`."""

    def __init__(self, stream: BinaryIO, begin: int, end: int) -> None:
        super().__init__()
        self._stream, self._bytes_left = stream, end - begin
        stream.seek(begin)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        content = self._stream.read(min(len(buffer), self._bytes_left))
        buffer[: len(content)] = content
        self._bytes_left -= len(content)
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
        stream: its content, which is not compressed.
        part_bytes: approximate size of a part in bytes.
        find_border: a function of the stream, positioned at the beginning of a line, and of a
            limit. It returns the offset at which the next document begins, or None if there is no
            such offset below the limit.
    """
    file_parts, begin, target = [], 0, part_bytes
    while target + part_bytes // 2 < file.bytes:
        limit = target + part_bytes
        border = None
        if _skip_line(stream, target - 1, limit):
            border = find_border(stream, limit)
        if border is not None and border < file.bytes and not _has_mark(stream, border):
            file_parts.append(FilePart(file, begin, border, border))
            begin = border
        target = max(target, border or 0) + part_bytes
    if not file_parts:
        return []
    return [*file_parts, FilePart(file, begin, file.bytes, file.bytes)]


def _skip_line(stream: BinaryIO, position: int, limit: int) -> bool:
    """Moves a stream past the line at a position. Returns whether the line ends below a limit."""
    stream.seek(position)
    return stream.readline(limit - position).endswith(b"\n")


def _has_mark(stream: BinaryIO, position: int) -> bool:
    """Returns whether the bytes at a position are a byte order mark of UTF-8.

    A part must not begin there. Its reader would remove the bytes, which belong to the text.
    """
    stream.seek(position)
    return stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def stem(name: str) -> str:
    """Returns a file's name without the suffix of its compression."""
    return compressions.split_name(name)[0]


def find_files(pattern: Location, *, corpus: Corpus = _ANY_CORPUS) -> tuple[CorpusFile, ...]:
    """Returns a corpus's files, sorted by name.

    Args:
        pattern: a file, a directory or a glob. Hidden files are left out.
        corpus: its declaration selects the files of a directory.

    Raises:
        InputError: there are no files, or all are empty.
    """
    paths, root = _list_paths(pattern)
    files = [
        CorpusFile(path, name, size, corpus)
        for path, size in paths.items()
        if "/." not in "/" + (name := os.path.relpath(str(path), root or "."))
    ]
    if not files:
        received = "an empty directory" if pattern.is_dir() else "no such file or directory"
        if glob.has_magic(str(pattern)):
            received = "no files"
        raise InputError(pattern, "a file, a directory or a glob of files", received)
    if pattern.is_dir():
        files = [file for file in files if is_declared(file)]
        if not files:
            names = f"{', '.join(corpus.spec.files)}; from {corpus.spec.url}"
            expected = f"the files of `corpus_spec`={corpus.spec.name} ({names})"
            raise InputError(pattern, expected, "none of them")
    if not any(file.bytes for file in files):
        raise InputError(pattern, "text", "only empty files")
    return tuple(sorted(files, key=lambda file: file.name))


def _list_paths(pattern: Location) -> tuple[dict[Location, int], str]:
    """Returns the sizes of a path's or glob's files, and the folder of their relative names."""
    sizes = pattern.find()
    if pattern.is_dir() or not sizes:
        return sizes, str(pattern)
    return sizes, os.path.commonpath([os.path.dirname(str(path)) for path in sizes])


def is_declared(file: CorpusFile) -> bool:
    """Returns whether a file is an archive or matches a pattern of its corpus's declaration."""
    name = os.path.basename(stem(file.name))
    patterns = (*file.corpus.spec.files, f"*{archives.SUFFIX}")
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
