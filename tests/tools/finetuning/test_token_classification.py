"""Token classification: reading, the deciding token of each word, losses, and submissions."""

import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs import tasks
from data_specs.records import TEACHER_LOGITS
from data_specs.tasks import TOKEN_CLASSIFICATION
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from tests.tools.finetuning.test_features import CLS, SEP, Words
from tools.finetuning.inputs import TARGETS, WEIGHTS, Layout, Padding, TrainingBatches
from tools.finetuning.kinds import KINDS, build_features
from tools.finetuning.kinds.token_classification import split_words, window_owners
from tools.finetuning.objective import TaskObjective
from tools.finetuning.scoring import evaluate, write_submission
from tools.finetuning.task_data import read_split
from tools.finetuning.task_files import TaskExample

KIND = KINDS[TOKEN_CLASSIFICATION]
UNK = 1


def _build(*sentences: str, length: int = 20, stride: int = 128):
    examples = [TaskExample(str(n), tuple(text.split("|"))) for n, text in enumerate(sentences)]
    features = build_features(
        examples,
        Words(),
        kind=TOKEN_CLASSIFICATION,
        max_seq_length=length,
        doc_stride=stride,
    )
    return examples, features


def test_first_token_of_a_word_decides_its_tag() -> None:
    _, (feature,) = _build("ab|c-d|中文|e")
    # The tokens are ab, c - d, 中 文, e.
    assert feature.words.tolist() == [-1, 0, 1, -1, -1, 2, -1, 3, -1]
    ids = Words().tokenize("ab c - d 中 文 e").ids.tolist()
    assert feature.input_ids.tolist() == [CLS, *ids, SEP]
    assert not feature.segment_ids.any() and feature.words.dtype == np.int32


def test_word_without_tokens_becomes_unknown() -> None:
    """The tokenizer drops spaces, as BERT's drops control characters."""
    for text, words in (
        (" |a", [-1, 0, 1, -1]),
        ("a| |　|b", [-1, 0, 1, 2, 3, -1]),
        ("a|b-c| ", [-1, 0, 1, -1, -1, 2, -1]),
        ("", [-1, 0, -1]),
    ):
        _, (feature,) = _build(text)
        assert feature.words.tolist() == words, text
        unknown = [word for word, cell in enumerate(text.split("|")) if not cell.strip()]
        assert feature.words[feature.input_ids == UNK].tolist() == unknown


def test_wordpiece_tokenizer_keeps_every_word(vocab_file) -> None:
    from pipeline.tokenizers.loading import load_tokenizer

    tokenizer = load_tokenizer(Location.parse(pathlib.Path(vocab_file)).parent, do_lower_case=True)
    words = ("火", "\ufffd\ufffd", "车", "\u200d", "Ab", " ", "[MASK]", "")
    ids, numbers = split_words(tokenizer, words)
    assert [word for word in numbers if word >= 0] == list(range(len(words)))
    assert (ids[np.isin(numbers, [1, 3, 5, 7])] == tokenizer.special_ids["unk"]).all()
    assert tokenizer.special_ids["mask"] not in ids


@given(
    st.lists(st.text("a -中", max_size=6), min_size=1, max_size=40),
    st.integers(3, 12),
    st.integers(1, 20),
)
def test_each_word_is_predicted_once(words: list[str], length: int, stride: int) -> None:
    examples = [TaskExample("0", tuple(words))]
    features = KIND.build_features(examples, Layout(Words(), length, doc_stride=stride))
    decided = np.concatenate([feature.words[feature.words >= 0] for feature in features])
    assert sorted(decided.tolist()) == list(range(len(words)))
    ids, numbers = split_words(Words(), words)
    for feature in features:
        assert len(feature.input_ids) <= length and (feature.words >= 0).any()
        deciding = np.flatnonzero(feature.words >= 0)
        first = [
            int(np.flatnonzero(numbers == feature.words[position])[0]) for position in deciding
        ]
        assert feature.input_ids[deciding].tolist() == ids[first].tolist()
    # Logits that name the word at each token are predicted in the order of the words.
    logits = [
        np.eye(len(words), dtype=np.float32)[np.maximum(feature.words, 0)] for feature in features
    ]
    (tags,) = KIND.predict(examples, features, logits, max_answer_length=1)
    assert tags.tolist() == list(range(len(words)))


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 20))
def test_tokens_belong_to_the_window_with_most_context(
    num_tokens: int, room: int, stride: int
) -> None:
    begins, owners = window_owners(num_tokens, room, stride)

    def context(window: int, position: int) -> int:
        begin, end = begins[window], min(begins[window] + room, num_tokens)
        tokens_before = position - begin if begin else num_tokens
        tokens_after = end - 1 - position if end < num_tokens else num_tokens
        return min(tokens_before, tokens_after) if begin <= position < end else -1

    for position, owner in enumerate(owners):
        contexts = [context(window, position) for window in range(len(begins))]
        assert contexts[owner] == max(contexts) >= 0


