"""Checks of every record of a directory, many records at once.

Letters as in `data_specs.records`. Sizes are checked first: a feature is decoded only if its
length fits the manifest and the record's other features.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data_specs import records
from data_specs.records import Feature
from pipeline.storage import arrays
from pipeline.storage.codecs.base import MAX_RECORD_IDS, TargetCodec, TopKCodec
from pipeline.storage.codecs.states import StatesCodec
from pipeline.storage.manifest import Manifest
from pipeline.storage.records import TeacherTargets
from tools.finetuning.kinds import KINDS
from tools.verification.state_checks import state_problems
from tools.verification.topk_checks import Problems, TopKRows, topk_problems

# Number of ids that are decoded together, small enough for the processor's cache.
_MAX_DECODED_IDS = 2**19

Features = Mapping[str, bytes]


class Column(arrays.Column):
    """The numbers of one feature in many records, with tests of each record."""

    def any(self, condition: np.ndarray) -> np.ndarray:
        """Returns, bool [n], whether a condition is true for a number of each record."""
        matching = np.zeros(len(self.counts), bool)
        if condition.any():
            matching[self.owners[condition]] = True
        return matching

    def sums(self) -> np.ndarray:
        """Returns the sum of each record's numbers, int64 [n]."""
        sums = np.concatenate([[0], np.cumsum(self.values, dtype=np.int64)])
        return sums[self.starts + self.counts] - sums[self.starts]

    def not_ascending(self) -> np.ndarray:
        """Returns, bool [n], whether a number of each record is not above the previous one."""
        is_low = np.zeros(len(self.values), bool)
        is_low[1:] = self.values[1:] <= self.values[:-1]
        is_low[self.starts[self.counts > 0]] = False
        return self.any(is_low)


class Finding(NamedTuple):
    """A problem, as text, and the indices of the records that have it: int [n], ascending."""

    problem: str
    indices: np.ndarray


