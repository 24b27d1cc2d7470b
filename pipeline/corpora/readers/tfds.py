"""Reader of TensorFlow datasets: each example is a document with the text of its text features.

TensorFlow is imported when a dataset is opened, because other formats do not need it.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from data_specs.corpora import CorpusSource, CorpusSpec
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.corpora.documents import Corpus, CorpusFile, RawDocument
from pipeline.corpora.readers.rows import RowsReader

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

TFDS = "tfds"
_TRAIN = "train"
_NAME = Setting("tfds_name")
_CATALOG_HINT = (
    "see https://www.tensorflow.org/datasets/catalog, or set `input_dir` to the directory of "
    "your own datasets"
)


@functools.lru_cache(maxsize=8)
def _open_builder(name: str, data_dir: str | None) -> "tfds.core.DatasetBuilder":
    """Returns a dataset, and downloads it to this machine if necessary."""
    import tensorflow_datasets as tfds

    if data_dir is not None:
        Location.parse(data_dir, "input_dir").expect_local()
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    # An unknown name, config and version each raise a different exception.
    except Exception as error:
        expected, received = "name[/config][:version]", f"{name!r} ({_first_line(error)})"
        raise InputError(_NAME, expected, received, _CATALOG_HINT) from error
    if not builder.is_prepared():
        try:
            builder.download_and_prepare()
        # A dataset's code may raise any exception, for example without network access.
        except Exception as error:
            reason = f"cannot be prepared ({_first_line(error)})"
            received = f"{name} is not in {builder.data_dir} and {reason}"
            raise InputError(_NAME, received=received) from error
    return builder


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def _text_features(builder: "tfds.core.DatasetBuilder") -> tuple[str, ...]:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict):
        return ()
    scalars = ((name, feature) for name, feature in features.items() if feature.shape == ())
    return tuple(name for name, feature in scalars if feature.tf_dtype == tf.string)


class TfdsReader(RowsReader):
    """Reader of a dataset that `tfds_name` names. Splits act as files, and examples as rows."""

    suffixes = ()

    def resolve(self, source: CorpusSource, spec: CorpusSpec) -> CorpusSpec:
        """See `Reader`: sets the text fields of the source, or the only text feature."""
        builder = _open_builder(source.tfds_name, source.input_dir)
        splits, split = builder.info.splits, source.tfds_split or _TRAIN
        if split not in splits:
            known = ", ".join(sorted(splits)) or "none"
            expected = f"one of the splits of {source.tfds_name} ({known})"
            raise InputError(Setting("tfds_split"), expected, split)
        features = _text_features(builder)
        text_fields = source.text_fields
        if text_fields is None and len(features) == 1:
            text_fields = features
        missing = [name for name in text_fields or () if name not in features]
        if text_fields is None or missing:
            known = ", ".join(features) or "none"
            expected = f"text features of {source.tfds_name}, which has {known}"
            raise InputError(Setting("text_fields"), expected, ", ".join(missing) or "none")
        return msgspec.structs.replace(spec, text_fields=text_fields)

    def find(self, source: CorpusSource, corpus: Corpus) -> tuple[CorpusFile, ...]:
        """See `Reader`: returns the corpus's split of the dataset, `train` by default."""
        splits = _open_builder(corpus.tfds_name, corpus.tfds_dir).info.splits
        name = corpus.split or _TRAIN
        if not splits[name].num_examples:
            expected = f"a dataset with examples in the split {name}"
            raise InputError(_NAME, expected, f"an empty split in {corpus.tfds_name}")
        return (CorpusFile(corpus.tfds_name, name, splits[name].num_bytes, corpus),)

    def inspect_file(self, file: CorpusFile) -> tuple[CorpusFile, Mapping[str, object]]:
        """See `FileReader`: the fields are only the text fields."""
        row = next((json.loads(document.content) for document, _ in self.read(file)), {})
        return dataclasses.replace(file, format=TFDS), row

    def read(self, file: CorpusFile) -> Iterator[tuple[RawDocument, int]]:
        """See `Reader`: yields the examples in stored order. The bytes read are an estimate."""
        import tensorflow as tf
        import tensorflow_datasets as tfds

        corpus = file.corpus
        builder = _open_builder(corpus.tfds_name, corpus.tfds_dir)
        fields = corpus.spec.text_fields
        dataset = builder.as_dataset(
            split=file.name,
            shuffle_files=False,
            # Reading one file after another gives the same order on every machine.
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
            decoders=tfds.decode.PartialDecoding(dict.fromkeys(fields, True)),
        )
        bytes_each = file.bytes / builder.info.splits[file.name].num_examples
        try:
            for ordinal, row in enumerate(tfds.as_numpy(dataset)):
                position = f"{file.name} example {ordinal}"
                values = {name: row[name] for name in fields}
                content = _row_json(values, f"{file.path}, {position}")
                bytes_read = int(bytes_each * (ordinal + 1))
                yield RawDocument(file, ordinal, position, content), bytes_read
        except tf.errors.OpError as error:
            raise InputError(_NAME, received=f"{corpus.tfds_name}: {_first_line(error)}") from error


def _row_json(row: dict[str, bytes], origin: str) -> bytes:
    try:
        texts = {name: value.decode("utf-8") for name, value in row.items()}
    except UnicodeDecodeError as error:
        raise InputError(_NAME, received=f"{origin}: not UTF-8 ({error})") from error
    return json.dumps(texts, ensure_ascii=False).encode("utf-8")
