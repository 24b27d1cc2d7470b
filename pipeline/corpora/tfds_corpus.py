"""TensorFlow datasets as corpora: each example is a document, its text features are the text."""

import functools
import json
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

from data_specs.corpora import CorpusSource
from pipeline.base.errors import InputError, Setting
from pipeline.corpora.documents import Corpus, CorpusFile, RawDocument

_TRAIN = "train"


@functools.lru_cache(maxsize=8)
def _open_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Returns a dataset that is on this machine; it is downloaded if need be."""
    data_dir.expect_local()
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    # An unknown name, config or version: each has an error class of its own.
    except Exception as error:
        raise InputError(
            Setting("tfds_name"),
            "name[/config][:version] of a TensorFlow dataset (see "
            "https://www.tensorflow.org/datasets/catalog, or give `input_dir`, the "
            "folder of one's own)",
            f"{name!r} ({_first_line(error)})",
        ) from error
    if not builder.is_prepared():
        try:
            builder.download_and_prepare()
        # Whatever the dataset's own code does: no network, a missing package, …
        except Exception as error:
            raise InputError(
                Setting("tfds_name"),
                received=f"{name} is not in {builder.data_dir} and cannot be prepared "
                f"({_first_line(error)})",
            ) from error
    return builder


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def _text_features(builder: tfds.core.DatasetBuilder) -> tuple[str, ...]:
    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict):
        return ()
    return tuple(
        name
        for name, feature in features.items()
        if feature.shape == () and feature.tf_dtype == tf.string
    )


def choose_fields(source: CorpusSource) -> tuple[str, ...]:
    """Returns the features that are a dataset's text: those asked for, or the only one.

    Raises:
        InputError: there is no such dataset or feature, or several to choose from.
    """
    builder = _open_builder(source.tfds_name, source.input_dir)
    there = _text_features(builder)
    wanted = source.text_fields
    if wanted is None and len(there) == 1:
        return there
    missing = [name for name in wanted or () if name not in there]
    if wanted is None or missing:
        raise InputError(
            Setting("text_fields"),
            f"text features of {source.tfds_name}, which has {', '.join(there) or 'none'}",
            ", ".join(missing) or "none",
        )
    return wanted


def find_splits(corpus: Corpus) -> tuple[CorpusFile, ...]:
    """Returns the `train` split of a dataset, or all where there is none of that name.

    Raises:
        InputError: it holds no examples.
    """
    builder = _open_builder(corpus.tfds_name, corpus.tfds_dir)
    splits = builder.info.splits
    wanted = [_TRAIN] if _TRAIN in splits else sorted(splits)
    found = tuple(
        CorpusFile(corpus.tfds_name, name, splits[name].num_bytes, corpus)
        for name in wanted
        if splits[name].num_examples
    )
    if not found:
        raise InputError(Setting("tfds_name"), f"examples in {corpus.tfds_name}", "none")
    return found


def read_documents(file: CorpusFile) -> Iterator[tuple[RawDocument, int]]:
    """Yields a split's documents in their stored order, and about how many bytes were read.

    Raises:
        InputError: an example cannot be read.
    """
    corpus = file.corpus
    builder = _open_builder(corpus.tfds_name, corpus.tfds_dir)
    fields = corpus.spec.text_fields
    dataset = builder.as_dataset(
        split=file.name,
        shuffle_files=False,
        # One file after another: the same order on every machine.
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        decoders=tfds.decode.PartialDecoding(dict.fromkeys(fields, True)),
    )
    bytes_each = file.bytes / builder.info.splits[file.name].num_examples
    try:
        for ordinal, row in enumerate(tfds.as_numpy(dataset)):
            content = _row_json({name: row[name] for name in fields}, file, ordinal)
            yield (
                RawDocument(file, ordinal, f"{file.name} example {ordinal}", content),
                int(bytes_each * (ordinal + 1)),
            )
    except tf.errors.OpError as error:
        raise InputError(
            Setting("tfds_name"), received=f"{corpus.tfds_name}: {_first_line(error)}"
        ) from error


def _row_json(row: dict[str, Any], file: CorpusFile, ordinal: int) -> bytes:
    try:
        texts = {name: value.decode("utf-8") for name, value in row.items()}
    except UnicodeDecodeError as error:
        raise InputError(
            Setting("tfds_name"),
            received=f"{file.path}, {file.name} example {ordinal}: not UTF-8 ({error})",
        ) from error
    return json.dumps(texts, ensure_ascii=False).encode("utf-8")
