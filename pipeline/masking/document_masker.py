"""One document becomes masked examples, or unmasked windows."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from data_specs import records
from pipeline.base import seeding
from pipeline.masking import window_batches, window_masking, windows
from pipeline.masking.settings import MaskedExamplesConfig
from pipeline.masking.window_masking import WindowInput
from pipeline.storage import serialization
from pipeline.tokenizers import segmenters
from pipeline.tokenizers.loading import load_tokenizer
from pipeline.tokenizers.tokens import Tokenizer

# Tokenised at a time: bounds the memory of a long document.
_TEXT_SLICE_CHARS = 2**17
# A short target length is at least this part of the usual one: windows of a few
# tokens teach nothing, and a long document would become millions of them.
_SHORTEST_SHARE = 8
# Masked at a time: bounds the memory, too.
_BLOCK_WINDOWS = 256
UNMASKABLE = "without a word to mask"


@dataclasses.dataclass(frozen=True)
class _TokenizedDocument:
    """A document's tokens: ids int32 [n]; which begin a word or a line, bool [n]."""

    ids: np.ndarray
    word_starts: np.ndarray
    line_starts: np.ndarray


class DocumentMasker:
    """Turns documents into masked examples or, for dynamic masks, windows; one a process."""

    def __init__(self, config: MaskedExamplesConfig) -> None:
        self._config = config
        self._tokenizer = load_tokenizer(config.vocab_file, do_lower_case=config.do_lower_case)
        self._is_special = self._tokenizer.is_special()
        self._policy = window_masking.masking_policy(
            self._tokenizer,
            masked_lm_prob=config.masked_lm_prob,
            max_predictions_per_seq=config.max_predictions_per_seq,
        )
        self._id_dtype = records.id_dtype(self.vocab_size)

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes tokens of text."""
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """V, the tokens of the vocabulary."""
        return len(self._tokenizer.vocab)

    def _tokenize(self, text: str, segmenter: str) -> _TokenizedDocument:
        segment = segmenters.load_segmenter(segmenter)
        ids, word_starts, line_starts = [], [], []
        for piece in _text_slices(text):
            tokens = self._tokenizer.tokenize(piece)
            ids.append(tokens.ids)
            if self._config.do_whole_word_mask:
                word_starts.append(segmenters.word_starts(piece, tokens, segment))
            else:
                word_starts.append(np.ones(len(tokens.ids), bool))
            line_starts.append(_line_starts(piece, tokens.starts))
        return _TokenizedDocument(
            np.concatenate(ids), np.concatenate(word_starts), np.concatenate(line_starts)
        )

    def num_copies(self, key: bytes, weight: float) -> int:
        """Returns how many ways a document is masked; how often it is stored where it is not.

        Args:
            key: its digest.
            weight: its corpus's: `weight · copies` of the settings, where that is
                no whole number on average over documents.
        """
        uniform = seeding.hash64(self._config.random_seed, "copies", key) / 2.0**64
        return int(weight * self._config.copies + uniform)

    def examples(
        self,
        text: str,
        key: bytes,
        statistics: Counter[str],
        *,
        segmenter: str,
        num_copies: int,
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yields the masked copies of every window of a document, or the window as it is.

        Args:
            text: the document.
            key: its digest: every random choice depends on it.
            statistics: counts are added to it.
            segmenter: a name in `segmenters.SEGMENTERS`.
            num_copies: copies of each window.

        Yields:
            example ids and serialised examples.
        """
        seed = self._config.random_seed
        document = self._tokenize(text, segmenter)
        # A byte-level vocabulary may have no unknown token.
        unknown = document.ids == self._tokenizer.special_ids.get("unk", -1)
        statistics["tokens"] += len(document.ids)
        statistics["unknown_tokens"] += int(np.count_nonzero(unknown))
        found = self._windows(document, key)
        if self._config.is_dynamic:
            features = self._unmasked(found, num_copies, statistics)
        else:
            streams = [seeding.stream(seed, "mask", key, copy) for copy in range(num_copies)]
            features = self._masked(found, streams, statistics)
        for number, copy, values in features:
            example_id = seeding.digest(seed, "example", key, number, copy)
            statistics["examples"] += 1
            record = serialization.encode_example({**values, records.EXAMPLE_ID: example_id})
            yield example_id, record

    def _unmasked(
        self, found: Iterable[WindowInput], num_copies: int, statistics: Counter[str]
    ) -> Iterator[tuple[int, int, dict[str, bytes]]]:
        """Yields windows: number, copy and features; those that can be masked."""
        for number, window in enumerate(found):
            words = window_masking.maskable_words(window, self._policy, self._is_special)
            _count_window(statistics, maskable=len(words.starts) > 0)
            features = window_masking.window_features(window, self._id_dtype)
            for copy in range(num_copies if len(words.starts) else 0):
                yield number, copy, features

    def _masked(
        self,
        found: Iterator[WindowInput],
        streams: Sequence[np.random.Generator],
        statistics: Counter[str],
    ) -> Iterator[tuple[int, int, dict[str, bytes]]]:
        """Yields masked copies of windows: the window's number, the copy's, and its features.

        A copy's stream masks one window after another.
        """
        begin = 0
        while block := list(itertools.islice(found, _BLOCK_WINDOWS)):
            joined = window_batches.join_windows(block)
            masked = window_batches.mask_windows(
                joined,
                self._policy,
                self._is_special,
                (stream for stream in streams for _ in block),
                copies=len(streams),
            )
            statistics["masked_positions"] += len(masked.positions)
            features = window_batches.masked_features(joined, masked, self._id_dtype)
            places = itertools.product(range(len(streams)), range(begin, begin + len(block)))
            counts = masked.counts.tolist()
            for count in counts[: len(block)]:
                _count_window(statistics, maskable=count > 0)
            for (copy, number), count, values in zip(places, counts, features, strict=True):
                if count:
                    yield number, copy, values
            begin += len(block)

    def _windows(self, document: _TokenizedDocument, key: bytes) -> Iterator[WindowInput]:
        config, special_ids = self._config, self._tokenizer.special_ids
        length = config.window_length
        random = seeding.stream(config.random_seed, "window length", key)
        if random.random() < config.short_seq_prob:
            length = int(random.integers(max(1, length // _SHORTEST_SHARE), length + 1))
        splits = seeding.stream(config.random_seed, "segments", key)
        for begin, end in windows.window_spans(len(document.ids), length, config.doc_stride):
            span = slice(begin, end)
            starts, split = document.word_starts[span], None
            if config.segments == "pair":
                split = windows.split_point(starts, document.line_starts[span], splits)
            inputs = windows.build_input(
                document.ids[span], split, special_ids["cls"], special_ids["sep"]
            )
            yield WindowInput(*inputs, starts)


def _count_window(statistics: Counter[str], *, maskable: bool) -> None:
    statistics["windows" if maskable else f"windows {UNMASKABLE}"] += 1


def _text_slices(text: str) -> Iterator[str]:
    """Yields a text in parts that end with a line, or where a line is endless, anywhere."""
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
