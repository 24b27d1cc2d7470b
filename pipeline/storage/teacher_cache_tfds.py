"""A cache directory as a TensorFlow dataset, read where it lies.

    builder = teacher_cache_tfds.TeacherCache("cache")
    builder.info.splits["train"].num_examples
    for example in tfds.as_numpy(builder.as_dataset(split="eval[:10]")):
        example["topk_ids"]

Nothing is copied and nothing is written into the directory.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.base.location import BucketLocation, Location
from pipeline.storage import manifest as manifests
from pipeline.storage.manifest import Manifest

_FILE_TEMPLATE = "{SPLIT}-{SHARD_X_OF_Y}.{FILEFORMAT}"


class _CacheInfo(tfds.core.DatasetInfo):
    """What is known of a cache: all of it is in the manifest."""

    def initialize_from_bucket(self) -> None:
        """Does not ask any server, unlike other datasets."""


class TeacherCache(FileReaderBuilder, skip_registration=True):
    """A read-only `tfds.core.DatasetBuilder` over a teacher cache, or over masked examples.

    An example holds the features of `data_specs.records` as arrays of their
    dtypes, unpadded: `input_ids` [L], `masked_lm_positions` [P], `topk_ids` and
    `topk_logits` [P, K], `log_tail_masses` [P, T] and so on. Splits, also such as
    `train[:10%]`, and shards are the directory's own; `info.metadata` is the
    manifest.

    Args:
        directory: a complete cache directory.

    Raises:
        InputError: it is none, a shard is missing or of another size, or its arrays
            have no plain shape.
    """

    name = records.TEACHER_CACHE
    VERSION = tfds.core.Version(f"{manifests.FORMAT_VERSION}.0.0")

    def __init__(self, directory: Location) -> None:
        if isinstance(directory, BucketLocation):
            raise InputError(
                directory,
                "a directory of this machine",
                hint="pipeline.storage.reader reads shards in a bucket, too",
            )
        self._manifest = manifests.load(directory)
        _expect_plain_arrays(directory, self._manifest)
        manifests.verify(directory, self._manifest, full=False)
        super().__init__(data_dir=str(directory.resolve()))
        # What a copy in another process is made from.
        self._original_state = {"directory": str(directory)}

    def _build_data_dir(self, data_dir: str) -> tuple[str, str]:
        return data_dir, data_dir

    def _info(self) -> tfds.core.DatasetInfo:
        manifest = self._manifest
        info = _CacheInfo(
            builder=self,
            description=f"{manifest.kind}: {manifest.num_examples('train')} train examples of at "
            f"most {manifest.max_seq_length} tokens.",
            features=tfds.features.FeaturesDict(
                {feature.name: _tensor_feature(feature, manifest) for feature in manifest.features}
            ),
            metadata=tfds.core.MetadataDict(manifest.to_json()),
        )
        template = tfds.core.ShardedFileTemplate(
            data_dir=self.data_path,
            template=_FILE_TEMPLATE,
            dataset_name=self.name,
            filetype_suffix="tfrecord",
        )
        info.set_splits(
            tfds.core.splits.SplitDict(
                [
                    tfds.core.SplitInfo(
                        name=split,
                        shard_lengths=_shard_lengths(shards),
                        num_bytes=sum(shard.bytes for shard in shards),
                        filename_template=template,
                    )
                    for split, shards in manifest.splits.items()
                ]
            )
        )
        return info

    def is_prepared(self) -> bool:
        """Always: an incomplete directory is refused at the start."""
        return True

    def _download_and_prepare(self, **options: Any) -> None:
        raise InputError(self.data_dir, received="a cache is made by create_teacher_output_data")


def _expect_plain_arrays(directory: Location, manifest: Manifest) -> None:
    info = manifest.teacher_info
    if info is not None and (info.logit_encoding != "float16" or info.variable):
        kept = "fewer than k ids at some positions" if info.variable else info.logit_encoding
        raise InputError(
            directory,
            "a teacher cache of `logit_encoding`=float16 with k ids at each position",
            kept,
            hint="pipeline.storage.reader reads it",
        )


def _shard_lengths(shards: Sequence[manifests.ShardInfo]) -> list[int]:
    """Returns the examples of every shard that the names count; 0 for one that is not there.

    A cache of `--input_file=…/train-0000?-of-00040.tfrecord` has some of 40 only.
    """
    places = [manifests.shard_place(shard.file) for shard in shards]
    lengths = [0] * max(count for _, count in places)
    for shard, (index, _) in zip(shards, places, strict=True):
        lengths[index] = shard.num_examples
    return lengths


def _tensor_feature(feature: records.Feature, manifest: Manifest) -> tfds.features.Tensor:
    info = manifest.teacher_info
    # Letters of a shape that are known from the manifest; others vary.
    sizes = {} if info is None else info.sizes
    shape = tuple(
        int(letter) if letter.isdigit() else sizes.get(letter) for letter in feature.shape
    )
    dtype = np.dtype(feature.numpy_dtype(manifest.vocab.size)).newbyteorder("=")
    return tfds.features.Tensor(
        shape=shape,
        dtype=dtype.type,
        encoding=tfds.features.Encoding.BYTES,
        doc=tfds.features.Documentation(desc=feature.meaning),
    )
