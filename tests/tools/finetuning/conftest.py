"""Small tasks in the formats of the published data. The text of an example decides its label."""

import json
import pathlib

import numpy as np
import pytest

from data_specs.tasks import CLASSIFICATION, FOLDER, SPAN, TOKEN_CLASSIFICATION
from pipeline.models.formats.model_directory import find_model
from tests.conftest import SENTENCES, save_tiny_bert
from tools.finetuning.head_layout import Head
from tools.finetuning.inputs import Feature
from tools.finetuning.settings import FinetuneConfig

# These sentences have the positive label, independent of the other sentences.
_GOOD = SENTENCES[:6]
_NUM_TRAIN, _NUM_DEV = 96, 32


def _random(purpose: str) -> np.random.Generator:
    return np.random.default_rng(len(purpose))


@pytest.fixture(scope="session")
def sentiment_dir(tmp_path_factory) -> pathlib.Path:
    """ChnSentiCorp's format: one sentence; the label is 1 if it is in `_GOOD`."""
    folder, random = tmp_path_factory.mktemp("sentiment"), _random("sentiment")
    for split, count in (("train", _NUM_TRAIN), ("dev", _NUM_DEV), ("test", 5)):
        sentences = random.choice(SENTENCES, size=count)
        rows = [f"{int(sentence in _GOOD)}\t{sentence}" for sentence in sentences]
        (folder / f"{split}.tsv").write_text("\n".join(["label\ttext_a", *rows]) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="session")
def pair_dir(tmp_path_factory) -> pathlib.Path:
    """OCNLI's format: the label depends on the second sentence; one row has no label."""
    folder, random = tmp_path_factory.mktemp("pairs"), _random("pairs")
    for split, count in (("train.3k", _NUM_TRAIN), ("dev", _NUM_DEV)):
        lines = []
        for number in range(count):
            first, second = random.choice(SENTENCES, size=2)
            label = "entailment" if second in _GOOD else "contradiction"
            label = "-" if number == 3 else label
            lines.append(json.dumps({"sentence1": first, "sentence2": second, "label": label}))
        (folder / f"{split}.json").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="session")
def similarity_dir(tmp_path_factory) -> pathlib.Path:
    """STS-B's format: the score is 4 if the second sentence is in `_GOOD`, else 1."""
    folder, random = tmp_path_factory.mktemp("similarity"), _random("similarity")
    names = "index genre filename year old_index source1 source2 sentence1 sentence2 score"
    for split, count in (("train", _NUM_TRAIN), ("dev", _NUM_DEV)):
        lines = ["\t".join(names.split())]
        for number in range(count):
            first, second = random.choice(SENTENCES, size=2)
            score = "4.0" if second in _GOOD else "1.0"
            lines.append("\t".join([str(number), *["x"] * 6, first, second, score]))
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="session")
def questions_dir(tmp_path_factory) -> pathlib.Path:
    """CMRC 2018's format: contexts longer than a window; the answer is always the same word."""
    folder, random = tmp_path_factory.mktemp("questions"), _random("questions")
    for split, count in (("train", _NUM_TRAIN), ("trial", 12)):
        paragraphs = []
        for number in range(count):
            context = "".join(random.choice([*SENTENCES[:6], *SENTENCES[9:]], size=3))
            start = int(random.integers(0, len(context)))
            context = f"{context[:start]}咖啡馆{context[start:]}"
            answer = {"text": "咖啡馆", "answer_start": start}
            question = {"id": f"{split}_{number}", "question": "她去哪里？", "answers": [answer]}
            paragraphs.append({"context": context, "qas": [question]})
        content = {"version": "v1.0", "data": [{"paragraphs": paragraphs}]}
        (folder / f"{split}.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    return folder


# Each name has three characters. Its text, not its position, decides its entity type.
_NAMES = {"咖啡馆": "LOC", "出租车": "ORG"}


@pytest.fixture(scope="session")
def tags_dir(tmp_path_factory) -> pathlib.Path:
    """Columns of a character and a tag: sentences with one of two names as an entity.

    `tags.yaml` declares the task without its labels; the test file has no tags.
    """
    folder, random = tmp_path_factory.mktemp("tags"), _random("tags")
    for split, count in (("train", _NUM_TRAIN), ("dev", _NUM_DEV), ("test", 5)):
        lines = []
        for _ in range(count):
            sentence, name = str(random.choice(SENTENCES[:6])), str(random.choice(list(_NAMES)))
            start = int(random.integers(0, len(sentence)))
            tags = [f"B-{_NAMES[name]}", *[f"I-{_NAMES[name]}"] * 2]
            words = [*sentence[:start], *name, *sentence[start:]]
            tags = ["O"] * start + tags + ["O"] * (len(sentence) - start)
            pairs = zip(words, tags, strict=True)
            lines += [word if split == "test" else f"{word} {tag}" for word, tag in pairs]
            lines.append("")
        (folder / f"{split}.conll").write_text("\n".join(lines) + "\n", "utf-8")
    content = (FOLDER / "wnut17.yaml").read_text("utf-8")
    begin, end = content.index("labels:"), content.index("files:")
    (folder / "tags.yaml").write_text(content[:begin] + content[end:], "utf-8")
    return folder


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, vocab_file) -> pathlib.Path:
    """A random two-layer model with a tokenizer and without a pooler; read only."""
    folder = tmp_path_factory.mktemp("model")
    return save_tiny_bert(folder, vocab_file, seed=3, num_layers=2, initializer_range=0.2)


