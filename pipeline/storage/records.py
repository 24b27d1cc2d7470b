"""Typed records: masked examples, unmasked windows and teacher targets.

The features of a record are bytes. These classes decode them to arrays, and encode arrays to
bytes. Letters as in `data_specs.records`.

Example: print the teacher's three most probable tokens at the masked positions of each record.

    manifest = manifests.load(directory)
    codec = cache_input.open_codec(directory, manifest)
    path = directory / manifest.splits["eval"][0].file
    for example in read_examples(path, manifest):
        targets = TeacherTargets.from_features(example.features, codec, manifest.teacher_info)
        p, rest = targets.probabilities(1.0, k=3)
        print(example.masked_lm_positions, targets.ids[:, :3], p, rest)

`arrays.Column` decodes one feature of many records at once. In a TensorFlow graph,
`pipeline.storage.reader.parse_batch` decodes a batch.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Self

import numpy as np

from data_specs import records
from data_specs.records import Feature
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.storage import arrays, serialization
from pipeline.storage import manifest as manifests
from pipeline.storage.codecs import HiddenCodec, TopKCodec
from pipeline.storage.codecs.base import NO_ID, TargetCodec
from pipeline.storage.codecs.states import StatesCodec
from pipeline.storage.manifest import Manifest, TeacherInfo

_POSITIONS = records.MASKED_EXAMPLE_FEATURES[3]
_TAILS, _LABELS = records.MASS_FEATURES


@dataclasses.dataclass(frozen=True, eq=False)
class _Input:
    """The features that masked examples and unmasked windows share.

    Attributes:
        example_id: 16 bytes.
        input_ids: int [L], with [CLS] and [SEP].
        segment_lengths: uint16 [S], with [CLS] and [SEP].
        features: all features of the record that was read, in a teacher cache also the targets;
            empty if it was not read from a record.
        declared: the features of this kind of record, in the order of these attributes.
    """

    example_id: bytes
    input_ids: np.ndarray
    segment_lengths: np.ndarray
    features: Mapping[str, bytes] = dataclasses.field(
        default_factory=dict, repr=False, kw_only=True
    )

    declared: ClassVar[tuple[Feature, ...]]

    @classmethod
    def from_features(cls, features: Mapping[str, bytes], vocab_size: int) -> Self:
        """Decodes the features of a record; features of other kinds are ignored.

        The size of the vocabulary, V, decides the dtype of ids.

        Raises:
            KeyError: a feature is missing.
            ValueError: a feature is malformed, or features contradict each other.
        """
        values = {
            feature.name: arrays.decode(feature, features[feature.name], vocab_size)
            for feature in cls.declared
        }
        values[records.EXAMPLE_ID] = features[records.EXAMPLE_ID]
        record = cls(**values, features=features)
        record._check(vocab_size)
        return record

    def to_features(self, vocab_size: int) -> dict[str, bytes]:
        """Returns the features of this record, without teacher targets."""
        features = {
            feature.name: arrays.encode(feature, getattr(self, feature.name), vocab_size)
            for feature in self.declared
            if feature.name != records.EXAMPLE_ID
        }
        return {records.EXAMPLE_ID: self.example_id, **features}

    @classmethod
    def from_record(cls, record: bytes, manifest: Manifest) -> Self:
        """Decodes a serialized record of the shard directory with this manifest.

        Raises:
            KeyError: a feature is missing.
            ValueError: a feature is malformed, features contradict each other, or the record is
                longer than the manifest allows.
        """
        example = cls.from_features(serialization.decode_example(record), manifest.vocab.size)
        for name, limit in (
            (records.INPUT_IDS, manifest.max_seq_length),
            (records.MASKED_LM_IDS, manifest.max_predictions_per_seq),
        ):
            count = len(getattr(example, name, ()))
            if count > limit:
                raise ValueError(f"expected at most {limit} {name}, received {count}")
        return example

    def _check(self, vocab_size: int) -> None:
        length, id_bytes = len(self.input_ids), len(self.example_id)
        if id_bytes != 16:
            raise ValueError(f"{records.EXAMPLE_ID}: expected 16 bytes, received {id_bytes}")
        if not len(self.segment_lengths) or self.segment_lengths.sum() != length:
            raise ValueError(
                f"expected segment lengths that sum to {length}, received "
                f"{len(self.segment_lengths)} with the sum {self.segment_lengths.sum()}"
            )
        _expect_ids(self.input_ids, vocab_size)


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedExample(_Input):
    """A masked example, or the input of a record of a teacher cache.

    Attributes:
        masked_lm_positions: uint16 [P], the masked positions in `input_ids`, ascending.
        masked_lm_ids: int [P], the true tokens at these positions.
    """

    masked_lm_positions: np.ndarray
    masked_lm_ids: np.ndarray

    declared: ClassVar[tuple[Feature, ...]] = records.MASKED_EXAMPLE_FEATURES

    def true_ids(self) -> np.ndarray:
        """Returns the tokens before masking, int [L]."""
        tokens = self.input_ids.copy()
        tokens[self.masked_lm_positions] = self.masked_lm_ids
        return tokens

    def _check(self, vocab_size: int) -> None:
        super()._check(vocab_size)
        positions, length = self.masked_lm_positions, len(self.input_ids)
        if len(positions) != len(self.masked_lm_ids) or positions.max(initial=0) >= length:
            raise ValueError(
                f"expected one label per masked position and positions below {length}, received "
                f"{len(self.masked_lm_ids)} labels and {len(positions)} positions up to "
                f"{positions.max(initial=0)}"
            )
        _expect_ids(self.masked_lm_ids, vocab_size)


@dataclasses.dataclass(frozen=True, eq=False)
class Window(_Input):
    """An unmasked window.

    Attributes:
        word_starts: uint16 [W], the positions in `input_ids` where words begin, ascending.
    """

    word_starts: np.ndarray

    declared: ClassVar[tuple[Feature, ...]] = records.UNMASKED_WINDOW_FEATURES

    def _check(self, vocab_size: int) -> None:
        super()._check(vocab_size)
        if self.word_starts.max(initial=0) >= max(1, len(self.input_ids)):
            raise ValueError(
                f"{records.WORD_STARTS}: expected positions below {len(self.input_ids)}, received "
                f"{self.word_starts.max()}"
            )


def _expect_ids(ids: np.ndarray, vocab_size: int) -> None:
    if ids.min(initial=0) < 0 or ids.max(initial=0) >= vocab_size:
        raise ValueError(
            f"expected token ids from 0 to {vocab_size - 1}, received {ids.min()} to {ids.max()}"
        )


def read_examples(path: Location, manifest: Manifest) -> Iterator[MaskedExample]:
    """Yields the masked examples of a shard, which may be of a teacher cache.

    Raises:
        InputError: the file or a record is damaged; the message names the shard and the record.
    """
    with manifests.adding_remedy(manifest):
        for index, record in enumerate(serialization.read_records(path)):
            try:
                example = MaskedExample.from_record(record, manifest)
            except (KeyError, ValueError) as error:
                raise InputError(path, received=f"broken record {index}: {error}") from error
            yield example


def decode_embedding(features: Mapping[str, bytes], info: TeacherInfo) -> np.ndarray | None:
    """Decodes the embedding of a record of a teacher cache, float32 [D]; None if none is cached.

    Raises:
        KeyError: the feature is missing.
        ValueError: the feature is malformed.
    """
    if info.embedding is None:
        return None
    feature = records.EMBEDDING_FEATURE
    values = arrays.decode(feature, features[feature.name], vocab_size=0).astype(np.float32)
    if len(values) != info.hidden_size or not np.isfinite(values).all():
        expected = f"expected {info.hidden_size} finite numbers"
        raise ValueError(f"{feature.name}: {expected}, received {len(values)}")
    return values


@dataclasses.dataclass(frozen=True, eq=False)
class TeacherTargets:
    """The cached teacher targets at the masked positions of one record, or of several.

    Attributes:
        ids: int32 [P, K], descending by logit. A row of fewer ids is padded with `NO_ID`.
        logits: float32 [P, K], relative to the largest of their row; `NO_ID_LOGIT` at padding.
        log_tail_masses: float32 [P, T], the log of the mass outside the ids.
        label_log_probs: float32 [P], the log-probability of the label at temperature 1.
        temperatures: T numbers, ascending from 1; empty if the ids are all tokens, so the tail
            is empty at any temperature.
        hidden_states: float32 [P, G, D]; None if none are cached.
        head_states: float32 [P, E], to encode instead of ids and logits; None otherwise, and in
            decoded targets.
    """

    ids: np.ndarray
    logits: np.ndarray
    log_tail_masses: np.ndarray
    label_log_probs: np.ndarray
    temperatures: tuple[float, ...]
    hidden_states: np.ndarray | None = None
    head_states: np.ndarray | None = None

    @property
    def counts(self) -> np.ndarray:
        """int64 [P]: the number of ids at each position."""
        return np.count_nonzero(self.ids != NO_ID, axis=-1)

    @classmethod
    def from_features(
        cls, features: Mapping[str, bytes], codec: TargetCodec, info: TeacherInfo
    ) -> Self:
        """Decodes the targets of a record of a teacher cache; `open_codec` returns its codec.

        Raises:
            KeyError: a feature is missing.
            ValueError: a feature is malformed, features contradict each other, or a number is
                NaN or infinite. The log of a mass of 0 may be −inf.
        """
        positions = arrays.decode(_POSITIONS, features[_POSITIONS.name], codec.vocab_size)
        count, hidden_codec = len(positions), info.hidden_codec()
        ids, logits = codec.decode(features, count)
        masses = {}
        for feature, per_position in ((_TAILS, len(info.temperatures)), (_LABELS, 1)):
            # A cache without temperatures has no feature of tail masses.
            content = features[feature.name] if per_position else b""
            values = arrays.decode(feature, content, codec.vocab_size)
            if len(values) != count * per_position:
                expected = f"expected {count * per_position} numbers"
                raise ValueError(f"{feature.name}: {expected}, received {len(values)}")
            masses[feature.name] = values.astype(np.float32)
        masses[_TAILS.name] = masses[_TAILS.name].reshape(count, len(info.temperatures))
        hidden = None if hidden_codec is None else hidden_codec.decode(features, count)
        targets = cls(ids, logits, **masses, temperatures=info.temperatures, hidden_states=hidden)
        targets._expect_numbers()
        return targets

    @classmethod
    def join(cls, targets: Sequence[Self]) -> Self:
        """Concatenates the targets of several records of one cache."""
        names = targets[0]._arrays()
        joined = {
            name: np.concatenate([vars(of_record)[name] for of_record in targets]) for name in names
        }
        return dataclasses.replace(targets[0], **joined)

    def __getitem__(self, positions: slice | np.ndarray) -> Self:
        """Returns the targets at some of the positions."""
        selected = {name: values[positions] for name, values in self._arrays().items()}
        return dataclasses.replace(self, **selected)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    def to_features(
        self,
        codec: TopKCodec | StatesCodec,
        row_splits: np.ndarray,
        hidden_codec: HiddenCodec | None = None,
    ) -> list[dict[str, bytes]]:
        """Encodes the targets of several records.

        Args:
            codec: packs the top-k, whose logits may be on any scale, or the head states.
            row_splits: int [records + 1], the boundaries of the records' positions.
            hidden_codec: packs the hidden states; None leaves them out.

        Returns:
            the features that a teacher cache adds to each record.

        Raises:
            ValueError: a position has no id, or fewer than K ids although their number is fixed.
        """
        packed_arrays = (self.ids, self.logits) if self.head_states is None else (self.head_states,)
        packed = codec.encode(*packed_arrays, row_splits)
        if hidden_codec is not None:
            states = hidden_codec.encode(self.hidden_states, row_splits)
            packed = [
                {**distribution, **hidden}
                for distribution, hidden in zip(packed, states, strict=True)
            ]
        masses = (_TAILS, _LABELS) if self.log_tail_masses.shape[-1] else (_LABELS,)
        for features, (begin, end) in zip(packed, itertools.pairwise(row_splits), strict=True):
            for feature in masses:
                values = getattr(self, feature.name)[begin:end]
                features[feature.name] = arrays.encode(feature, values, codec.vocab_size)
        return packed

    def log_tails(self, temperature: float) -> np.ndarray:
        """Returns the log of the mass outside the ids at a temperature, float32 [P].

        Raises:
            ValueError: no tail mass is cached at this temperature.
        """
        if not self.temperatures:
            return np.full(len(self.ids), -np.inf, np.float32)
        if temperature not in self.temperatures:
            raise ValueError(f"temperature: expected one of {self.temperatures}, got {temperature}")
        return self.log_tail_masses[:, self.temperatures.index(temperature)]

    def probabilities(
        self, temperature: float, k: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the teacher's probabilities of the first k ids, and the mass of all others.

        p_T = (1 − tail_T) · softmax_K(logits / T). If k is below K, the mass of the other ids
        joins the tail.

        Args:
            temperature: one of `temperatures`; any temperature if these are empty.
            k: number of ids; None for all K.

        Returns:
            probabilities, float64 [P, k], and the mass of the rest, float64 [P]; they sum to 1.

        Raises:
            ValueError: no tail mass is cached at this temperature.
        """
        log_tail = self.log_tails(temperature)
        scaled = self.logits.astype(np.float64) / temperature
        weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
        tail = np.exp(log_tail.astype(np.float64))
        probs = (1.0 - tail)[:, np.newaxis] * weights / weights.sum(axis=-1, keepdims=True)
        k = probs.shape[-1] if k is None else k
        return probs[:, :k], tail + probs[:, k:].sum(axis=-1)

    def _expect_numbers(self) -> None:
        # The log of a mass may be −inf, for a mass of 0.
        is_nan = np.isnan(self.log_tail_masses).any() or np.isnan(self.label_log_probs).any()
        if is_nan or not np.isfinite(self.logits).all():
            raise ValueError("expected numbers, received NaN or infinity")
        if self.hidden_states is not None and not np.isfinite(self.hidden_states).all():
            raise ValueError(f"{records.HIDDEN_STATES}: expected finite numbers")
