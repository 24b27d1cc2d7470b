"""Tests of reading a small TensorFlow dataset as a corpus."""

import dataclasses
import pathlib

import pytest
import tensorflow_datasets as tfds

from data_specs.corpora import CorpusSource
from pipeline.base.errors import InputError
from pipeline.corpora import corpus
from pipeline.masking.masked_examples import create_masked_examples
from pipeline.storage import manifest
from tests.conftest import make_text

TEXTS = make_text(seed=3, num_documents=30)


class TinyNews(tfds.core.GeneratorBasedBuilder):
    """A dataset of thirty articles in the split train and two in the split test."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "title": tfds.features.Text(),
            "body": tfds.features.Text(),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._rows(TEXTS), "test": self._rows(["x", "y"])}

    def _rows(self, texts):
        for number, text in enumerate(texts):
            yield number, {"title": f"第{number}篇", "body": text, "label": 0}

    def _generate_examples(self):
        raise NotImplementedError


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory) -> pathlib.Path:
    """The directory of the dataset."""
    folder = tmp_path_factory.mktemp("tfds")
    TinyNews(data_dir=str(folder)).download_and_prepare()
    return folder


def _source(tfds_dir, **changes) -> CorpusSource:
    settings = {"tfds_name": "tiny_news", "text_fields": ("title", "body"), **changes}
    return CorpusSource(input_dir=str(tfds_dir), **settings)


def test_documents_are_the_examples_of_the_train_split(tfds_dir) -> None:
    source = _source(tfds_dir, tfds_name="tiny_news:1.0.0")
    files = corpus.open_corpora([source], corpus.resolve([source]))
    blocks = list(corpus.read_blocks(files))
    texts = [corpus.document_text(document) for block in blocks for document in block.documents]
    assert sorted(texts) == sorted(f"第{n}篇\n{text}" for n, text in enumerate(TEXTS))
    assert [file.name for file in files] == ["train"]
    assert blocks[-1].bytes_read == files[0].bytes


def test_another_split_is_read_and_recorded(tfds_dir) -> None:
    source = _source(tfds_dir, tfds_split="test")
    (opened,) = corpus.resolve([source])
    (file,) = corpus.open_corpora([source], [opened])
    assert (file.name, opened.reading()["split"]) == ("test", "test")
    assert "split" not in corpus.resolve([_source(tfds_dir)])[0].reading()
    with pytest.raises(ValueError, match="^tfds_split: "):
        CorpusSource(input_dir="x", tfds_split="test")


def test_masked_examples_do_not_depend_on_workers(tfds_dir, examples_config, tmp_path) -> None:
    config = dataclasses.replace(
        examples_config, corpora=(_source(tfds_dir),), output_dir=str(tmp_path / "a")
    )
    examples = create_masked_examples(config)
    assert examples.statistics["documents"] == len(TEXTS)
    parallel = dataclasses.replace(config, output_dir=str(tmp_path / "b"), max_workers=2)
    splits = create_masked_examples(parallel).splits
    assert splits == manifest.load(tmp_path / "a").splits


@pytest.mark.parametrize(
    ("changes", "setting", "received"),
    [
        ({"tfds_split": "dev"}, "tfds_split", "dev"),
        ({"tfds_name": "no_such_set"}, "tfds_name", "'no_such_set'"),
        ({"tfds_name": "tiny_news:9.0.0"}, "tfds_name", "'tiny_news:9.0.0'"),
        ({"text_fields": ("text",)}, "text_fields", "text"),
        ({"text_fields": ("label",)}, "text_fields", "label"),
        ({"text_fields": None}, "text_fields", "none"),
    ],
)
def test_unknown_datasets_and_fields_are_refused(
    tfds_dir, changes: dict, setting: str, received: str
) -> None:
    with pytest.raises(InputError) as error:
        corpus.resolve([_source(tfds_dir, **changes)])
    assert error.value.subject == setting
    assert error.value.received.startswith(received)
    if setting == "text_fields":
        assert "title, body" in error.value.expected


def test_dataset_in_a_bucket_is_refused() -> None:
    with pytest.raises(InputError) as error:
        corpus.resolve([_source("gs://bucket/datasets")])
    assert error.value.setting == "input_dir"


def test_declaration_cannot_name_the_reader_of_tensorflow_datasets(tmp_path) -> None:
    (tmp_path / "own.yaml").write_text("reader: tfds\n", encoding="utf-8")
    source = CorpusSource(input_dir=str(tmp_path), corpus_spec=str(tmp_path / "own.yaml"))
    with pytest.raises(InputError) as error:
        corpus.resolve([source])
    assert error.value.subject == "corpus_spec"
