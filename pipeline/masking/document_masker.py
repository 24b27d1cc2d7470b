"""Turns documents into masked examples or unmasked windows: the first half of prepare.

A job of a worker is a document block, and its result is one spill file.
"""

import dataclasses
import functools
import itertools
import re
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_specs import records
from pipeline.base import seeding
from pipeline.base.errors import InputError, InterruptedRunError, Setting
from pipeline.base.location import Location
from pipeline.corpora import corpus
from pipeline.corpora.documents import CorpusFile, RawDocument
from pipeline.hub import models
from pipeline.masking import duplicates, masks, windows
from pipeline.masking.duplicates import DocumentTable, LeftOutDocuments, MaskedTexts
from pipeline.masking.settings import MaskedExamplesConfig
from pipeline.masking.windows import Spans, Windows
from pipeline.storage import arrays, serialization, spill, token_counts
from pipeline.tokenizers import segmenters
from pipeline.tokenizers.loading import load_tokenizer

# Number of characters that are tokenized at once, to bound the memory of a long document.
_TEXT_SLICE_CHARS = 2**17
# Short windows have at least the usual length divided by this number. Windows of a few tokens are
# useless for training, and a long document would give millions of them.
_SHORTEST_SHARE = 8
# Number of tokens of windows, with all their copies, that are masked at once, to bound the memory.
_BATCH_TOKENS = 2**17
# Number of characters of short texts that are tokenized and masked together.
_GROUP_CHARS = 2**14
SPILL_FOLDER = ".spill"
# Reasons why a document has no examples.
BAD_ROWS = "bad rows"
_SHORT = "shorter than --min_chars"
# Points at which a text may be divided, in order of preference.
_DIVISIONS = (re.compile(r"\n"), re.compile(r"(?<=[。！？])|(?<=[.!?])\s"), re.compile(r"\s"))


class _TokenizedDocument(NamedTuple):
    """Tokens of a document: ids, int32 [n], and which tokens begin a word or a line, bool [n]."""

    ids: np.ndarray
    word_starts: np.ndarray
    line_starts: np.ndarray


class Passage(NamedTuple):
    """A text to mask: a document, or a part of one.

    Attributes:
        text: the text.
        key: digest of the text; every random choice depends on it.
        segmenter: a key of `segmenters.SEGMENTERS`.
        num_copies: number of masked copies of each of its windows.
        group: number that decides the split of its examples.
        document: index of its document within the block.
    """

    text: str
    key: bytes
    segmenter: str
    num_copies: int
    group: int
    document: int


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleBatch:
    """Masked copies of windows of passages, or unmasked windows.

    Attributes:
        passages: the passages.
        owners: int [n], the index in `passages` of each example's passage.
        example_ids: 16 bytes for each example, concatenated.
        contents: the serialized examples.
        counts: int [passages] each, keyed by names of `duplicates.STATISTICS`: what this batch adds
            to the counts of each passage.
    """

    passages: Sequence[Passage]
    owners: np.ndarray
    example_ids: bytes
    contents: list[bytes]
    counts: Mapping[str, np.ndarray]