@pytest.fixture
def sentiment_config(sentiment_dir, model_dir, tmp_path) -> FinetuneConfig:
    """The settings of a run that takes seconds; tests replace fields."""
    return FinetuneConfig(
        task="chnsenticorp",
        data_dir=sentiment_dir,
        model=model_dir,
        output_dir=tmp_path / "run",
        learning_rate=2e-3,
        num_train_epochs=4.0,
        train_batch_size=16,
        max_seq_length=48,
        log_steps=4,
    )


def make_feature(length: int, *, example: int = 0, seed: int = 0) -> Feature:
    """Returns a feature of random tokens from a vocabulary of 37, in two segments."""
    ids = np.random.default_rng(seed).integers(1, 37, length).astype(np.int32)
    segments = (np.arange(length) >= length // 2).astype(np.int32)
    return Feature(example, ids, segments)


def save_tiny_head(
    folder: pathlib.Path, model: pathlib.Path, head: Head, *, seed: int = 5
) -> pathlib.Path:
    """Writes a model directory with a random head and the model's tokenizer."""
    from tools.finetuning import heads

    folder.mkdir(parents=True)
    heads.save_head(folder, heads.build_head(find_model(model), head, seed=seed))
    (folder / "vocab.txt").write_bytes((model / "vocab.txt").read_bytes())
    return folder


@pytest.fixture(scope="session")
def task_teacher_dir(tmp_path_factory, teacher_dir) -> pathlib.Path:
    """A three-layer teacher with a random head for ChnSentiCorp; read only."""
    folder = tmp_path_factory.mktemp("task_teacher") / "model"
    return save_tiny_head(folder, teacher_dir, Head(CLASSIFICATION, ("0", "1")))


@pytest.fixture(scope="session")
def span_teacher_dir(tmp_path_factory, teacher_dir) -> pathlib.Path:
    """A three-layer teacher with a random span head; read only."""
    folder = tmp_path_factory.mktemp("span_teacher") / "model"
    return save_tiny_head(folder, teacher_dir, Head(SPAN))


@pytest.fixture(scope="session")
def tags_teacher_dir(tmp_path_factory, teacher_dir) -> pathlib.Path:
    """A three-layer teacher with a random head for the tags of `tags_dir`; read only."""
    folder = tmp_path_factory.mktemp("tags_teacher") / "model"
    tags = ("O", "B-LOC", "I-LOC", "B-ORG", "I-ORG")
    return save_tiny_head(folder, teacher_dir, Head(TOKEN_CLASSIFICATION, tags))
