"""Features: special tokens, truncation, windows, and the positions of answers."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs import tasks
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.tokenizers.loading import load_tokenizer
from pipeline.tokenizers.tokens import Tokenizer, Tokens
from tools.finetuning.inputs import Feature, truncated_lengths
from tools.finetuning.kinds import build_features
from tools.finetuning.kinds.span import best_answers
from tools.finetuning.task_data import read_split
from tools.finetuning.task_files import Answer, TaskExample

SHARED = Location.parse(pathlib.Path(__file__).parents[4] / "shared")
CLS, SEP = 2, 3


@dataclasses.dataclass(frozen=True)
class Words(Tokenizer):
    """A tokenizer of runs of Latin letters and single other characters, without spaces."""

    vocab: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    special_ids: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {"pad": 0, "unk": 1, "cls": CLS, "sep": SEP, "mask": 4}
    )
    do_lower_case: bool | None = None
    calls: list[str] = dataclasses.field(default_factory=list)

    def is_special(self) -> np.ndarray:
        return np.ones(len(self.vocab), bool)

    def tokenize(self, text: str) -> Tokens:
        self.calls.append(text)
        spans = [match.span() for match in re.finditer(r"[a-z]+|\S", text)]
        starts, ends = np.array(spans, np.int32).reshape(-1, 2).T
        ids = np.array([10 + ord(text[start]) for start in starts], np.int32)
        return Tokens(ids, starts, ends, np.arange(len(ids), dtype=np.int32))

    def files(self) -> dict[str, bytes]:
        return {}


def _ids(text: str) -> list[int]:
    return Words().tokenize(text).ids.tolist()


def _build(*examples: TaskExample, kind: str = "classification", length: int = 20, **changes):
    return build_features(examples, Words(), kind=kind, max_seq_length=length, **changes)


def test_single_text_is_enclosed_by_cls_and_sep() -> None:
    (feature,) = _build(TaskExample("0", ("ab cd",), 1))
    assert feature.input_ids.tolist() == [CLS, *_ids("ab cd"), SEP]
    assert feature.segment_ids.tolist() == [0, 0, 0, 0]
    assert feature.input_ids.dtype == feature.segment_ids.dtype == np.int32
    assert type(feature) is Feature


@pytest.mark.parametrize(
    ("texts", "changes", "first", "second"),
    [
        (("ab", "cd ef"), {}, "ab", "cd ef"),
        # Models like RoBERTa have a second separator.
        (("ab", "cd"), {"double_separator": True}, "ab", "cd"),
        # Long texts are truncated at the end.
        (("a b c d e", "f g"), {"length": 7}, "a b", "f g"),
        (("x y", "a b"), {"kind": "span", "max_query_length": 1}, "x", "a b"),
    ],
)
def test_two_texts_have_separators_and_segments(texts, changes, first: str, second: str) -> None:
    (feature,) = _build(TaskExample("0", texts), **changes)
    begin = [CLS, *_ids(first), SEP, *([SEP] if "double_separator" in changes else [])]
    assert feature.input_ids.tolist() == [*begin, *_ids(second), SEP]
    assert feature.segment_ids.tolist() == [0] * len(begin) + [1] * (len(_ids(second)) + 1)


def test_long_text_is_truncated_at_its_end() -> None:
    (feature,) = _build(TaskExample("0", ("a b c d e",)), length=5)
    assert feature.input_ids.tolist() == [CLS, *_ids("a b c"), SEP]


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 80))
def test_the_longer_text_is_truncated_first(first: int, second: int, room: int) -> None:
    lengths = truncated_lengths(first, second, room)
    while first + second > room:
        if first > second:
            first -= 1
        else:
            second -= 1
    assert lengths == (first, second)


def test_length_without_room_for_text_is_rejected() -> None:
    for texts, settings, subject, expected, received in (
        (("a", "b"), {"length": 4}, "max_seq_length", "at least 5,", 4),
        (("a b c d", "e"), {"kind": "span", "length": 7}, "max_seq_length", "at least 8,", 7),
        (("a", "b"), {"kind": "span", "doc_stride": 0}, "doc_stride", "a number above 0", 0),
    ):
        with pytest.raises(InputError) as caught:
            _build(TaskExample("0", texts), **settings)
        assert (caught.value.subject, caught.value.received) == (Setting(subject), received)
        assert caught.value.expected.startswith(expected)


CONTEXT = "a b c d e f g h i j"
ASKED = TaskExample("q", ("x y", CONTEXT), None, (Answer("e f", 8),))


def test_windows_of_ten_tokens_have_expected_positions() -> None:
    features = _build(ASKED, kind="span", length=9, doc_stride=3)
    windows = ["a b c d", "d e f g", "g h i j"]
    assert [feature.input_ids.tolist() for feature in features] == [
        [CLS, *_ids("x y"), SEP, *_ids(window), SEP] for window in windows
    ]
    assert [feature.answer for feature in features] == [(0, 0), (5, 6), (0, 0)]
    second = features[1]
    assert (second.context_start, second.context_end) == (4, 8)
    assert second.starts.tolist() == [-1] * 4 + [6, 8, 10, 12] + [-1]
    assert second.ends.tolist() == [-1] * 4 + [7, 9, 11, 13] + [-1]
    assert second.segment_ids.tolist() == [0] * 4 + [1] * 5


def test_answer_positions_are_known_missing_or_empty() -> None:
    unknown = dataclasses.replace(ASKED, answers=())
    assert _build(unknown, kind="span")[0].answer is None
    space = dataclasses.replace(ASKED, answers=(Answer(" ", 1),))
    assert _build(space, kind="span")[0].answer == (0, 0)


def test_empty_context_gives_one_window() -> None:
    (feature,) = _build(TaskExample("q", ("x", "")), kind="span")
    assert feature.input_ids.tolist() == [CLS, *_ids("x"), SEP, SEP]
    assert feature.context_start == feature.context_end == 3


def test_context_is_tokenized_once() -> None:
    tokenizer = Words()
    examples = [TaskExample(str(n), (f"x {n}", CONTEXT)) for n in range(5)]
    build_features(examples, tokenizer, kind="span", max_seq_length=9, doc_stride=2)
    assert tokenizer.calls.count(CONTEXT) == 1


TEXTS = st.text(alphabet="ab 中文。", max_size=60)


@st.composite
def _questions(draw: st.DrawFn) -> TaskExample:
    context = draw(TEXTS.filter(str.strip))
    begin = draw(st.integers(0, len(context) - 1))
    end = draw(st.integers(begin + 1, len(context)))
    return TaskExample("q", (draw(TEXTS), context), None, (Answer(context[begin:end], begin),))


def _pairs(starts: np.ndarray, ends: np.ndarray) -> set[tuple[int, int]]:
    return set(zip(starts.tolist(), ends.tolist(), strict=True))


@given(_questions(), st.integers(12, 40), st.integers(1, 50))
def test_every_token_is_in_a_window_with_its_characters(
    example: TaskExample, length: int, stride: int
) -> None:
    features = _build(example, kind="span", length=length, doc_stride=stride, max_query_length=8)
    context = Words().tokenize(example.texts[1])
    token_ranges = set()
    for feature in features:
        assert len(feature.input_ids) <= length
        window = slice(feature.context_start, feature.context_end)
        token_ranges |= _pairs(feature.starts[window], feature.ends[window])
        outside = np.delete(feature.starts, np.r_[window])
        assert (outside == -1).all()
    assert token_ranges == _pairs(context.starts, context.ends)


def _text(example: TaskExample, feature: Feature) -> str:
    first, last = feature.answer
    return example.texts[1][feature.starts[first] : feature.ends[last]]


def _touched(text: str, answer: Answer) -> str:
    """Returns an answer extended to whole words, without surrounding spaces."""
    begin, end = answer.start, answer.start + len(answer.text)
    spans = [match.span() for match in re.finditer(r"[a-z]+|\S", text)]
    inside = [(start, stop) for start, stop in spans if stop > begin and start < end]
    return text[inside[0][0] : inside[-1][1]] if inside else ""


@given(_questions(), st.integers(12, 40), st.integers(1, 50))
def test_answer_in_a_window_is_its_text_up_to_token_borders(
    example: TaskExample, length: int, stride: int
) -> None:
    features = _build(example, kind="span", length=length, doc_stride=stride, max_query_length=8)
    expected = _touched(example.texts[1], example.answers[0])
    inside = [feature for feature in features if feature.answer != (0, 0)]
    assert {_text(example, feature) for feature in inside} <= {expected}
    room = length - 3 - len(Words().tokenize(example.texts[0]).ids[:8])
    if expected and len(Words().tokenize(example.texts[1]).ids) <= room:
        assert inside


REAL = [
    ("cmrc2018", "zh/tasks/cmrc2018", "train", "bert_chinese_21128", 10142, 0.99),
    ("cmrc2018", "zh/tasks/cmrc2018", "dev", "bert_chinese_21128", 1002, 0.99),
    ("xquad_zh", "xquad", "dev", "bert_multi_cased_119547", 1190, 0.999),
    ("xquad_ru", "xquad", "dev", "bert_multi_cased_119547", 1190, 0.999),
    ("xquad_en", "xquad", "dev", "bert_multi_cased_119547", 1190, 0.99),
]


@pytest.mark.shared
@pytest.mark.parametrize(("name", "folder", "split", "vocab", "count", "share"), REAL)
def test_correct_logits_give_the_answers_of_real_questions(
    name: str, folder: str, split: str, vocab: str, count: int, share: float
) -> None:
    tokenizer = load_tokenizer(
        SHARED / "data" / "vocab" / f"{vocab}.txt", do_lower_case="chinese" in vocab
    )
    examples = read_split(tasks.load_task(name), SHARED / "data" / folder, split).examples
    features = build_features(examples, tokenizer, kind="span", max_seq_length=384, doc_stride=128)
    starts, ends = ([np.zeros(len(f.input_ids), np.float32) for f in features] for _ in range(2))
    aligned, longest = set(), 0
    for index, feature in enumerate(features):
        answer = examples[feature.example].answers[0]
        first, last = feature.answer
        if (first, last) != (0, 0):
            starts[index][first], ends[index][last] = 10.0, 10.0
            longest = max(longest, last - first + 1)
            if _text(examples[feature.example], feature) == answer.text:
                aligned.add(examples[feature.example].key)
    predictions = best_answers(
        examples, features, starts, ends, max_answer_length=longest, n_best=1
    )
    wrong = [
        example.key
        for example in examples
        if example.key in aligned and predictions[example.key].text != example.answers[0].text
    ]
    print(f"{name} {split}: {len(aligned)} of {count} aligned, {len(features)} features")
    assert not wrong
    assert len(examples) == count and len(aligned) >= share * count
