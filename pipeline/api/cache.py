"""Reads a shard directory as typed records, or as a TensorFlow dataset of batches."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from data_specs.records import UNMASKED_WINDOWS
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.storage import cache_input, serialization
from pipeline.storage.codecs import TopKCodec
from pipeline.storage.manifest import Manifest, ShardInfo
from pipeline.storage.records import MaskedExample, TeacherTargets, Window, decode_embedding

if TYPE_CHECKING:
    import tensorflow as tf

    from pipeline.tokenizers.tokens import Tokenizer

_SHUFFLE_BUFFER = 10_000


@dataclasses.dataclass(frozen=True, eq=False)
class CachedExample(MaskedExample):
    """A masked example with the teacher targets of its masked positions.

    Attributes:
        targets: the teacher targets; None in a directory of masked examples.
        embedding: float32 [D], the teacher's embedding of the text before masking; None if the
            cache has none.
    """

    targets: TeacherTargets | None = dataclasses.field(default=None, kw_only=True)
    embedding: np.ndarray | None = dataclasses.field(default=None, kw_only=True)


class Cache:
    """A complete directory of masked examples or unmasked windows, or a teacher cache.

    Args:
        path: the directory, on this machine or in a bucket.

    Attributes:
        directory: location of the directory.
        manifest: the manifest, with splits, vocabulary and settings.

    Raises:
        InputError: the directory does not exist, or is not complete.

    Example:
        This prints the teacher's three most probable tokens at the masked positions of an
        example:

        cache = Cache("cache")
        example = next(cache.examples("eval"))
        probabilities, rest = example.targets.probabilities(temperature=1.0, k=3)
        for position, ids in zip(example.masked_lm_positions, example.targets.ids[:, :3]):
            print(position, cache.tokens(ids))
    """

    def __init__(self, path: str) -> None:
        self._input = cache_input.open_cache(Location.parse(path), None)
        self.directory: Location = self._input.directory
        self.manifest: Manifest = self._input.manifest

    def examples(self, split: str) -> Iterator[CachedExample | Window]:
        """Yields the records of a split in stored order.

        Args:
            split: "train" or "eval".

        Raises:
            InputError: the split does not exist, or a file or a record is damaged.
        """
        kind = Window if self.manifest.kind == UNMASKED_WINDOWS else CachedExample
        for shard in self._shards(split):
            path = self.directory / shard.file
            for index, record in enumerate(serialization.read_records(path)):
                try:
                    yield self._with_targets(kind.from_record(record, self.manifest))
                except (KeyError, ValueError) as error:
                    received = f"broken record {index}: {error}"
                    hint = "run offline_distill verify_cache"
                    raise InputError(path, received=received, hint=hint) from error

    def dataset(self, split: str, *, batch_size: int, seed: int | None = None) -> "tf.data.Dataset":
        """Returns a dataset of batches of padded tensors.

        For the names of the tensors, see `pipeline.storage.reader.parse_batch`.

        Args:
            split: "train" or "eval".
            batch_size: number of examples in a batch.
            seed: seed of an endless, shuffled dataset; None for one epoch in stored order.

        Example:
            for batch in Cache("cache").dataset("train", batch_size=32, seed=1).take(10):
                print({name: tensor.shape for name, tensor in batch.items()})
        """
        from pipeline.storage import reader

        self._shards(split)
        if seed is None:
            records = reader.evaluation_records(self._input, split)
        else:
            records = reader.training_records(
                self._input, split, seed=seed, start=0, buffer=_SHUFFLE_BUFFER
            ).map(lambda record, epoch: record)
        return records.batch(batch_size).map(
            lambda batch: reader.parse_batch(batch, self.manifest, self._codec)
        )

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Returns the tokens of token ids."""
        return [self._tokenizer.vocab[index] for index in ids]

    def _shards(self, split: str) -> tuple[ShardInfo, ...]:
        if split not in self.manifest.splits:
            expected = f"one of the splits {', '.join(self.manifest.splits)}"
            raise InputError(self.directory, expected, split)
        return self.manifest.splits[split]

    def _with_targets(self, example: CachedExample | Window) -> CachedExample | Window:
        if self._codec is None:
            return example
        targets = TeacherTargets.from_features(
            example.features, self._codec, self.manifest.teacher_info
        )
        embedding = decode_embedding(example.features, self.manifest.teacher_info)
        return dataclasses.replace(example, targets=targets, embedding=embedding)

    @functools.cached_property
    def _codec(self) -> TopKCodec | None:
        if self.manifest.teacher_info is None:
            return None
        return cache_input.open_codec(self.directory, self.manifest)

    @functools.cached_property
    def _tokenizer(self) -> "Tokenizer":
        from pipeline.storage.cache_tokenizer import load_cache_tokenizer

        return load_cache_tokenizer(self._input)