@dataclasses.dataclass(frozen=True)
class RecordChecker:
    """Checks the records of a directory.

    Attributes:
        manifest: of the directory; its sizes are valid.
        is_special: bool [V], the tokens that are never masked and never replace a masked token.
        codec: of a teacher cache; None otherwise.
    """

    manifest: Manifest
    is_special: np.ndarray
    codec: TargetCodec | None = None

    def check(self, examples: Sequence[Features]) -> list[Finding]:
        """Returns the problems of records, given the features of each."""
        names = {feature.name for feature in self.manifest.features}
        is_bad = np.array([example.keys() != names for example in examples], bool)
        problem = f"expected the features {', '.join(sorted(names))}"
        findings = [Finding(problem, np.flatnonzero(is_bad))]
        for check in (self._byte_problems, self._size_problems, self._value_problems):
            indices = np.flatnonzero(~is_bad)
            good_examples = [examples[index] for index in indices]
            for problem, bad in check(good_examples) if good_examples else ():
                findings.append(Finding(problem, indices[bad]))
                is_bad[indices[bad]] = True
        return [finding for finding in findings if len(finding.indices)]

    def _column(self, name: str, examples: Sequence[Features]) -> Column:
        (feature,) = (feature for feature in self.manifest.features if feature.name == name)
        contents = [example[name] for example in examples]
        return Column.decode(feature, contents, self.manifest.vocab.size)

    # Sizes.

    def _byte_problems(self, examples: Sequence[Features]) -> Problems:
        """Yields the problem of features that end inside a number."""
        for feature in self.manifest.features:
            size = feature.numpy_dtype(self.manifest.vocab.size).itemsize
            is_cut = (len(example[feature.name]) % size > 0 for example in examples)
            bad = np.fromiter(is_cut, bool, len(examples))
            yield f"{feature.name}: expected numbers of {size} bytes", bad

    def _size_problems(self, examples: Sequence[Features]) -> Problems:
        """Yields the problems of features whose lengths contradict each other."""
        names = [feature.name for feature in self.manifest.features]
        columns = {name: self._column(name, examples) for name in names}
        counts = {name: column.counts for name, column in columns.items()}
        # Sizes by the letters of `data_specs.records`, of all records or of each record.
        info = self.manifest.teacher_info
        sizes: dict[str, int | np.ndarray] = {"16": 16, **({} if info is None else info.sizes)}
        if records.MASKED_LM_POSITIONS in counts:
            sizes["P"] = counts[records.MASKED_LM_POSITIONS]
        for name, low, high in self._bounds():
            number = counts[name]
            problem = f"{name}: expected {low} to {high} numbers"
            yield problem, (number < low) | (number > high)
        for feature in self.manifest.features:
            if set(feature.shape) <= set(sizes):
                expected = math.prod(sizes[letter] for letter in feature.shape)
                if records.TOPK_COUNTS in columns and "K" in feature.shape:
                    expected = columns[records.TOPK_COUNTS].sums()
                bad = counts[feature.name] != expected
                yield _wrong_count(feature, counts[feature.name], expected, bad), bad
        if isinstance(self.codec, TopKCodec):
            ids = sizes["P"] * self.codec.truncation_factor
            yield f"expected a top-k of at most {MAX_RECORD_IDS} ids", ids > MAX_RECORD_IDS

    def _bounds(self) -> Iterator[tuple[str, int, int]]:
        """Yields the name, minimum and maximum length of each feature of free length."""
        manifest = self.manifest
        names = {feature.name for feature in manifest.features}
        if records.INPUT_IDS in names:
            yield records.INPUT_IDS, 3, manifest.max_seq_length
            yield records.SEGMENT_LENGTHS, 1, 2
        if records.MASKED_LM_POSITIONS in names:
            yield records.MASKED_LM_POSITIONS, 1, manifest.max_predictions_per_seq

    # Values.

    def _value_problems(self, examples: Sequence[Features]) -> Problems:
        """Yields the problems of values, in records of the right sizes."""
        if records.TEACHER_LOGITS in examples[0]:
            yield from self._logit_problems(self._column(records.TEACHER_LOGITS, examples))
            return
        yield from self._input_problems(examples)
        if records.EMBEDDING in examples[0]:
            embedding = self._column(records.EMBEDDING, examples)
            problem = f"{records.EMBEDDING}: expected finite numbers"
            yield problem, embedding.any(~np.isfinite(embedding.values))
        if self.codec is not None:
            bad = np.zeros(len(examples), bool)
            for begin, end in self._teacher_blocks(examples):
                for problem, bad_in_block in self._teacher_problems(examples[begin:end]):
                    bad[:] = False
                    bad[begin:end] = bad_in_block
                    yield problem, bad.copy()

    def _logit_problems(self, logits: Column) -> Problems:
        """Yields the problems of the logits of a task."""
        name, flags = records.TEACHER_LOGITS, self.manifest.flags
        # The flags of a damaged manifest may have values of any type.
        kind, labels = KINDS.get(str(flags.get("head"))), flags.get("labels")
        labels = labels if isinstance(labels, list) else []
        expected = 0 if kind is None else kind.num_outputs(labels)
        if not expected:
            yield f"{name}: expected at least one number", logits.counts == 0
        elif kind.is_over_tokens:
            # The record does not state its number of tokens.
            is_wrong = (logits.counts == 0) | (logits.counts % expected != 0)
            yield f"{name}: expected {expected} numbers for each token", is_wrong
        else:
            yield f"{name}: expected {expected} numbers", logits.counts != expected
        yield f"{name}: expected finite numbers", logits.any(~np.isfinite(logits.values))

    def _input_problems(self, examples: Sequence[Features]) -> Problems:
        special, vocab_size = self.manifest.special_ids, self.manifest.vocab.size
        ids = self._column(records.INPUT_IDS, examples)
        segments = self._column(records.SEGMENT_LENGTHS, examples)
        outside = (ids.values < 0) | (ids.values >= vocab_size)
        yield f"{records.INPUT_IDS}: expected ids below {vocab_size}", ids.any(outside)
        first = segments.values[segments.starts].astype(np.int64)
        bad = (segments.sums() != ids.counts) | segments.any(segments.values < 2) | (first < 3)
        yield f"{records.SEGMENT_LENGTHS}: expected lengths that add up to the input's", bad
        # The position of the first segment's [SEP], inside the input even if its length is wrong.
        ends = np.clip(first, 1, ids.counts) - 1
        bad = (
            (ids.values[ids.starts] != special["cls"])
            | (ids.values[ids.starts + ends] != special["sep"])
            | (ids.values[ids.starts + ids.counts - 1] != special["sep"])
        )
        problem = "expected [CLS] first and [SEP] at the end of each segment"
        yield f"{records.INPUT_IDS}: {problem}", bad
        if records.WORD_STARTS in examples[0]:
            starts = self._column(records.WORD_STARTS, examples)
            yield from _position_problems(records.WORD_STARTS, starts, ids.counts, ends)
            return
        positions = self._column(records.MASKED_LM_POSITIONS, examples)
        yield from _position_problems(records.MASKED_LM_POSITIONS, positions, ids.counts, ends)
        yield from self._mask_problems(examples, ids, positions)

    def _mask_problems(
        self, examples: Sequence[Features], ids: Column, positions: Column
    ) -> Problems:
        vocab_size = self.manifest.vocab.size
        inside = np.minimum(positions.values, ids.counts[positions.owners] - 1)
        masked_ids = ids.values[ids.starts[positions.owners] + inside]
        is_mask = masked_ids == self.manifest.special_ids["mask"]
        bad = positions.any(~is_mask & self._is_special(masked_ids))
        yield f"{records.INPUT_IDS}: expected [MASK] or an ordinary token at masked positions", bad
        labels = self._column(records.MASKED_LM_IDS, examples)
        outside = (labels.values < 0) | (labels.values >= vocab_size)
        yield f"{records.MASKED_LM_IDS}: expected ids below {vocab_size}", labels.any(outside)
        bad = labels.any(self._is_special(labels.values))
        yield f"{records.MASKED_LM_IDS}: expected ordinary tokens", bad
        share = self.manifest.flags.get("masked_lm_prob")
        if isinstance(share, float) and 0.0 < share <= 1.0:
            # The limit of `pipeline.masking.masks.MaskingPolicy`; both round halves to even.
            max_positions = np.maximum(1, np.rint(ids.counts * share))
            problem = f"expected at most {share:g} of the tokens masked"
            yield f"{records.MASKED_LM_POSITIONS}: {problem}", positions.counts > max_positions

    def _is_special(self, ids: np.ndarray) -> np.ndarray:
        """Returns whether each id is a special token; ids out of range are not."""
        inside = (ids >= 0) & (ids < len(self.is_special))
        return inside & self.is_special[np.where(inside, ids, 0)]

    # Teacher targets.

    def _teacher_blocks(self, examples: Sequence[Features]) -> Iterator[tuple[int, int]]:
        """Yields the bounds of blocks of records that are decoded together."""
        positions = self._column(records.MASKED_LM_POSITIONS, examples).counts
        if isinstance(self.codec, StatesCodec):
            # Head states are expanded to all tokens only at the first position of a record.
            positions = np.ones_like(positions)
        ids = np.cumsum(positions * self.codec.truncation_factor)
        begin = 0
        while begin < len(examples):
            before = ids[begin - 1] if begin else 0
            end = int(np.searchsorted(ids, before + _MAX_DECODED_IDS, side="right"))
            yield begin, max(end, begin + 1)
            begin = max(end, begin + 1)

    def _state_problems(self, examples: Sequence[Features]) -> Problems:
        """Yields the problems of records with head states."""
        positions = self._column(records.MASKED_LM_POSITIONS, examples)
        packing, num_positions = self.codec.packing, len(positions.values)
        joined = {
            feature.name: b"".join([example[feature.name] for example in examples])
            for feature in packing.stored
        }
        label_log_probs = self._column(records.LABEL_LOG_PROBS, examples).values.astype("<f4")
        labels = self._column(records.MASKED_LM_IDS, examples).values
        with np.errstate(invalid="ignore", over="ignore"):
            states = packing.decode(joined, num_positions)
            for problem, bad in state_problems(
                self.codec, states, labels, label_log_probs, positions.starts
            ):
                yield problem, positions.any(bad)
            if records.HEAD_SCALES in joined:
                scales = self._column(records.HEAD_SCALES, examples)
                yield (
                    f"{records.HEAD_SCALES}: expected no negative numbers",
                    scales.any(scales.values < 0),
                )
        hidden = self._hidden_states(examples, num_positions)
        if hidden is not None:
            bad = ~np.isfinite(hidden).all(axis=(1, 2))
            yield f"{records.HIDDEN_STATES}: expected finite numbers", positions.any(bad)

    def _hidden_states(self, examples: Sequence[Features], num_positions: int) -> np.ndarray | None:
        """Returns the hidden states of records, [positions, G, D]; None if none are cached."""
        hidden_codec = self.manifest.teacher_info.hidden_codec()
        if hidden_codec is None:
            return None
        names = [feature.name for feature in hidden_codec.stored]
        joined = {name: b"".join([example[name] for example in examples]) for name in names}
        return hidden_codec.decode(joined, num_positions)

    def _teacher_problems(self, examples: Sequence[Features]) -> Problems:
        if isinstance(self.codec, StatesCodec):
            yield from self._state_problems(examples)
            return
        positions = self._column(records.MASKED_LM_POSITIONS, examples)
        counts = positions.counts.tolist()
        try:
            ids, logits = self.codec.decode_records(examples, counts)
        except (KeyError, ValueError):
            yield from self._undecodable(examples, counts)
            return
        info, num_positions = self.manifest.teacher_info, len(ids)
        labels = self._column(records.MASKED_LM_IDS, examples).values
        targets = TeacherTargets(
            ids=ids,
            logits=logits,
            log_tail_masses=self._column(records.LOG_TAIL_MASSES, examples).values.reshape(
                num_positions, -1
            ),
            label_log_probs=self._column(records.LABEL_LOG_PROBS, examples).values.astype("<f4"),
            temperatures=info.temperatures,
            hidden_states=self._hidden_states(examples, num_positions),
        )
        rows = TopKRows.of(targets, self.codec, labels)
        for problem, bad in topk_problems(rows, info, self.manifest.vocab.size):
            yield problem, positions.any(bad)

    def _undecodable(self, examples: Sequence[Features], counts: Sequence[int]) -> Problems:
        """Yields the problem of records that cannot be decoded, and those of the others."""
        reasons: dict[int, str] = {}
        for index, (example, count) in enumerate(zip(examples, counts, strict=True)):
            try:
                self.codec.decode_records([example], [count])
            except (KeyError, ValueError) as error:
                reasons[index] = str(error)
        is_undecodable = np.isin(np.arange(len(examples)), list(reasons))
        yield reasons[min(reasons)], is_undecodable
        decodable = np.flatnonzero(~is_undecodable)
        bad = np.zeros(len(examples), bool)
        others = [examples[index] for index in decodable]
        for problem, bad_among_others in self._teacher_problems(others) if others else ():
            bad[:] = False
            bad[decodable] = bad_among_others
            yield problem, bad.copy()


def _wrong_count(
    feature: Feature, counts: np.ndarray, expected: int | np.ndarray, bad: np.ndarray
) -> str:
    """Returns the problem of the first record whose feature has a wrong length."""
    if not bad.any():
        return ""
    index = int(bad.argmax())
    first = expected if isinstance(expected, int) else int(expected[index])
    return f"{feature.name}: expected {first} numbers, received {counts[index]}"


def _position_problems(
    name: str, positions: Column, lengths: np.ndarray, ends: np.ndarray
) -> Problems:
    """Yields the problems of positions, which must be those of a window's own tokens.

    `lengths`, int [n], are the lengths of the inputs, and `ends`, int [n], the positions of the
    first `[SEP]` of each.
    """
    owners, values = positions.owners, positions.values.astype(np.int64)
    yield f"{name}: expected ascending positions", positions.not_ascending()
    yield f"{name}: expected positions inside the input", positions.any(values >= lengths[owners])
    on_special = (values == 0) | (values == lengths[owners] - 1) | (values == ends[owners])
    yield f"{name}: expected positions of tokens, not of [CLS] or [SEP]", positions.any(on_special)
