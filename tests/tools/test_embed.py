"""Text vectors and correlations of their cosines, compared with plain computations."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import LocalLocation
from pipeline.models.formats.model_directory import find_model, load_masked_lm
from pipeline.tokenizers.loading import load_tokenizer
from tests.conftest import ENGLISH, SENTENCES, save_tiny_bert
from tools import embed as tool
from tools import sentence_encoding
from tools.embed import EmbedConfig
from tools.sentence_layout import PoolingSettings, SentenceLayout, write_layout

TEXTS = (*SENTENCES, "", *ENGLISH)


@pytest.fixture
def sentences(tmp_path) -> LocalLocation:
    """A file with lines of several lengths, one of which is empty."""
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def _run(**settings: object) -> int:
    return tool.main(["embed", *(f"--{name}={value}" for name, value in settings.items())])


def _plain_vectors(directory, pooling: str, length: int, *, normalize: bool) -> np.ndarray:
    """Returns the vectors, computed one text at a time, without padding."""
    model = load_masked_lm(find_model(directory))
    tokenizer, rows = load_tokenizer(directory, do_lower_case=None), []
    special = tokenizer.special_ids
    for text in TEXTS:
        ids = [special["cls"], *tokenizer.tokenize(text).ids[: length - 2], special["sep"]]
        ids = np.array([ids], np.int32)
        batch = {"input_ids": ids, "input_mask": ids * 0 + 1, "segment_ids": ids * 0}
        states = np.asarray(model.encoder(batch)["hidden_states"][-1])[0]
        vector = states[0] if pooling == "cls" else states.mean(0)
        rows.append(vector / np.linalg.norm(vector) if normalize else vector)
    return np.array(rows)


@pytest.mark.parametrize(
    ("pooling", "normalize", "name"),
    [("mean", True, "vectors.npy"), ("cls", False, "vectors.jsonl")],
)
def test_vectors_are_pooled_states_in_line_order(
    teacher_dir, sentences, tmp_path, monkeypatch, pooling: str, normalize: bool, name: str
) -> None:
    # The texts fill several blocks.
    monkeypatch.setattr(sentence_encoding, "_BLOCK", 5)
    path = tmp_path / name
    settings = {"pooling": pooling, "normalize": normalize, "max_seq_length": 12, "batch_size": 4}
    assert _run(model=teacher_dir, sentences=sentences, output=path, **settings) == 0
    if path.suffix == ".npy":
        vectors = np.load(path)
        assert vectors.dtype == np.float32
    else:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        assert [row["text"] for row in rows] == list(TEXTS)
        vectors = np.array([row["vector"] for row in rows])
    expected = _plain_vectors(teacher_dir, pooling, 12, normalize=normalize)
    np.testing.assert_allclose(vectors, expected, atol=2e-6)


def test_texts_are_read_from_a_field_of_json_lines(tmp_path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"body": "one"}\n{"body": "two", "id": 3}\n', encoding="utf-8")
    assert list(tool.read_texts(path, "body")) == ["one", "two"]


@pytest.mark.parametrize("line", ["{", "[1]", '{"text": 1}', "{}", '{"text": "\\ud800"}', ""])
def test_line_without_a_text_is_named(tmp_path, line: str) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(f'{{"text": "one"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(InputError) as caught:
        list(tool.read_texts(path, "text"))
    assert caught.value.subject == f"{path}, line 2"


def test_text_in_another_encoding_is_refused(tmp_path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("好\n".encode() + "春天来了，院子里的桃树".encode("gb18030") + b"\n")
    with pytest.raises(InputError) as caught:
        list(tool.read_texts(path, "text"))
    assert caught.value.subject == f"{path}, line 2"


@pytest.mark.parametrize(
    ("settings", "subject"),
    [
        ({}, "sentences"),
        ({"sentences": "a", "task": "stsb", "data_dir": "b"}, "sentences"),
        ({"task": "stsb"}, "data_dir"),
        ({"sentences": "a", "data_dir": "b", "output": "c.npy"}, "data_dir"),
        ({"sentences": "a"}, "output"),
        ({"sentences": "a", "output": "vectors.csv"}, "output"),
        ({"task": "stsb", "data_dir": "b", "output": "vectors.npy"}, "output"),
    ],
)
def test_inconsistent_settings_are_refused(settings, subject: str) -> None:
    with pytest.raises(InputError) as caught:
        EmbedConfig(model="m", **settings)
    assert caught.value.subject == Setting(subject)


def test_maximum_length_is_limited_by_the_model(teacher_dir, sentences, tmp_path) -> None:
    given_settings = {"model": teacher_dir, "sentences": sentences, "output": tmp_path / "v.npy"}
    config = EmbedConfig(**given_settings, max_seq_length=1000)
    with pytest.raises(InputError) as caught:
        tool.find_reader(config, PoolingSettings())
    assert caught.value.subject == Setting("max_seq_length")
    limit = find_model(teacher_dir).config.max_input_length
    reader = tool.find_reader(EmbedConfig(**given_settings), PoolingSettings())
    assert reader.max_seq_length == limit


def test_sentence_transformers_directory_decides_pooling_and_length(
    tmp_path_factory, vocab_file, sentences, tmp_path
) -> None:
    model = save_tiny_bert(tmp_path_factory.mktemp("model"), vocab_file, seed=3, num_layers=1)
    write_layout(model, SentenceLayout("cls", True, 9), 8)
    config = EmbedConfig(model=model, sentences=sentences, output=tmp_path / "v.npy")
    reader = tool.find_reader(config, PoolingSettings())
    assert reader.layout == SentenceLayout("cls", True, 9)
    assert reader.max_seq_length == 9


def test_cosines_equal_values_computed_by_hand() -> None:
    first = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]], np.float32)
    second = np.array([[4.0, 3.0], [-2.0, 0.0], [1.0, 1.0]], np.float32)
    np.testing.assert_allclose(
        sentence_encoding.cosine_similarities(first, second), [0.96, -1.0, 0.0]
    )


def test_equal_similarities_share_their_mean_rank() -> None:
    # Ranks 1, 2, 3, 4 and 1.5, 1.5, 3.5, 3.5; covariance 4 / 4, variances 5 / 4 and 4 / 4.
    scores = sentence_encoding.similarity_scores(
        np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.0, 0.0, 5.0, 5.0])
    )
    assert scores["spearman"] == pytest.approx(2 / 5**0.5)
    assert list(scores) == ["spearman", "pearson"]


_NUMBERS = st.lists(st.integers(0, 5), min_size=3, max_size=12)


@given(values=_NUMBERS, order=st.randoms())
def test_spearman_equals_a_pairwise_computation(values, order) -> None:
    others = order.sample(values, len(values))
    cosines = np.array(values, np.float64)
    expected = np.array(others, np.float64)

    def ranks(side: np.ndarray) -> np.ndarray:
        return np.array([(side < value).sum() + ((side == value).sum() + 1) / 2 for value in side])

    constant = len(set(values)) == 1
    plain = 0.0 if constant else np.corrcoef(ranks(cosines), ranks(expected))[0, 1]
    scores = sentence_encoding.similarity_scores(cosines, expected)
    assert scores["spearman"] == pytest.approx(plain)


@pytest.mark.peers
def test_spearman_equals_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(1)
    cosines, expected = random.integers(0, 9, (2, 400)).astype(np.float64)
    scores = sentence_encoding.similarity_scores(cosines, expected)
    assert scores["spearman"] == pytest.approx(stats.spearmanr(cosines, expected).statistic)
    assert scores["pearson"] == pytest.approx(stats.pearsonr(cosines, expected).statistic)


# Pairs of equal texts, of texts with a comma, and of texts with a quotation mark.
_ROWS = (
    (SENTENCES[0], SENTENCES[0], 5.0),
    ("Hello, world!", SENTENCES[1], 2.5),
    ('"So," she said', SENTENCES[2], 0.0),
)


def _write_tsv(folder) -> None:
    names = "index genre filename year old_index source1 source2 sentence1 sentence2 score"
    lines = ["\t".join(names.split())]
    lines += [
        "\t".join(["0", *["x"] * 6, first, second, str(score)]) for first, second, score in _ROWS
    ]
    (folder / "dev.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_csv(folder) -> None:
    quoted = [[text.replace('"', '""') for text in row[:2]] for row in _ROWS]
    lines = [
        f'"{first}","{second}",{row[2]}' for (first, second), row in zip(quoted, _ROWS, strict=True)
    ]
    (folder / "stsb-zh-dev.csv").write_text("\r\n".join(lines) + "\r\n", encoding="utf-8")


def _write_json(folder) -> None:
    # Some distributions scale the scores to 0 to 1.
    names = ("sentence1", "sentence2", "score")
    rows = [dict(zip(names, (*row[:2], row[2] / 5), strict=True)) for row in _ROWS]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "validation.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("task", "write"),
    [("stsb", _write_tsv), ("stsb_multi_mt", _write_csv), ("stsb_json", _write_json)],
)
def test_each_distribution_of_sts_b_has_equal_scores(
    teacher_dir, tmp_path, task: str, write, capsys
) -> None:
    write(tmp_path)
    path = tmp_path / "scores.json"
    assert _run(model=teacher_dir, task=task, data_dir=tmp_path, output=path) == 0
    scores = json.loads(path.read_text())
    spearman = scores[f"spearman of cosines on {task}, dev"]
    settings = EmbedConfig(model=teacher_dir, sentences=path, output=tmp_path / "v.npy")
    reader = tool.find_reader(settings, PoolingSettings())
    forward = reader.compile("cpu:0", "float32")

    class Bar:
        def update(self, count: int) -> None:
            pass

    sides = ([row[side] for row in _ROWS] for side in (0, 1))
    vectors = [next(reader.encode(forward, texts, Bar())) for texts in sides]
    cosines = sentence_encoding.cosine_similarities(*vectors)
    assert cosines[0] == pytest.approx(1.0)
    expected = sentence_encoding.similarity_scores(cosines, np.array([5.0, 2.5, 0.0]))
    assert spearman == pytest.approx(expected["spearman"])
    assert f"{100 * spearman:.2f}" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["mrpc", "squad", "chnsenticorp"])
def test_tasks_without_similarities_are_refused(teacher_dir, tmp_path, task: str) -> None:
    config = EmbedConfig(model=teacher_dir, task=task, data_dir=tmp_path)
    with pytest.raises(InputError) as caught:
        tool._read_pairs(config)
    assert caught.value.subject == Setting("task")
