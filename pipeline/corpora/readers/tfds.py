"""TensorFlow datasets as corpora: each example is a document, its text features are the text.

TensorFlow is imported when a dataset is opened: other formats do not need it.
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
    """Returns a dataset, which is downloaded to this machine unless it is there."""
    import tensorflow_datasets as tfds

    if data_dir is not None:
        Location.parse(data_dir, "input_dir").expect_local()
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    # An unknown name, config or version: each has an error class of its own.
    except Exception as error:
        expected, received = "name[/config][:version]", f"{name!r} ({_first_line(error)})"
        raise InputError(_NAME, expected, received, _CATALOG_HINT) from error
    if not builder.is_prepared():
        try:
            builder.download_and_prepare()
        # Whatever the dataset's own code does: no network, a missing package, …
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
    """A dataset that `tfds_name` names; its files are the splits, its rows the examples."""

    suffixes = ()

    def resolve(self, source: CorpusSource, spec: CorpusSpec) -> CorpusSpec:
        """See `Reader`: the text fields are those asked for, or the only text feature."""
        if source.tfds_name is None:
            raise InputError(
                Setting("corpus_spec"),
                "used together with `tfds_name`, as it declares reader: tfds",
            )
        builder = _open_builder(source.tfds_name, source.input_dir)
        splits, split = builder.info.splits, source.tfds_split or _TRAIN
        if split not in splits:
            has = ", ".join(sorted(splits)) or "none"
            expected = f"a split of {source.tfds_name}, which has {has}"
            raise InputError(Setting("tfds_split"), expected, split)
        features = _text_features(builder)
        wanted = source.text_fields
        if wanted is None and len(features) == 1:
            wanted = features
        missing = [name for name in wanted or () if name not in features]
        if wanted is None or missing:
            has = ", ".join(features) or "none"
            expected = f"text features of {source.tfds_name}, which has {has}"
            raise InputError(Setting("text_fields"), expected, ", ".join(missing) or "none")
        return msgspec.structs.replace(spec, text_fields=wanted)

    def find(self, source: CorpusSource, corpus: Corpus) -> tuple[CorpusFile, ...]:
        """See `Reader`: the split of a dataset that is asked for, `train` by default."""
        splits = _open_builder(corpus.tfds_name, corpus.tfds_dir).info.splits
        name = corpus.split or _TRAIN
        if not splits[name].num_examples:
            raise InputError(_NAME, f"examples in {name} of {corpus.tfds_name}", "none")
        return (CorpusFile(corpus.tfds_name, name, splits[name].num_bytes, corpus),)

    def look_into(self, file: CorpusFile) -> tuple[CorpusFile, Mapping[str, object]]:
        """See `FileReader`: of the fields only the text fields."""
        row = next((json.loads(document.content) for document, _ in self.read(file)), {})
        return dataclasses.replace(file, format=TFDS), row

    def read(self, file: CorpusFile) -> Iterator[tuple[RawDocument, int]]:
        """See `Reader`: the examples in their stored order; the bytes are an estimate."""
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
                place = f"{file.name} example {ordinal}"
                content = _row_json({name: row[name] for name in fields}, f"{file.path}, {place}")
                yield RawDocument(file, ordinal, place, content), int(bytes_each * (ordinal + 1))
        except tf.errors.OpError as error:
            raise InputError(_NAME, received=f"{corpus.tfds_name}: {_first_line(error)}") from error


def _row_json(row: dict[str, bytes], origin: str) -> bytes:
    try:
        texts = {name: value.decode("utf-8") for name, value in row.items()}
    except UnicodeDecodeError as error:
        raise InputError(_NAME, received=f"{origin}: not UTF-8 ({error})") from error
    return json.dumps(texts, ensure_ascii=False).encode("utf-8")