def test_windows_overlap_by_half() -> None:
    begins, owners = window_owners(10, 4, 128)
    assert begins == [0, 2, 4, 6]
    assert owners.tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert window_owners(4, 4, 1)[0] == [0]


def _examples(*sentences: tuple[str, str]) -> list[TaskExample]:
    return [
        TaskExample(str(n), tuple(words.split()), tuple(tags.split()))
        for n, (words, tags) in enumerate(sentences)
    ]


def test_targets_are_at_the_first_tokens_of_words() -> None:
    examples = _examples(("ab c-d e", "O B-X I-X"))
    features = build_features(examples, Words(), kind=TOKEN_CLASSIFICATION, max_seq_length=20)
    (targets,) = KIND.targets(examples, features, ("O", "B-X", "I-X"))
    assert targets.tolist() == [-1, 0, 1, -1, -1, 2, -1] and targets.dtype == np.int32


def test_batches_pad_targets_and_logits_along_tokens() -> None:
    examples = _examples(("a b c", "O B-X O"), ("d", "B-X"))
    features = build_features(examples, Words(), kind=TOKEN_CLASSIFICATION, max_seq_length=16)
    targets = KIND.targets(examples, features, ("O", "B-X"))
    logits = [np.full((len(feature.input_ids), 2), n + 1.0) for n, feature in enumerate(features)]
    batches = TrainingBatches(features, targets, Padding(3, 16), 1, logits)
    (batch,) = batches.take(1)
    assert batch[TEACHER_LOGITS].shape == (3, 8, 2) and batch[TARGETS].shape == (3, 8)
    long = 0 if batch[TARGETS][0, 2] == 1 else 1
    assert batch[TARGETS][long].tolist() == [-1, 0, 1, 0, -1, -1, -1, -1]
    assert batch[TARGETS][1 - long].tolist() == [-1, 1, -1, -1, -1, -1, -1, -1]
    assert (batch[TARGETS][2] == -1).all() and batch[WEIGHTS].tolist() == [1, 1, 0]
    assert batch[TEACHER_LOGITS][long, :, 0].tolist() == [1.0] * 5 + [0.0] * 3


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_the_loss_is_the_mean_over_words() -> None:
    """Three words in two sentences; other tokens, padding and an extra row have no weight."""
    random = np.random.default_rng(3)
    student, teacher = (random.normal(0, 2, (3, 4, 3)).astype(np.float32) for _ in range(2))
    targets = np.array([[-1, 2, 0, -1], [1, -1, -1, -1], [1, 1, 1, 1]], np.int32)
    batch = {
        TARGETS: targets,
        WEIGHTS: np.array([1, 1, 0], np.float32),
        TEACHER_LOGITS: teacher,
    }
    weight, temperature, losses = 0.25, 1.5, []
    for row, position in ((0, 1), (0, 2), (1, 0)):
        p, q = (_log_softmax(logits[row, position] / temperature) for logits in (teacher, student))
        divergence = float((np.exp(p) * (p - q)).sum())
        label = -float(_log_softmax(student[row, position])[targets[row, position]])
        losses.append(weight * temperature**2 * divergence + (1 - weight) * label)
    objective = TaskObjective(TOKEN_CLASSIFICATION, weight, temperature)
    assert float(objective.loss(student, batch)) == pytest.approx(np.mean(losses), rel=1e-5)


WEIBO = tasks.load_task("weibo_ner")


def _read(tmp_path, content: str, task: str = "weibo_ner", split: str = "dev", **settings):
    spec = tasks.load_task(task)
    (tmp_path / spec.files[split][0]).write_bytes(content.encode("utf-8"))
    return read_split(spec, Location.parse(tmp_path), split, **settings)


def test_conll_columns_and_document_marks_are_read(tmp_path) -> None:
    content = (
        "\ufeff-DOCSTART- -X- -X- O\r\n\r\nEU NNP B-NP I-ORG\r\n  \n\nPeter  NNP I-NP\tB-PER\n"
    )
    content = content.replace("Peter  NNP I-NP\tB-PER", "Peter  NNP  I-NP  I-PER\nA\tB\tC\tO")
    data = _read(tmp_path, f"{content}\n\ufeff\n\n", "conll2003")
    assert data.examples == [
        TaskExample("0", ("EU",), ("I-ORG",)),
        TaskExample("1", ("Peter", "A"), ("I-PER", "O")),
    ]


