"""Resolves and opens the corpora of a run, and divides them into blocks of raw documents.

The main process divides the files, which is cheap. Workers decode, clean and tokenize.
"""

import collections
import contextlib
import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import msgspec

from data_specs import corpora as corpus_specs
from data_specs.corpora import CorpusSource, CorpusSpec
from pipeline.base import seeding
from pipeline.base.errors import InputError, Setting
from pipeline.base.json_text import format_value
from pipeline.base.location import Location
from pipeline.corpora import cleaning
from pipeline.corpora.documents import Corpus, CorpusFile, Cursor, FilePart, RawDocument
from pipeline.corpora.readers import FILE_READERS, FILES, READERS, TEXT
from pipeline.corpora.readers.tfds import TFDS
from pipeline.tokenizers import segmenters

_MIN_BLOCK_BYTES = 2**19
_MAX_BLOCK_BYTES = 2**23
# A limit for short documents, as each document takes memory in addition to its bytes.
_MAX_BLOCK_DOCUMENTS = 2**16


@dataclasses.dataclass(frozen=True)
class DocumentBlock:
    """Consecutive documents that one job masks.

    Attributes:
        index: number of the block within the corpus.
        documents: the documents; empty until `loaded` reads `part`.
        bytes_read: number of bytes of the corpus that were read from disk so far.
        part: the part of a file that a worker reads; None if the documents are already read.
        start: position of the part in its file.
    """

    index: int
    documents: tuple[RawDocument, ...]
    bytes_read: int
    part: FilePart | None = None
    start: Cursor = dataclasses.field(default_factory=Cursor)

    def loaded(self) -> "DocumentBlock":
        """Returns the block with its documents.

        Raises:
            InputError: the part cannot be read.
        """
        if self.part is None:
            return self
        documents = tuple(FILES.read_part(self.part, dataclasses.replace(self.start)))
        return DocumentBlock(self.index, documents, self.bytes_read)

    def fingerprint(self) -> str:
        """Returns a digest of everything that the block's examples depend on."""
        files = "\n".join(document.file.key for document in self.documents)
        numbers = [(document.ordinal, len(document.content)) for document in self.documents]
        contents = b"".join(document.content for document in self.documents)
        split_keys = b"".join(document.split_key or bytes(16) for document in self.documents)
        return seeding.digest(files.encode(), repr(numbers).encode(), contents, split_keys).hex()


def resolve(sources: Sequence[CorpusSource]) -> tuple[Corpus, ...]:
    """Returns the corpora of a run with all their settings. Files are not opened.

    Raises:
        InputError: an unknown declaration or dataset, or two corpora with the same name.
    """
    for label, count in Counter(source.label for source in sources).items():
        if count > 1:
            received = f"{label or 'none'!r} {count} times"
            hint = "set `name` for each corpus in the file"
            raise InputError(Setting("corpora"), "corpora of different names", received, hint)
    return tuple(_resolve(source) for source in sources)


def _resolve(source: CorpusSource) -> Corpus:
    spec = CorpusSpec()
    if source.corpus_spec is not None:
        name, location = source.corpus_spec, Location.parse(source.corpus_spec, "corpus_spec")
        try:
            spec = corpus_specs.load_spec(name if location.is_local else str(location.mirror()))
        except ValueError as error:
            raise InputError(Setting("corpus_spec"), received=error) from error
    for name in ("text_fields", "segmenter"):
        if (value := getattr(source, name)) is not None:
            spec = msgspec.structs.replace(spec, **{name: value})
    if source.documents is not None:
        spec = spec.with_documents(source.documents)
    is_dataset = source.tfds_name is not None
    reader = TFDS if is_dataset else spec.reader
    _expect_known("segmenter", [spec.segmenter], segmenters.SEGMENTERS, source)
    _expect_known("cleaning step", spec.cleaning, cleaning.STEPS, source)
    _expect_known("reader", [spec.reader], FILE_READERS, source)
    return Corpus(
        label=source.label,
        spec=READERS[reader].resolve(source, spec),
        reader=reader,
        weight=source.weight,
        tfds_name=source.tfds_name,
        tfds_dir=source.input_dir if is_dataset else None,
        split=source.tfds_split or source.hf_split,
    )


def _expect_known(
    kind: str, names: Sequence[str], known: Collection[str], source: CorpusSource
) -> None:
    """Checks that each name in a declaration is known."""
    subject = Setting("corpus_spec") if source.corpus_spec else f"corpus {source.label}"
    for name in names:
        if name not in known:
            raise InputError(subject, f"a known {kind} ({', '.join(known)})", format_value(name))


def expect_outside(output_dir: Location, sources: Sequence[CorpusSource]) -> None:
    """Checks that the output directory is not inside an input folder, whose files are all read."""
    for source in sources:
        if source.files is not None and output_dir.is_inside(Location.parse(source.files)):
            expected = f"a directory outside `input_dir`={source.files}, which is read completely"
            raise InputError(Setting("output_dir"), expected, output_dir)