class DocumentMasker:
    """Turns documents into masked examples or, for dynamic masks, windows; one per process."""

    def __init__(self, config: MaskedExamplesConfig) -> None:
        self._config = config
        self.tokenizer = load_tokenizer(config.vocab_file, do_lower_case=config.do_lower_case)
        self.vocab_size = len(self.tokenizer.vocab)
        self._is_special = self.tokenizer.is_special()
        self._policy = masks.masking_policy(
            self.tokenizer,
            masked_lm_prob=config.masked_lm_prob,
            max_predictions_per_seq=config.max_predictions_per_seq,
        )
        self.masked_texts = MaskedTexts()

    def _tokenize(self, text: str, segmenter: str) -> _TokenizedDocument:
        slices = [self._tokenize_slice(part, segmenter)[0] for part in _text_slices(text)]
        if len(slices) == 1:
            return slices[0]
        return _TokenizedDocument(*map(np.concatenate, zip(*slices, strict=True)))

    def _tokenize_slice(self, text: str, segmenter: str) -> tuple[_TokenizedDocument, np.ndarray]:
        """Returns the tokens of a text, and the index of the first character of each."""
        tokens = self.tokenizer.tokenize(text)
        word_starts = np.ones(len(tokens.ids), bool)
        if self._config.do_whole_word_mask:
            segment = segmenters.SEGMENTERS[segmenter]
            word_starts = segmenters.word_starts(text, tokens, segment)
        line_starts = _line_starts(text, tokens.starts)
        return _TokenizedDocument(tokens.ids, word_starts, line_starts), tokens.starts

    def _tokenize_together(
        self, passages: Sequence[Passage]
    ) -> tuple[_TokenizedDocument, np.ndarray]:
        """Tokenizes passages with the same segmenter as the lines of one text.

        Returns:
            the tokens of all passages, and the number of tokens of each, int [passages].
        """
        if len(passages) == 1:
            document = self._tokenize(passages[0].text, passages[0].segmenter)
            return document, np.array([len(document.ids)])
        texts = [passage.text for passage in passages]
        joined, starts = self._tokenize_slice("\n".join(texts), passages[0].segmenter)
        ends = np.searchsorted(starts, np.cumsum([len(text) + 1 for text in texts]))
        return joined, np.diff(ends, prepend=0)

    def num_copies(self, key: bytes, weight: float) -> int:
        """Returns the number of masked copies of a document: `weight · copies` on average."""
        wanted = weight * self._config.copies
        if wanted == int(wanted):
            return int(wanted)
        return int(wanted + seeding.hash64(self._config.random_seed, "copies", key) / 2.0**64)

    def examples(self, passages: Iterable[Passage]) -> Iterator[ExampleBatch]:
        """Yields the masked copies of all windows of passages, or the unmasked windows."""
        for group in self._groups(passages):
            document, num_tokens = self._tokenize_together(group)
            # A byte-level vocabulary may have no unknown token.
            is_unknown = document.ids == self.tokenizer.special_ids.get("unk", -1)
            first_tokens = np.cumsum(num_tokens) - num_tokens
            unknown_tokens = _sums(is_unknown, first_tokens, num_tokens)
            counts = {"tokens": num_tokens, "unknown_tokens": unknown_tokens}
            keys = seeding.key_words([passage.key for passage in group])
            spans = self._window_spans(keys, num_tokens)
            sizes = (spans.ends - spans.begins) * group[0].num_copies
            for begin, end in itertools.pairwise(arrays.group_bounds(sizes, _BATCH_TOKENS)):
                part = spans.part(slice(begin, end))
                batch = self._build_windows(keys, document, first_tokens, part)
                yield self._batch(group, keys, part, batch, counts)
                # The tokens of a passage with several batches are counted once.
                counts = {}

    def _groups(self, passages: Iterable[Passage]) -> Iterator[list[Passage]]:
        """Yields groups of consecutive short passages with the same settings."""
        # If the tokenizer does not split at lines, each text is a group of its own, even an empty
        # one.
        max_chars = _GROUP_CHARS if self.tokenizer.splits_at_lines else -1
        group: list[Passage] = []
        size, settings = 0, None
        for passage in passages:
            size += len(passage.text)
            if group and (size > max_chars or settings != (passage.segmenter, passage.num_copies)):
                yield group
                group, size = [], len(passage.text)
            group.append(passage)
            settings = passage.segmenter, passage.num_copies
        if group:
            yield group

    def _streams(
        self, purpose: str, keys: np.ndarray, spans: Spans, copies: int = 1
    ) -> seeding.KeyedStreams:
        """Returns the random numbers of the copies of windows."""
        return seeding.KeyedStreams.of(
            self._config.random_seed,
            purpose,
            keys[np.tile(spans.documents, copies)],
            np.tile(spans.numbers, copies),
            np.repeat(np.arange(copies), len(spans.documents)),
        )

    def _window_spans(self, keys: np.ndarray, num_tokens: np.ndarray) -> Spans:
        """Returns the windows of passages; some passages have short windows."""
        config = self._config
        streams = seeding.KeyedStreams.of(config.random_seed, "window length", keys)
        is_short, length_bits = streams.bits(2).reshape(-1, 2).T
        longest = config.window_length
        shortest = max(1, longest // _SHORTEST_SHARE)
        short = shortest + seeding.below(longest + 1 - shortest, length_bits)
        lengths = np.where(is_short / 2.0**32 < config.short_seq_prob, short, longest)
        return windows.window_spans(num_tokens, lengths, config.doc_stride)

    def _build_windows(
        self,
        keys: np.ndarray,
        document: _TokenizedDocument,
        first_tokens: np.ndarray,
        spans: Spans,
    ) -> Windows:
        firsts = first_tokens[spans.documents]
        begins, ends = spans.begins + firsts, spans.ends + firsts
        splits = None
        if self._config.segments == "pair":
            bits = self._streams("segments", keys, spans).bits(1)
            boundaries = (document.line_starts, document.word_starts)
            splits = windows.split_points(begins, ends, boundaries, bits)
        return windows.build_windows(
            document.ids, document.word_starts, (begins, ends), splits, self.tokenizer.special_ids
        )

    def _batch(
        self,
        passages: Sequence[Passage],
        keys: np.ndarray,
        spans: Spans,
        batch: Windows,
        counts: Mapping[str, np.ndarray],
    ) -> ExampleBatch:
        """Returns the examples of windows; `counts` are further counts of the passages."""
        copies = passages[0].num_copies
        if self._config.is_dynamic:
            features, num_masked = self._unmasked(batch, copies)
        else:
            streams = self._streams("mask", keys, spans, copies)
            features, num_masked = self._masked(batch, copies, streams)
        owners = np.tile(spans.documents, copies)

        def by_passage(numbers: np.ndarray) -> np.ndarray:
            totals = np.bincount(owners[: len(numbers)], numbers, len(passages))
            return totals.astype(np.int64)

        # The first copy is enough, because either all copies of a window have masked tokens or
        # none has.
        is_maskable = num_masked[: len(spans.documents)] > 0
        without_words, with_words = duplicates.WINDOWS
        counts = {
            **counts,
            without_words: by_passage(~is_maskable),
            with_words: by_passage(is_maskable),
            "examples": by_passage(num_masked > 0),
        }
        if not self._config.is_dynamic:
            counts["masked_positions"] = by_passage(num_masked)
        made = np.flatnonzero(num_masked)
        ids = self._streams("example", keys, spans, copies).bits(4).astype("<u4")
        example_ids = ids.reshape(-1, 4)[made].tobytes()
        if len(made) < len(num_masked):
            rows = made.tolist()
            features = {name: [values[row] for row in rows] for name, values in features.items()}
        features[records.EXAMPLE_ID] = [
            example_ids[begin : begin + 16] for begin in range(0, len(example_ids), 16)
        ]
        contents = list(serialization.encode_examples(features))
        return ExampleBatch(passages, owners[made], example_ids, contents, counts)

    def _unmasked(self, batch: Windows, copies: int) -> tuple[dict[str, list[bytes]], np.ndarray]:
        """Returns the features of all copies, and int [C · W]: 1 for each copy with a word to mask.

        The other copies, with 0, give no examples.
        """
        words = masks.maskable_words(batch, self._policy, self._is_special)
        rows = np.searchsorted(np.cumsum(batch.counts), words.starts, side="right")
        is_maskable = np.bincount(rows, minlength=len(batch.counts)) > 0
        features = windows.window_features(batch, self.vocab_size)
        repeated = {name: values * copies for name, values in features.items()}
        return repeated, np.tile(is_maskable, copies).astype(np.int64)

    def _masked(
        self, batch: Windows, copies: int, streams: seeding.KeyedStreams
    ) -> tuple[dict[str, list[bytes]], np.ndarray]:
        """Returns the features of all copies, and their numbers of masked tokens, int [C · W].

        A copy without masked tokens gives no example.
        """
        masked = masks.mask_windows(batch, self._policy, self._is_special, streams, copies=copies)
        return masks.masked_features(batch, masked, self.vocab_size), masked.counts


def _sums(values: np.ndarray, firsts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the sum of each part of an array, int64 [parts]."""
    totals = np.concatenate([[0], np.cumsum(values)])
    return totals[firsts + counts] - totals[firsts]


def _text_slices(text: str) -> Iterator[str]:
    """Yields slices of a text that end with a line; only a very long line is cut inside."""
    begin = 0
    while len(text) - begin > _TEXT_SLICE_CHARS:
        end = text.rfind("\n", begin, begin + _TEXT_SLICE_CHARS) + 1
        end = end if end > begin else begin + _TEXT_SLICE_CHARS
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _line_starts(text: str, token_starts: np.ndarray) -> np.ndarray:
    code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    lines = np.searchsorted(np.flatnonzero(code_points == ord("\n")), token_starts)
    return np.concatenate([np.ones(min(1, len(lines)), bool), lines[1:] != lines[:-1]])


@functools.lru_cache(maxsize=1)
def _masker(config: MaskedExamplesConfig) -> DocumentMasker:
    """Returns the masker of a process, which is the same for all its blocks."""
    # A job of Ray may run on another host, which has no local mirror of the hub's files.
    return DocumentMasker(config if config.ray is None else models.relocate_to_host(config))


def spill_folder(config: MaskedExamplesConfig) -> Location:
    """Returns the folder of temporary files, which only an unfinished run needs."""
    return config.output_dir.scratch(SPILL_FOLDER)


def spill_path(config: MaskedExamplesConfig, index: int) -> Location:
    """Returns the spill file of a block."""
    return spill_folder(config) / f"{index:08d}.spill"


def table_path(config: MaskedExamplesConfig, index: int) -> Location:
    """Returns the table of a block's documents."""
    return spill_folder(config) / f"{index:08d}.documents.spill"


def left_out_path(config: MaskedExamplesConfig) -> Location:
    """Returns the file that marks the documents that are duplicates."""
    return spill_folder(config) / "duplicates"


def counts_path(config: MaskedExamplesConfig, index: int) -> Location:
    """Returns the file of the token counts of a block of unmasked windows."""
    return spill_folder(config) / f"{index:08d}.counts.npy"


def has_two_documents(config: MaskedExamplesConfig, files: Sequence[CorpusFile]) -> bool:
    """Returns whether a corpus has two different documents to mask; reads only until the second.

    Raises:
        InputError: a file or document cannot be read.
    """
    groups: set[int] = set()
    for document in corpus.read_documents(files):
        # This is another piece of a document that has been counted.
        if document.split_key is not None and _group(config, document, "") in groups:
            continue
        text, _ = _read_text(config, document)
        if text is not None:
            groups.add(_group(config, document, text))
        if len(groups) > 1:
            return True
    return False


def mask_block(
    config: MaskedExamplesConfig,
    block: corpus.DocumentBlock,
    *,
    is_only_writer: bool = True,
    divides_text: bool = False,
) -> tuple[Mapping[str, Any], int]:
    """Masks a block's documents into a spill file, unless there is a finished one.

    Args:
        config: the settings of the run.
        block: the block.
        is_only_writer: whether no other process, even on another node, may mask the block too.
        divides_text: whether the eval split is the end of each text, see `divide_text`.

    Returns:
        the spill file's header, and the bytes of the corpus that have been read.
    """
    block = block.loaded()
    path = spill_path(config, block.index)
    header = spill.read_header(path)
    fingerprint = block.fingerprint()
    if divides_text:
        fingerprint = seeding.digest("divided", fingerprint).hex()
    if header is None or header.get("fingerprint") != fingerprint:
        if not is_only_writer:
            _expect_same_tokenizer(config)
        # If a job may be repeated, its spill file must not depend on the process.
        _masker(config).masked_texts.begin_block(block.index, forget=not is_only_writer)
        header, documents, entries = _mask_documents(config, block, divides_text=divides_text)
        header["fingerprint"] = fingerprint
        # The table comes before the spill file, because a spill file means that a block is done.
        documents.write(table_path(config, block.index), is_only_writer=is_only_writer)
        spill.write_spill(path, entries, header, is_only_writer=is_only_writer)
    return header, block.bytes_read


def count_block(config: MaskedExamplesConfig, left_out: LeftOutDocuments, index: int) -> None:
    """Counts the tokens of a block's unmasked windows, without those of duplicates."""
    path = spill_path(config, index)
    everything = spill.KeyRange(0, spill.KEY_SPACE, 0, spill.KEY_SPACE)
    windows_read = spill.read_sorted(
        [path], everything, expected_bytes=path.stat().st_size, left_out=[left_out.of_block(index)]
    )
    counts = token_counts.count_tokens(windows_read, _masker(config).vocab_size)
    token_counts.write_counts(counts_path(config, index), counts)


def expect_blocks(config: MaskedExamplesConfig, fingerprints: Sequence[str]) -> list[Location]:
    """Returns the spill files of all blocks, after checking their fingerprints.

    Raises:
        InterruptedRunError: a spill file is missing, or has another fingerprint.
    """
    paths = [spill_path(config, index) for index in range(len(fingerprints))]
    for path, expected in zip(paths, fingerprints, strict=True):
        header = spill.read_header(path)
        if header is None or header.get("fingerprint") != expected:
            received = "none" if header is None else "that of another text"
            hint = "re-run the command to write it again"
            raise InterruptedRunError(path, "a masked document block", received, hint=hint)
    return paths


@functools.lru_cache(maxsize=1)
def _expect_same_tokenizer(config: MaskedExamplesConfig) -> None:
    """Raises InterruptedRunError if a node has another tokenizer than the command."""
    for name, content in _masker(config).tokenizer.files().items():
        path = config.output_dir / name
        if path.read_bytes() != content:
            received = f"a different {name} on {socket.gethostname()}"
            hint = f"copy {config.vocab_file} to every node"
            raise InterruptedRunError(
                Setting("vocab_file"), "identical on every node", received, hint=hint
            )


def _mask_documents(
    config: MaskedExamplesConfig, block: corpus.DocumentBlock, *, divides_text: bool
) -> tuple[dict[str, Any], DocumentTable, spill.Entries]:
    """Returns the header of a block's spill file, its table of documents and its examples."""
    skipped: Counter[str] = Counter()
    plans: list[_DocumentPlan] = []

    def passages() -> Iterator[Passage]:
        for number, document in enumerate(block.documents):
            text, reason = _read_text(config, document)
            if text is None:
                skipped[reason] += 1
                continue
            groups = _groups(config, document, text, divides_text=divides_text)
            plan, texts = _plan_document(config, document, number, text, groups)
            plans.append(plan)
            yield from texts

    batches = list(_masker(config).examples(passages()))
    entries = _join_batches(batches)
    labels = [source.label for source in config.corpora]
    table = _document_table(plans, batches, entries, labels)
    rows = table.rows
    names = {name for batch in batches for name in batch.counts}
    statistics = {name: int(rows[name].sum()) for name in duplicates.STATISTICS if name in names}
    skipped.update({name: int(rows[name].sum()) for name in duplicates.SKIPPED})
    examples = np.bincount(rows["corpus"], rows["examples"], len(labels)).astype(int)
    present = {document.file.corpus.label for document in block.documents}
    header = {
        "statistics": {"documents": len(block.documents), **statistics},
        "skipped": dict(+skipped),
        "examples": {
            label: number
            for label, number in zip(labels, examples.tolist(), strict=True)
            if label in present
        },
        "bytes": int(rows["bytes"].sum()),
    }
    return header, table, entries


def _document_table(
    plans: Sequence["_DocumentPlan"],
    batches: Sequence[ExampleBatch],
    entries: spill.Entries,
    labels: Sequence[str],
) -> DocumentTable:
    """Returns the table of a block's documents, from their plans and their examples."""
    index = {label: number for number, label in enumerate(labels)}
    rows = np.zeros(len(plans), duplicates.ROW)
    numbers = np.array([plan.number for plan in plans], np.int64)
    groups = np.array([plan.groups for plan in plans], np.uint64).reshape(-1, 2)
    rows["lowest"], rows["highest"] = groups.T
    rows["corpus"] = [index[plan.corpus] for plan in plans]
    rows["copies"] = [plan.copies for plan in plans]
    sizes = np.fromiter(map(len, entries.contents), np.int64, len(entries.contents))
    # The numbers of documents are ascending.
    np.add.at(rows["bytes"], np.searchsorted(numbers, entries.documents), sizes)
    for batch in batches:
        row = np.searchsorted(numbers, [passage.document for passage in batch.passages])
        for name, counts in batch.counts.items():
            np.add.at(rows[name], row, counts)
    is_duplicate = np.array([plan.is_duplicate for plan in plans], bool)
    is_empty = (rows["examples"] == 0) & ~is_duplicate
    rows[duplicates.LEFT_OUT] = is_empty & (rows["copies"] == 0)
    rows[duplicates.UNMASKABLE] = is_empty & (rows["copies"] > 0)
    return DocumentTable(b"".join(plan.key for plan in plans), numbers, rows)


def _join_batches(batches: Sequence[ExampleBatch]) -> spill.Entries:
    groups, documents = (
        [
            np.array([getattr(passage, name) for passage in batch.passages], dtype)[batch.owners]
            for batch in batches
        ]
        for name, dtype in (("group", np.uint64), ("document", np.int64))
    )
    return spill.Entries(
        b"".join(batch.example_ids for batch in batches),
        np.concatenate([np.zeros(0, np.uint64), *groups]),
        [content for batch in batches for content in batch.contents],
        np.concatenate([np.zeros(0, np.int64), *documents]),
    )


class _DocumentPlan(NamedTuple):
    """A document with text, for its row in the table.

    Attributes:
        number: index of the document within the block.
        key: see `DocumentTable`.
        groups: the smallest and the largest group of its examples.
        corpus: label of its corpus.
        copies: number of masked copies of each window.
        is_duplicate: whether this process has masked the same text before.
    """

    number: int
    key: bytes
    groups: tuple[int, int]
    corpus: str
    copies: int
    is_duplicate: bool


def _groups(
    config: MaskedExamplesConfig, document: RawDocument, text: str, *, divides_text: bool
) -> dict[str, int]:
    """Returns the texts of a document to mask (usually one), with the groups that decide splits."""
    if divides_text and (halves := divide_text(text, config.eval_fraction, config.min_chars)):
        # The highest and the lowest group are on different sides of any threshold.
        return dict(zip(halves, (spill.KEY_SPACE - 1, 0), strict=True))
    return {text: _group(config, document, text)}


def _plan_document(
    config: MaskedExamplesConfig,
    document: RawDocument,
    number: int,
    text: str,
    groups: Mapping[str, int],
) -> tuple[_DocumentPlan, list[Passage]]:
    """Returns the plan of a document, and its texts to mask; none for a duplicate.

    Args:
        config: the settings of the run.
        document: the document.
        number: index of the document within the block.
        text: its text.
        groups: see `_groups`.
    """
    key = _document_key(config, document, text)
    masker, settings = _masker(config), document.file.corpus
    copies, segmenter = masker.num_copies(key, settings.weight), settings.spec.segmenter
    is_duplicate = masker.masked_texts.add(key, copies)
    bounds = min(groups.values()), max(groups.values())
    plan = _DocumentPlan(number, key, bounds, settings.label, copies, is_duplicate)
    if not copies or is_duplicate:
        return plan, []
    keys = {part: key if part == text else _document_key(config, document, part) for part in groups}
    return plan, [
        Passage(part, keys[part], segmenter, copies, group, number)
        for part, group in groups.items()
    ]


def _read_text(
    config: MaskedExamplesConfig, document: RawDocument
) -> tuple[str, None] | tuple[None, str]:
    """Returns a document's text, or the reason why it is skipped."""
    try:
        text = corpus.document_text(document)
    except InputError as error:
        if not config.skip_bad_lines:
            if error.hint is None:
                error.hint = "set `skip_bad_lines` to skip and count such documents"
            raise
        return None, BAD_ROWS
    if len(text) < config.min_chars:
        return None, _SHORT
    return text, None


def _group(config: MaskedExamplesConfig, document: RawDocument, text: str) -> int:
    """Returns the group of a text: a hash of its content, so that copies have the same split."""
    content = document.split_key or text.encode("utf-8")
    return seeding.hash64(config.random_seed, "split", content)


def _document_key(config: MaskedExamplesConfig, document: RawDocument, text: str) -> bytes:
    """Returns the key of all random choices of a text.

    It depends only on the text, so that the examples do not depend on which copy is kept. With
    `keep_duplicates` it also depends on the document's position in the corpus.
    """
    position = (document.file.key, document.ordinal) if config.keep_duplicates else ()
    return seeding.digest(*position, text.encode("utf-8"))


def divide_text(text: str, fraction: float, min_chars: int) -> tuple[str, str] | None:
    """Divides a text into a beginning for training and an end for evaluation.

    The end has at least `fraction` of the characters and at least `min_chars`. It has at most
    twice this minimum. Within these bounds it begins with a line if possible, or else with a
    sentence, or else with a word.

    Returns:
        both parts, without surrounding spaces; None if the text is too short for two.
    """
    wanted = max(min_chars, int(fraction * len(text)))
    low, high = max(min_chars, len(text) - 2 * wanted), len(text) - wanted
    if low > high:
        return None
    candidates = (list(pattern.finditer(text, low, high)) for pattern in _DIVISIONS)
    end = next((matches[-1].end() for matches in candidates if matches), high)
    halves = text[:end].strip(), text[end:].strip()
    return halves if min(map(len, halves)) >= min_chars else None