def test_weibo_characters_are_read_without_their_position(tmp_path) -> None:
    data = _read(tmp_path, "口0\tO\n腔1\tO\n30\tO\n110\tB-PER.NAM\n\ufffd\ufffd0\tO\n　0\tO\n")
    (example,) = data.examples
    assert example.texts == ("口", "腔", "3", "1", "\ufffd\ufffd", "　")
    assert example.label == ("O", "O", "O", "B-PER.NAM", "O", "O")


def test_inside_tag_without_a_beginning_is_kept(tmp_path) -> None:
    (example,) = _read(tmp_path, "李0\tI-PER.NAM\n开1\tI-PER.NAM\n").examples
    assert example.label == ("I-PER.NAM", "I-PER.NAM")
    scores = evaluate(WEIBO, [example], [np.array([13, 14])])
    assert WEIBO.labels[13:15] == ("B-PER.NAM", "I-PER.NAM") and scores["f1"] == 1.0


GOOD = "好0\tO\n\n"


@pytest.mark.parametrize(
    ("line", "location", "expected", "received"),
    [
        ("口0", "line 4", "2 columns (character, tag)", 1),
        ("口0\tO\tO", "line 4", "2 columns (character, tag)", 3),
        ("口0 x O", "line 4", "2 columns (character, tag)", 3),
        ("口\tO", "line 4: character", r"a cell that matches `word_pattern` ((.+?)\d+)", "'口'"),
        ("口0\tX", "line 4: tag", "a tag of the scheme bio (O, B-TYPE, I-TYPE)", "'X'"),
        ("口0\tB-", "line 4: tag", "a tag of the scheme bio (O, B-TYPE, I-TYPE)", "'B-'"),
        ("口0\tS-PER.NAM", "line 4: tag", "a tag of the scheme bio", "'S-PER.NAM'"),
        ("口0\tB-PER", "line 4: tag", "one of O, B-GPE.NAM, I-GPE.NAM, ", "'B-PER'"),
        ("口0\t", "line 4: tag", "a tag of the scheme bio", "''"),
    ],
)
def test_bad_lines_are_named_and_skip_their_sentence(
    tmp_path, line: str, location: str, expected: str, received: object
) -> None:
    content = f"{GOOD}一0\tO\n{line}\n二0\tO\n\n{GOOD}"
    with pytest.raises(InputError) as caught:
        _read(tmp_path, content)
    error = caught.value
    assert error.subject == f"{tmp_path}/dev.conll, {location}"
    assert error.expected.startswith(expected) and error.received == received
    assert "`skip_bad_rows`" in error.hint
    data = _read(tmp_path, content, skip_bad_rows=True)
    assert [example.key for example in data.examples] == ["0", "2"]
    assert len(data.bad_rows) == 1 and data.bad_rows[0].startswith(f"{tmp_path}/dev.conll, line ")


def test_several_bad_lines_of_a_sentence_are_one_bad_row(tmp_path) -> None:
    data = _read(tmp_path, f"一\n二\n三0\tO\n\n{GOOD}", skip_bad_rows=True)
    assert [example.key for example in data.examples] == ["1"]
    (row,) = data.bad_rows
    assert row.startswith(f"{tmp_path}/dev.conll, line 1: ")


def test_test_file_may_have_no_tags(tmp_path) -> None:
    assert _read(tmp_path, "一0\n二1\n", split="test").examples == [TaskExample("0", ("一", "二"))]
    with pytest.raises(InputError) as caught:
        _read(tmp_path, "一0\n二1\tO\n", split="test")
    assert caught.value.subject == f"{tmp_path}/test.conll, line 1"
    with pytest.raises(InputError):
        _read(tmp_path, "一0\n", split="dev")


def _line(text: str, label: object, **fields: object) -> str:
    return json.dumps({"text": text, "label": label, **fields}, ensure_ascii=False) + "\n"


def test_character_spans_become_tags(tmp_path) -> None:
    label = {"name": {"叶老桂": [[2, 4]]}, "company": {"银行": [[0, 1], [5, 6]]}}
    data = _read(tmp_path, _line("银行叶老桂银行", label), "cluener")
    tags = "B-company I-company B-name I-name I-name B-company I-company"
    assert data.examples == [TaskExample("0", tuple("银行叶老桂银行"), tuple(tags.split()))]
    assert not data.remarks
    data = _read(tmp_path, json.dumps({"id": 7, "text": "银行"}), "cluener", "test")
    assert data.examples == [TaskExample("7", ("银", "行"))]


