"""Tests of datasets of a local hub as corpora, with the real client."""

import json

import pytest

from data_specs.corpora import CorpusSource, load_mixture
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.corpora import corpus

PROGRAM = """
import json, sys
from data_specs.corpora import CorpusSource
from pipeline.base.errors import InputError
from pipeline.corpora import corpus

source = CorpusSource(**json.loads(sys.argv[1]), text_fields=("text",))
try:
    files = corpus.open_corpora([source], corpus.resolve([source]))
    texts = [corpus.document_text(document) for file in files
             for document, _ in corpus.READERS[file.corpus.reader].read(file)]
    answer = {"names": [file.name for file in files], "texts": texts, "path": str(files[0].path)}
except InputError as error:
    names = ("subject", "expected", "received", "hint", "setting")
    answer = {name: getattr(error, name) for name in names}
print(json.dumps(answer, default=str))
"""
NAME = "datasets/someone/news"


def _jsonl(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def _parquet(*texts: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": list(texts)}), sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


FILES = {
    ".gitattributes": b"*.parquet filter=lfs",
    "README.md": b"# News\n",
    "dataset_infos.json": b"{}",
    "data/train-00000-of-00002.parquet": _parquet(*(f"train {n}" for n in range(5))),
    "data/train-00001-of-00002.parquet": _parquet("train 5"),
    "data/validation-00000-of-00001.parquet": _parquet("valid 0"),
    "extra/retraining.jsonl": _jsonl("other"),
}
TRAIN = [f"train {n}" for n in range(6)]


@pytest.fixture
def ask(hub, client):
    """A function that reads a source in a program, and returns its texts or its error."""

    def run(**source: str) -> dict:
        status, output, errors = client.run("-c", PROGRAM, json.dumps(source))
        assert status == 0, errors
        return json.loads(output)

    return run


@pytest.mark.parametrize(
    "source",
    [
        {"input_dir": "hf://datasets/someone/news"},
        {"input_dir": "someone/news", "hf_split": "train"},
        {"input_dir": "hf://datasets/someone/news@main/data/train-*.parquet"},
        {"input_dir": "hf://datasets/someone/news/**/train-*"},
    ],
)
def test_files_of_a_split_or_a_pattern_are_read(hub, ask, source: dict[str, str]) -> None:
    commit = hub.add(NAME, FILES)
    answer = ask(**source)
    assert answer["texts"] == TRAIN, answer
    assert answer["path"].startswith(f"hf://datasets/someone/news@{commit}/data/train-00000")


def test_revision_and_split_select_the_files(hub, ask) -> None:
    hub.add(NAME, {"dev.jsonl": _jsonl("old")})
    hub.repositories[NAME].references["v1"] = hub.repositories[NAME].references["main"]
    hub.commit(NAME, FILES)
    assert ask(input_dir="someone/news@v1", hf_split="validation")["texts"] == ["old"]
    assert ask(input_dir="someone/news", hf_split="validation")["texts"] == ["valid 0"]


def test_readme_of_a_dataset_assigns_files_to_splits(hub, ask) -> None:
    front = """---
configs:
- config_name: en
  data_files: en/*.jsonl
- config_name: default
  data_files:
  - split: train
    path: ["a/**", "b-?.jsonl"]
  - split: other
    path: train.jsonl
---
"""
    files = {"en/x.jsonl": "en", "a/deep/y.jsonl": "y", "b-1.jsonl": "b", "train.jsonl": "t"}
    files = {name: _jsonl(text) for name, text in files.items()}
    hub.add(NAME, {**files, "README.md": front.encode()})
    assert ask(input_dir="hf://datasets/someone/news")["texts"] == ["y", "b"]
    assert ask(input_dir="someone/news", hf_split="other")["texts"] == ["t"]
    hub.commit(NAME, {**files, "README.md": front.replace("default", "zh").encode()})
    refused = ask(input_dir="hf://datasets/someone/news")
    assert "en, zh" in refused["expected"] and refused["subject"] == "input_dir"


def test_files_without_a_split_in_their_names_belong_to_train(hub, ask) -> None:
    hub.add(NAME, {"README.md": b"# x", "a.jsonl": _jsonl("a"), "b/c.txt": b"c c c", "x.py": b""})
    assert ask(input_dir="hf://datasets/someone/news")["texts"] == ["a", "c c c"]


@pytest.mark.parametrize(
    ("source", "subject", "received"),
    [
        ({"input_dir": "someone/news", "hf_split": "test"}, "hf_split", "test"),
        ({"input_dir": "someone/other", "hf_split": "train"}, "someone/other", "none"),
        ({"input_dir": "hf://datasets/someone/news@v9"}, "input_dir", "v9"),
        ({"input_dir": "hf://datasets/someone"}, "input_dir", "hf://datasets/someone"),
        ({"input_dir": "hf://someone/news/x.txt"}, "input_dir", "hf://someone/news/x.txt"),
        ({"input_dir": "hf://datasets/a/b/../c"}, "input_dir", "hf://datasets/a/b/../c"),
        ({"input_dir": "someone/closed", "hf_split": "train"}, "someone/closed", "none"),
        ({"input_dir": "hf://datasets/someone/news/no/*"}, None, "no files"),
    ],
)
def test_error_names_the_missing_part_of_a_dataset(hub, ask, source, subject, received) -> None:
    hub.add(NAME, FILES)
    hub.add("datasets/someone/closed", FILES, token="secret", is_gated=True)
    refused = ask(**source)
    assert refused["received"] == received
    assert subject is None or refused["subject"] == subject
    assert subject != "someone/closed" or "HF_TOKEN" in refused["hint"]
    assert subject != "hf_split" or "train, validation" in refused["expected"]


def test_error_for_an_unavailable_hub_names_its_url(hub, ask) -> None:
    hub.status = 503
    refused = ask(input_dir="hf://datasets/someone/news")
    assert hub.url in refused["expected"] and "HF_ENDPOINT" in refused["hint"]


def test_gated_dataset_is_read_with_its_token(hub, client, ask) -> None:
    hub.add(NAME, FILES, token="secret", is_gated=True)
    client.environment["HF_TOKEN"] = "secret"
    assert ask(input_dir="hf://datasets/someone/news")["texts"] == TRAIN


def test_command_writes_the_same_shards_for_a_dataset_as_for_its_files(
    hub, client, tmp_path, vocab_file
) -> None:
    texts = [f"第{n}篇文章，工程师检查了机器，发现是一颗螺丝松了。" for n in range(40)]
    content = {f"train-{index}.parquet": _parquet(*texts[index::2]) for index in range(2)}
    hub.add(NAME, content)
    (tmp_path / "files").mkdir()
    for name, data in content.items():
        (tmp_path / "files" / name).write_bytes(data)
    shards = []
    for number, input_dir in enumerate(("hf://datasets/someone/news", tmp_path / "files")):
        out = tmp_path / f"out{number}"
        status, _, errors = client.run(
            *("-m", "pipeline.create_pretraining_data", f"--input_dir={input_dir}"),
            *(f"--vocab_file={vocab_file}", f"--output_dir={out}", "--text_fields=text"),
            *("--max_seq_length=32", "--max_predictions_per_seq=5", "--max_workers=2"),
        )
        assert status == 0, errors
        shards.append({path.name: path.read_bytes() for path in out.glob("*.tfrecord")})
    assert shards[0] == shards[1] and len(shards[0]) == 2


def test_dataset_of_the_hub_is_accepted_only_as_a_corpus() -> None:
    with pytest.raises(InputError):
        Location.parse("hf://datasets/someone/news", "output_dir")
    source = CorpusSource(input_dir="hf://datasets/someone/news")
    assert source.is_hub and source.files is None
    corpus.expect_outside(Location.parse("/tmp/x"), [source])
    with pytest.raises(ValueError, match="^hf_split: "):
        CorpusSource(tfds_name="a", hf_split="train")


def test_mixture_may_name_datasets_of_the_hub(tmp_path) -> None:
    (tmp_path / "mixture.yaml").write_text(
        "corpora:\n- {input_dir: someone/news, hf_split: train, name: a}\n"
        "- {input_dir: hf://datasets/someone/news, name: b}\n"
    )
    first, second = load_mixture(tmp_path / "mixture.yaml")
    assert first.input_dir == "someone/news" and second.is_hub
