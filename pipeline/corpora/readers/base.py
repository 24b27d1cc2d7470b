"""The interface of corpus readers, and the files and compressions that formats share."""

import fnmatch
import gzip
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

from data_specs.corpora import CorpusSource, CorpusSpec
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.base.text_encoding import not_utf8, utf8_stream
from pipeline.corpora.documents import Corpus, CorpusFile, RawDocument

# The compressions of files, by the suffix that they add to a name.
_COMPRESSIONS: Mapping[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw)
}
# Any files, read as their names say.
_ANY_CORPUS = Corpus()


class Reader:
    """A corpus format: finds the files of a source and yields their documents, undecoded.

    A subclass has `documents`, and whatever else its format does in another way.

    Attributes:
        suffixes: endings of its files' names, compression left out; empty if no name tells it.
    """

    suffixes: tuple[str, ...] = ()

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
        return find_files(Location.parse(source.input_dir, "input_dir"), corpus=corpus)

    def read(self, file: CorpusFile) -> Iterator[tuple[RawDocument, int]]:
        """Yields a file's documents, and how many of its bytes have been read.

        Raises:
            InputError: the file cannot be read, or has another format.
        """
        suffix = _compression(file.name)
        try:
            with file.path.open("rb") as raw:
                stream = raw if suffix is None else _COMPRESSIONS[suffix](raw)
                for document in self.documents(file, utf8_stream(stream, file.path)):
                    yield document, raw.tell()
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(file.path, received=f"not a whole gzip file ({error})") from error
        except OSError as error:
            raise InputError(file.path, received=f"cannot be read: {error.strerror}") from error

    def documents(self, file: CorpusFile, stream: BinaryIO) -> Iterator[RawDocument]:
        """Yields the documents of an open file, whose bytes `stream` has decompressed.

        Raises:
            InputError: the content has another format.
        """
        raise NotImplementedError

    def text(self, document: RawDocument) -> str:
        """Returns a document's text, before cleaning.

        Raises:
            InputError: the content is invalid.
        """
        try:
            return document.content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(document.content, error, document.origin) from error


def stem(name: str) -> str:
    """Returns a file's name without the suffix of its compression."""
    suffix = _compression(name)
    return name if suffix is None else name.removesuffix(suffix)


def _compression(name: str) -> str | None:
    return next((suffix for suffix in _COMPRESSIONS if name.endswith(suffix)), None)


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
        files = [file for file in files if _is_declared(file)]
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


def _is_declared(file: CorpusFile) -> bool:
    name = os.path.basename(stem(file.name))
    return any(fnmatch.fnmatch(name, pattern) for pattern in file.corpus.spec.files)
