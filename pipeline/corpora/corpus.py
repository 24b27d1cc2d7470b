"""The corpora of a run: resolved, opened, and cut into blocks of undecoded documents.

The main process cuts, which is cheap; workers decode, clean and tokenise.
"""

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from data_specs import corpora as corpus_specs
from data_specs.corpora import CorpusSource, CorpusSpec
from pipeline.base import seeding
from pipeline.base.errors import InputError, Setting
from pipeline.base.json_text import shown
from pipeline.base.location import Location
from pipeline.corpora import cleaning
from pipeline.corpora.documents import Corpus, CorpusFile, RawDocument
from pipeline.corpora.readers import READERS
from pipeline.corpora.readers.tfds import TFDS
from pipeline.tokenizers import segmenters

_MIN_BLOCK_BYTES = 2**19
_MAX_BLOCK_BYTES = 2**23
# Each document takes memory besides its bytes.
_MAX_BLOCK_DOCUMENTS = 2**16


@dataclasses.dataclass(frozen=True)
class DocumentBlock:
    """Consecutive documents: the unit of work of the first half of prepare.

    Attributes:
        index: its number within the corpus.
        documents: its documents.
        bytes_read: the bytes of the corpus that have been read from disk.
    """

    index: int
    documents: tuple[RawDocument, ...]
    bytes_read: int

    def fingerprint(self) -> str:
        """Returns a digest of everything that the block's examples depend on."""
        keys = (
            (document.file.key, document.ordinal, document.content, document.split_key or b"")
            for document in self.documents
        )
        return seeding.digest(*itertools.chain.from_iterable(keys)).hex()


def resolve(sources: Sequence[CorpusSource]) -> tuple[Corpus, ...]:
    """Returns the corpora of a run with all their settings; files are not looked at.

    Raises:
        InputError: an unknown declaration or dataset, or two corpora of one name.
    """
    for label, count in Counter(source.label for source in sources).items():
        if count > 1:
            received = f"{label or 'none'!r} {count} times"
            hint = "add name: to tell them apart"
            raise InputError(Setting("corpora"), "a name for each corpus", received, hint=hint)
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
    _expect_known("reader", [reader], READERS, source)
    return Corpus(
        label=source.label,
        spec=READERS[reader].resolve(source, spec),
        reader=reader,
        weight=source.weight,
        tfds_name=source.tfds_name,
        tfds_dir=source.input_dir if is_dataset else None,
        split=source.tfds_split,
    )


def _expect_known(
    kind: str, names: Sequence[str], known: Mapping[str, Any], source: CorpusSource
) -> None:
    """Refuses a declaration that names what no table has."""
    subject = Setting("corpus_spec") if source.corpus_spec else f"corpus {source.label}"
    for name in names:
        if name not in known:
            raise InputError(subject, f"a known {kind} ({', '.join(known)})", shown(name))


def expect_outside(output_dir: Location, sources: Sequence[CorpusSource]) -> None:
    """Refuses an output directory below a folder all of whose files are read."""
    for source in sources:
        if source.files is not None and output_dir.is_inside(Location.parse(source.files)):
            expected = f"a directory outside `input_dir`={source.files}, all of which is read"
            raise InputError(Setting("output_dir"), expected, output_dir)


def open_corpora(
    sources: Sequence[CorpusSource], corpora: Sequence[Corpus]
) -> tuple[CorpusFile, ...]:
    """Returns the files of all sources, which `corpora` are when resolved.

    Raises:
        InputError: a corpus has no files, or all of them are empty.
    """
    return tuple(
        file
        for source, corpus in zip(sources, corpora, strict=True)
        for file in READERS[corpus.reader].find(source, corpus)
    )


def document_text(document: RawDocument) -> str:
    """Returns a document's text, cleaned.

    Raises:
        InputError: the document cannot be decoded, or lacks a field.
    """
    corpus = document.file.corpus
    text = READERS[corpus.reader].text(document)
    return cleaning.clean(text, corpus.spec.cleaning).strip()


def sample_texts(files: Sequence[CorpusFile], num_files: int, num_documents: int) -> Iterator[str]:
    """Yields the first documents of some files, evenly spread; unreadable ones are left out.

    Raises:
        InputError: a file cannot be read, or has another format than its name says.
    """
    for file in files[:: -(-len(files) // num_files)]:
        documents = READERS[file.corpus.reader].read(file)
        for document, _ in itertools.islice(documents, num_documents):
            with contextlib.suppress(InputError):
                yield document_text(document)


def read_blocks(files: Sequence[CorpusFile]) -> Iterator[DocumentBlock]:
    """Yields the corpus in blocks of about half a megabyte to 8 MB, or of 65,536 documents.

    Raises:
        InputError: a file cannot be read, or has another format than its name says.
    """
    total = sum(file.bytes for file in files)
    block_bytes = min(_MAX_BLOCK_BYTES, max(_MIN_BLOCK_BYTES, total // 256))
    index = size = done = 0
    documents: list[RawDocument] = []
    for file in files:
        for document, bytes_read in READERS[file.corpus.reader].read(file):
            documents.append(document)
            size += len(document.content)
            if size >= block_bytes or len(documents) >= _MAX_BLOCK_DOCUMENTS:
                yield DocumentBlock(index, tuple(documents), done + bytes_read)
                documents, size, index = [], 0, index + 1
        done += file.bytes
    yield DocumentBlock(index, tuple(documents), done)