def test_nested_entity_is_dropped_and_counted(tmp_path) -> None:
    label = {"name": {"老桂": [[1, 2]]}, "company": {"叶老桂行": [[0, 3]]}}
    data = _read(tmp_path, _line("叶老桂行", label), "cluener")
    assert data.examples[0].label == ("B-company", "I-company", "I-company", "I-company")
    assert list(data.remarks.values()) == [1]


@pytest.mark.parametrize(
    ("row", "location"),
    [
        (_line("银行", {"company": {"银行": [[1, 2]]}}), ": label"),
        (_line("银行", {"company": {"银": [[0, 1]]}}), ": label"),
        (_line("银行", {"company": {"行": [[-1, -1]]}}), ": label"),
        (_line("银行", {"bank": {"银行": [[0, 1]]}}), ": label"),
        (_line("银行", {"company": [[0, 1]]}), ": label: [...]"),
        (_line("", {}), ": text"),
        (_line(3, {}), ": text"),
        (json.dumps({"text": "银行"}) + "\n", ""),
    ],
)
def test_bad_entities_are_named(tmp_path, row: str, location: str) -> None:
    good = _line("银行", {})
    with pytest.raises(InputError) as caught:
        _read(tmp_path, good + row, "cluener")
    assert caught.value.subject.startswith(f"{tmp_path}/dev.json, line 2{location}")
    data = _read(tmp_path, good + row + good, "cluener", skip_bad_rows=True)
    assert [example.key for example in data.examples] == ["0", "2"]


def test_labels_include_both_tags_of_each_type() -> None:
    examples = _examples(("a b", "O B-Y"), ("c d", "S-X I-Z"))
    labels = KIND.find_labels(WEIBO, examples)
    assert labels == ("O", "B-X", "I-X", "B-Y", "I-Y", "B-Z", "I-Z")


def _written(tmp_path, task: str, examples, tags: list[str]) -> str:
    spec = tasks.load_task(task)
    predictions = [np.array([spec.labels.index(tag) for tag in line.split()]) for line in tags]
    path = Location.parse(tmp_path) / spec.submission.file_of("test")
    write_submission(spec, examples, predictions, path)
    return path.read_text(encoding="utf-8")


def test_predictions_are_written_in_each_format(tmp_path) -> None:
    examples = [TaskExample("0", ("a", "b")), TaskExample("8", ("银", "行"))]
    text = _written(tmp_path, "wnut17", examples, ["O B-person", "I-group O"])
    assert text == "a\tO\nb\tB-person\n\n银\tI-group\n行\tO\n\n"
    text = _written(tmp_path, "cluener", examples, ["O O", "B-name I-name"])
    expected = '{"id": 0, "label": {}}\n{"id": 8, "label": {"name": {"银行": [[0, 1]]}}}\n'
    assert text == expected


def test_predictions_of_another_length_are_refused() -> None:
    examples = _examples(("a b", "O O"))
    with pytest.raises(ValueError, match="a tag of each word"):
        evaluate(WEIBO, examples, [np.array([0])])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "labels: [O, ",
            "labels: [",
            "labels: expected O, B-TYPE, I-TYPE, received none that is O",
        ),
        ("labels: [O, ", "labels: [O, X, ", "labels: expected O, B-TYPE, I-TYPE, received 'X'"),
        (
            "labels: [O, ",
            "scheme: bioes\nlabels: [O, M-X, ",
            "labels: expected O, B-TYPE, I-TYPE, E",
        ),
        ("labels: [O, ", "scheme: bilou\nlabels: [O, ", "scheme: expected one of bio, bioes"),
        ("'(.+?)\\d+'", "'(.+'", "word_pattern: expected a regular expression"),
        ("'(.+?)\\d+'", "'.+'", "word_pattern: expected one group, received 0"),
        ("reader: conll", "reader: tsv", "reader: expected one of conll, json_lines"),
        ("[f1, precision, recall]", "[accuracy]", "metrics: expected one of f1, precision, recall"),
        ("format: conll", "format: glue", "submission: format: expected one of conll, cluener"),
        ("header: false\ncolumns: [character, tag]\n", "", "columns: must name every column"),
    ],
)
def test_mistakes_in_a_tagging_declaration_are_reported(
    tmp_path, old: str, new: str, message: str
) -> None:
    content = (tasks.FOLDER / "weibo_ner.yaml").read_text(encoding="utf-8")
    assert old in content
    path = tmp_path / "mine.yaml"
    path.write_text(content.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match="^") as caught:
        tasks.load_task(str(path))
    assert str(caught.value).startswith(f"{path}: {message}")