def open_corpora(
    sources: Sequence[CorpusSource], corpora: Sequence[Corpus]
) -> tuple[CorpusFile, ...]:
    """Returns the files of all corpora.

    Args:
        sources: the corpora as the user declared them.
        corpora: the same corpora, as `resolve` returned them.

    Raises:
        InputError: a corpus has no files, or all of them are empty.
    """
    return tuple(
        file
        for source, corpus in zip(sources, corpora, strict=True)
        for file in READERS[corpus.reader].find(source, corpus)
    )


def document_text(document: RawDocument) -> str:
    """Returns a document's text after cleaning.

    Raises:
        InputError: the document cannot be decoded, or a field is missing.
    """
    corpus = document.file.corpus
    text = READERS[corpus.reader].text(document)
    return cleaning.clean(text, corpus.spec.cleaning).strip()


def sample_texts(files: Sequence[CorpusFile], num_files: int, num_documents: int) -> Iterator[str]:
    """Yields the texts of the first documents of evenly spread files. Invalid ones are left out.

    Args:
        files: the files.
        num_files: maximum number of files to read.
        num_documents: maximum number of documents per file.

    Raises:
        InputError: a file cannot be read, or has another format than its name says.
    """
    for file in files[:: -(-len(files) // num_files)]:
        documents = READERS[file.corpus.reader].read(file)
        for document, _ in itertools.islice(documents, num_documents):
            with contextlib.suppress(InputError):
                yield document_text(document)


def read_documents(files: Sequence[CorpusFile]) -> Iterator[RawDocument]:
    """Yields the documents of files; reads only as far as they are taken.

    Raises:
        InputError: a file cannot be read, or has another format than its name says.
    """
    for file in files:
        for document, _ in READERS[file.corpus.reader].read(file):
            yield document


def ends_at_blank_lines(files: Sequence[CorpusFile]) -> bool:
    """Returns whether the first document is plain text that a blank line ends.

    Raises:
        InputError: a file cannot be read, or has another format than its name says.
    """
    file = next(read_documents(files)).file
    return file.format == TEXT and file.corpus.spec.documents == "blank_lines"


def read_blocks(
    files: Sequence[CorpusFile], run: Callable[..., Iterator[Any]] | None = None
) -> Iterator[DocumentBlock]:
    """Yields the corpus in blocks of about 512 KiB to 8 MiB, or of 65,536 documents.

    A large file is split into parts if its format allows it, and each part is a block. The
    blocks do not depend on which process reads the parts.

    Args:
        files: the files.
        run: maps a function over jobs in workers that can read the files, and returns the
            results in order. Blocks of parts are then yielded before they are loaded. None to
            read all documents in this process.

    Raises:
        InputError: a file cannot be read, or has another format than its name says.
    """
    total = sum(file.bytes for file in files)
    block_bytes = min(_MAX_BLOCK_BYTES, max(_MIN_BLOCK_BYTES, total // 256))
    if total > block_bytes:
        # Blocks of equal size keep all workers busy until the end.
        block_bytes = math.ceil(total / math.ceil(total / block_bytes))
    index = size = bytes_done = 0
    documents: list[RawDocument] = []
    for file in files:
        if file_parts := _split_file(file, block_bytes):
            if documents:
                yield DocumentBlock(index, tuple(documents), bytes_done)
                documents, size, index = [], 0, index + 1
            for block in _part_blocks(file_parts, index, bytes_done, run):
                yield block
                index += 1
            bytes_done += file.bytes
            continue
        for document, bytes_read in READERS[file.corpus.reader].read(file):
            documents.append(document)
            size += len(document.content)
            if size >= block_bytes or len(documents) >= _MAX_BLOCK_DOCUMENTS:
                yield DocumentBlock(index, tuple(documents), bytes_done + bytes_read)
                documents, size, index = [], 0, index + 1
        bytes_done += file.bytes
    yield DocumentBlock(index, tuple(documents), bytes_done)


def _split_file(file: CorpusFile, block_bytes: int) -> list[FilePart]:
    """Returns the parts of a large file; none if it is small or cannot be split."""
    if READERS[file.corpus.reader] is not FILES or file.bytes < 2 * block_bytes:
        return []
    return FILES.split(file, block_bytes)


def _part_blocks(
    file_parts: Sequence[FilePart],
    index: int,
    bytes_done: int,
    run: Callable[..., Iterator[Any]] | None,
) -> Iterator[DocumentBlock]:
    """Yields the parts of a file as blocks.

    The position of a part, in documents and lines, depends on all parts before it. Workers
    therefore count the documents and lines of each part first.
    """
    cursor = Cursor()
    if run is None:
        for number, part in enumerate(file_parts, index):
            documents = tuple(FILES.read_part(part, cursor))
            yield DocumentBlock(number, documents, bytes_done + part.bytes_read)
        return
    counts = run(_count, file_parts)
    for number, (part, count) in enumerate(zip(file_parts, counts, strict=True), index):
        yield DocumentBlock(number, (), bytes_done + part.bytes_read, part, cursor)
        cursor = Cursor(cursor.documents + count.documents, cursor.lines + count.lines)


def _count(part: FilePart) -> Cursor:
    """Returns the number of documents and lines of a part."""
    if part.documents is not None:
        return Cursor(part.documents)
    cursor = Cursor()
    collections.deque(FILES.read_part(part, cursor), maxlen=0)
    return cursor
