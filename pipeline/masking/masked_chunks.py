"""The first half of stage 1a: a chunk of documents becomes a spill file of masked examples."""

import dataclasses
import functools
import pathlib
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.base import seeding
from pipeline.base.errors import InputError, InterruptedRunError, Setting
from pipeline.corpora import corpus, documents
from pipeline.masking.document_masker import UNMASKABLE, DocumentMasker
from pipeline.masking.settings import MaskedExamplesConfig
from pipeline.storage import spill, token_counts

SPILL_FOLDER = ".spill"
_BAD_ROWS = "bad rows"
_SHORT = "shorter than --min_chars"
_LEFT_OUT = "left out by the weight of their corpus"

# One tokenizer, segmenter and policy a process, however many chunks it handles.
_masker = functools.lru_cache(maxsize=1)(DocumentMasker)


def spill_folder(config: MaskedExamplesConfig) -> pathlib.Path:
    """Returns the folder of all that only an unfinished run needs."""
    return config.output_dir.scratch(SPILL_FOLDER)


def spill_path(config: MaskedExamplesConfig, index: int) -> pathlib.Path:
    """Returns the spill file of a chunk."""
    return spill_folder(config) / f"{index:08d}.spill"


def counts_path(config: MaskedExamplesConfig, index: int) -> pathlib.Path:
    """Returns the file of how often each token is in a chunk of unmasked windows."""
    return spill_folder(config) / f"{index:08d}.counts.npy"


@dataclasses.dataclass(frozen=True)
class ChunkResult:
    """A chunk that is masked: its spill file's header, and how far the corpus has been read."""

    header: Mapping[str, Any]
    bytes_read: int


def mask_chunk(
    config: MaskedExamplesConfig, chunk: corpus.Chunk, *, is_only_writer: bool = True
) -> ChunkResult:
    """Masks a chunk's documents into a spill file; one that is there already stays.

    Args:
        config: the settings.
        chunk: the documents.
        is_only_writer: whether no other process, perhaps on another node, may mask it too.
    """
    path = spill_path(config, chunk.index)
    header = spill.read_header(path)
    if header is None or header.get("fingerprint") != chunk.fingerprint():
        if not is_only_writer:
            _expect_same_tokenizer(config)
        header, entries = _mask_documents(config, chunk)
        if config.is_dynamic:
            # Before the spill file, which says that the chunk is done.
            counts = token_counts.count_tokens(
                (entry.record for entry in entries), _masker(config).vocab_size
            )
            token_counts.write_counts(counts_path(config, chunk.index), counts)
        spill.write_spill(path, entries, header, is_only_writer=is_only_writer)
    return ChunkResult(header, chunk.bytes_read)


def expect_chunks(config: MaskedExamplesConfig, fingerprints: Sequence[str]) -> list[pathlib.Path]:
    """Returns the spill files of all chunks, once each is seen to be of its chunk.

    Args:
        config: what was asked for.
        fingerprints: of the chunks, in their order.

    Raises:
        InterruptedRunError: one is missing, or of another text.
    """
    paths = [spill_path(config, index) for index in range(len(fingerprints))]
    for path, wanted in zip(paths, fingerprints, strict=True):
        header = spill.read_header(path)
        if header is None or header.get("fingerprint") != wanted:
            raise InterruptedRunError(
                path,
                "a chunk of the corpus, masked",
                "none" if header is None else "that of another text",
                hint="the same command makes it again",
            )
    return paths


@functools.lru_cache(maxsize=1)
def _expect_same_tokenizer(config: MaskedExamplesConfig) -> None:
    """Refuses a node that sees another tokenizer than the command did."""
    for name, content in _masker(config).tokenizer.files().items():
        path = config.output_dir / name
        if path.read_bytes() != content:
            raise InterruptedRunError(
                Setting("vocab_file"),
                f"each node to see the same under {config.vocab_file}",
                f"another {name} on {socket.gethostname()}",
            )


def _mask_documents(
    config: MaskedExamplesConfig, chunk: corpus.Chunk
) -> tuple[dict[str, Any], list[spill.Entry]]:
    statistics: Counter[str] = Counter(documents=len(chunk.documents))
    skipped: Counter[str] = Counter()
    by_corpus: Counter[str] = Counter()
    entries: list[spill.Entry] = []
    for document in chunk.documents:
        before = len(entries)
        reason = _mask_document(config, document, statistics, entries)
        if reason is not None:
            skipped[reason] += 1
        by_corpus[document.file.corpus.label] += len(entries) - before
    groups = [entry.group for entry in entries]
    header = {
        "fingerprint": chunk.fingerprint(),
        "statistics": dict(statistics),
        "skipped": dict(skipped),
        "examples": dict(by_corpus),
        "bytes": sum(len(entry.record) for entry in entries),
        "groups": [min(groups), max(groups)] if groups else None,
    }
    return header, entries


def _mask_document(
    config: MaskedExamplesConfig,
    document: documents.RawDocument,
    statistics: Counter[str],
    entries: list[spill.Entry],
) -> str | None:
    """Adds a document's masked examples to `entries`; returns why there are none."""
    try:
        text = documents.document_text(document)
    except InputError:
        if not config.skip_bad_lines:
            raise
        return _BAD_ROWS
    if len(text) < config.min_chars:
        return _SHORT
    content = text.encode("utf-8")
    # By content, so that two copies of a text never stand on both sides.
    group = seeding.hash64(config.random_seed, "split", document.split_key or content)
    key = seeding.digest(document.file.key, document.ordinal, content)
    masker, settings = _masker(config), document.file.corpus
    num_copies = masker.num_copies(key, settings.weight)
    if not num_copies:
        return _LEFT_OUT
    before = len(entries)
    examples = masker.examples(
        text, key, statistics, segmenter=settings.spec.segmenter, num_copies=num_copies
    )
    entries.extend(spill.Entry(example_id, group, record) for example_id, record in examples)
    return UNMASKABLE if len(entries) == before else None
