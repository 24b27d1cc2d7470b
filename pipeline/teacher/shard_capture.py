"""What the teacher says of one shard of masked examples, as records of the cache."""

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import keras
import numpy as np

from data_specs import records
from pipeline.base.errors import InputError, Setting
from pipeline.base.prefetch import ahead
from pipeline.models.formats import model_directory
from pipeline.models.group_means import mean_state
from pipeline.models.masked_lm import LOGITS, MaskedLM, gather_positions
from pipeline.storage import cache_input, serialization
from pipeline.storage import manifest as manifests
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.codecs import HIDDEN_CODECS, HiddenCodec
from pipeline.storage.codecs.base import TopKCodec
from pipeline.storage.manifest import SAMPLED, Manifest, TeacherInfo
from pipeline.storage.records import MaskedExample, read_examples
from pipeline.teacher import inference, sampling, truncation
from pipeline.teacher.cache_request import find_groups, truncation_factor
from pipeline.teacher.settings import TeacherCacheConfig

Written = TypeVar("Written")

# Targets held in memory: the examples of a block are sorted by length, so that
# more would batch better.
_BLOCK_BYTES = 128 * 2**20


@dataclasses.dataclass(frozen=True)
class _TeacherBatch:
    """What the teacher says of some examples of a block.

    Attributes:
        block: the examples.
        indices: which of them are the batch's.
        output: as `Capture.forward` returns it.
    """

    block: Sequence[MaskedExample]
    indices: np.ndarray
    output: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Capture:
    """Turns records of masked examples into records of the teacher cache.

    Attributes:
        manifest: of the masked examples.
        batch_size: B.
        codec: packs the top-k.
        hidden_codec: packs the hidden states; None without.
        forward: the compiled teacher, from a batch to what is kept of it.
        num_draws: draws at a position where `forward` keeps all logits; None where
            it keeps the top-k.
        is_measured: whether shards say what was measured of their records.
        on_examples: called with the number of examples just done.
    """

    manifest: Manifest
    batch_size: int
    codec: TopKCodec
    hidden_codec: HiddenCodec | None
    forward: Callable[[inference.Arrays], dict[str, np.ndarray]]
    num_draws: int | None
    is_measured: bool
    on_examples: Callable[[int], None]

    def records(
        self, examples: Iterator[MaskedExample], measured: collections.Counter[str]
    ) -> Iterator[bytes]:
        """Yields the cache's record for each masked example, in order.

        Args:
            examples: the masked examples.
            measured: as `ShardInfo.measured`; each record is added before it comes.
        """
        # Reading, the teacher, and packing with writing go on at the same time.
        blocks = ahead(self._read_blocks(examples), depth=1)
        done: list[tuple[int, bytes]] = []
        for batch in ahead(self._run_teacher(blocks)):
            batched = [batch.block[index] for index in batch.indices]
            features = self._features(batch.output, batched)
            for index, example, added in zip(batch.indices, batched, features, strict=True):
                manifests.measure_record(measured, added, self.codec.truncation_factor)
                record = serialization.encode_example({**example.features, **added})
                done.append((index, record))
            self.on_examples(len(batched))
            if len(done) == len(batch.block):
                yield from (record for _, record in sorted(done))
                done = []

    def _read_blocks(self, examples: Iterator[MaskedExample]) -> Iterator[list[MaskedExample]]:
        """Yields examples that are sorted by length together, in their order."""
        position_bytes = self.codec.truncation_factor * 8
        if self.hidden_codec is not None:
            position_bytes += self.hidden_codec.num_groups * self.hidden_codec.hidden_size * 4
        example_bytes = self.manifest.max_predictions_per_seq * position_bytes
        batches = max(1, _BLOCK_BYTES // (example_bytes * self.batch_size))
        while block := list(itertools.islice(examples, batches * self.batch_size)):
            yield block

    def _run_teacher(self, blocks: Iterable[Sequence[MaskedExample]]) -> Iterator[_TeacherBatch]:
        for block in blocks:
            lengths = [len(example.input_ids) for example in block]
            for indices in inference.length_batches(lengths, self.batch_size):
                batch = inference.build_batch(
                    [block[index] for index in indices],
                    batch_size=self.batch_size,
                    max_seq_length=self.manifest.max_seq_length,
                    max_predictions_per_seq=self.manifest.max_predictions_per_seq,
                )
                yield _TeacherBatch(block, indices, self.forward(batch))

    def _features(
        self, output: Mapping[str, np.ndarray], examples: Sequence[MaskedExample]
    ) -> list[dict[str, bytes]]:
        """Returns what the cache adds to each example of a batch."""
        counts = np.array([len(example.masked_lm_ids) for example in examples])
        width = output[records.LABEL_LOG_PROBS].shape[1]
        real = np.arange(width) < counts[:, None]
        kept = {name: value[: len(examples)][real] for name, value in output.items()}
        said = kept[records.TOPK_LOGITS] if self.num_draws is None else kept.pop(LOGITS)
        if not np.isfinite(said).all():
            raise InputError(
                Setting("teacher"),
                "finite logits",
                "NaN or infinity",
                hint="is the checkpoint damaged, or does `compute_dtype` not suit it?",
            )
        if self.num_draws is not None:
            seed = self.manifest.seed
            drawn = sampling.sample_positions(said, examples, seed=seed, num_draws=self.num_draws)
            kept.update(drawn)
        return self._pack(kept, np.concatenate([[0], np.cumsum(counts)]))

    def _pack(
        self, kept: Mapping[str, np.ndarray], row_splits: np.ndarray
    ) -> list[dict[str, bytes]]:
        """Returns the features of each example."""
        packed = self.codec.encode(kept[records.TOPK_IDS], kept[records.TOPK_LOGITS], row_splits)
        hidden: list[dict[str, bytes]] = [{} for _ in packed]
        if self.hidden_codec is not None:
            hidden = self.hidden_codec.encode(kept[records.HIDDEN_STATES], row_splits)
        tails = kept[records.LOG_TAIL_MASSES].astype("<f4")
        labels = kept[records.LABEL_LOG_PROBS].astype("<f2")
        for features, states, (begin, end) in zip(
            packed, hidden, itertools.pairwise(row_splits), strict=True
        ):
            features.update(states)
            features[records.LOG_TAIL_MASSES] = tails[begin:end].tobytes()
            features[records.LABEL_LOG_PROBS] = labels[begin:end].tobytes()
        return packed


def _hidden_codec(
    config: TeacherCacheConfig, source: model_directory.ModelSource
) -> HiddenCodec | None:
    groups = find_groups(config, source)
    if not groups:
        return None
    return HIDDEN_CODECS[config.hidden_encoding](len(groups), source.config.hidden_size)


def keep_function(
    config: TeacherCacheConfig, source: model_directory.ModelSource
) -> Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]:
    """Returns what takes the teacher's outputs of a batch to what is kept of them.

    Args:
        config: what was asked for.
        source: the teacher.
    """
    groups = find_groups(config, source)

    def keep(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        sampled = config.truncation == SAMPLED
        kept = truncation.truncate(
            outputs[LOGITS],
            batch[records.MASKED_LM_IDS],
            truncation_factor=1 if sampled else truncation_factor(config, source),
            temperatures=config.temperatures,
            truncation_mass=config.truncation_mass,
        )
        if sampled:
            # The draws are NumPy's: the same on any backend.
            kept[LOGITS] = outputs[LOGITS]
        if groups:
            means = [mean_state(outputs[records.HIDDEN_STATES], group) for group in groups]
            places = batch[records.MASKED_LM_POSITIONS]
            kept[records.HIDDEN_STATES] = keras.ops.stack(
                [gather_positions(mean, places) for mean in means], axis=2
            )
        return kept

    return keep


def make_capture(
    config: TeacherCacheConfig,
    cache: CacheInput,
    source: model_directory.ModelSource,
    model: MaskedLM,
    info: TeacherInfo,
) -> Capture:
    """Returns what makes the shards of a cache; it tells nobody of its progress.

    Args:
        config: what was asked for; its directory holds what the codec needs.
        cache: the masked examples.
        source: the teacher.
        model: its weights.
        info: what the cache will hold.
    """
    return Capture(
        manifest=cache.manifest,
        batch_size=config.predict_batch_size,
        codec=cache_input.make_codec(config.output_dir, info, source.config.vocab_size),
        hidden_codec=_hidden_codec(config, source),
        forward=inference.compile_forward(model, keep_function(config, source)),
        num_draws=info.truncation_factor if info.truncation == SAMPLED else None,
        is_measured=manifests.varies_in_size(info),
        on_examples=lambda count: None,
    )


def capture_shard(
    capture: Capture,
    path: pathlib.Path,
    write: Callable[[str, Iterator[bytes], Mapping[str, int] | None], Written],
) -> Written:
    """Makes one shard.

    Args:
        capture: the teacher.
        path: the shard of masked examples; that of the cache has its name.
        write: `writer.write_shard` or `writer.stage_shard`, but for the directory.

    Returns:
        what `write` returned.
    """
    measured: collections.Counter[str] = collections.Counter()
    serialized = capture.records(read_examples(path, capture.manifest), measured)
    return write(path.name, serialized, measured if capture.is_measured else None)
