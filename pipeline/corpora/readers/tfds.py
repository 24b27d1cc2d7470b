"""TensorFlow datasets as corpora: each example is a document, its text features are the text.

TensorFlow is imported when a dataset is opened: other formats do not need it.
"""

import functools
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from data_specs.corpora import CorpusSource, CorpusSpec
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.corpora.documents import Corpus, CorpusFile, RawDocument
from pipeline.corpora.readers.base import Reader
from pipeline.corpora.readers.rows import row_text

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

TFDS = "tfds"
_TRAIN = "train"


class TfdsReader(Reader):
    """A dataset that `tfds_name` names; its files are the splits."""

    def resolve(self, source: CorpusSource, spec: CorpusSpec) -> CorpusSpec:
        """See `Reader`: the text fields are those asked for, or the only text feature."""
        if source.tfds_name is None:
            raise InputError(Setting("corpus_spec"), "`tfds_name` for reader: tfds", "none")
        return msgspec.structs.replace(spec, text_fields=_choose_fields(source))

    def find(self, source: CorpusSource, corpus: Corpus) -> tuple[CorpusFile, ...]:
        """See `Reader`: the `train` split of a dataset, or all where none has that name."""
        return _find_splits(corpus)

    def read(self, file: CorpusFile) -> Iterator[tuple[RawDocument, int]]:
        """See `Reader`: the examples in their stored order; the bytes are an estimate."""
        return _read_documents(file)

    def text(self, document: RawDocument) -> str:
        """See `Reader`."""
        return row_text(document)


@functools.lru_cache(maxsize=8)
def _open_builder(name: str, data_dir: str | None) -> "tfds.core.DatasetBuilder":
    """Returns a dataset that is on this machine; it is downloaded if need be."""
    import tensorflow_datasets as tfds

    if data_dir is not None:
        Location.parse(data_dir, "input_dir").expect_local()
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


def _text_features(builder: "tfds.core.DatasetBuilder") -> tuple[str, ...]:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict):
        return ()
    return tuple(
        name
        for name, feature in features.items()
        if feature.shape == () and feature.tf_dtype == tf.string
    )


def _choose_fields(source: CorpusSource) -> tuple[str, ...]:
    builder = _open_builder(source.tfds_name, source.input_dir)
    features = _text_features(builder)
    wanted = source.text_fields
    if wanted is None and len(features) == 1:
        return features
    missing = [name for name in wanted or () if name not in features]
    if wanted is None or missing:
        raise InputError(
            Setting("text_fields"),
            f"text features of {source.tfds_name}, which has {', '.join(features) or 'none'}",
            ", ".join(missing) or "none",
        )
    return wanted


def _find_splits(corpus: Corpus) -> tuple[CorpusFile, ...]:
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


def _read_documents(file: CorpusFile) -> Iterator[tuple[RawDocument, int]]:
    import tensorflow as tf
    import tensorflow_datasets as tfds

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
