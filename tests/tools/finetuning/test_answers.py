"""The best answer spans over all windows, compared with an exhaustive search."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools.finetuning.test_features import Words
from tools.finetuning.kinds import build_features
from tools.finetuning.kinds.span import Prediction, best_answers
from tools.finetuning.task_files import TaskExample

CONTEXT = "ab cd 中文 ef gh。"
EXAMPLES = (TaskExample("q1", ("x", CONTEXT)), TaskExample("q2", ("y z", "one two")))


def _features(length: int = 9, stride: int = 2):
    return build_features(EXAMPLES, Words(), kind="span", max_seq_length=length, doc_stride=stride)


def _zeros(features, padding: int = 0) -> list[np.ndarray]:
    return [np.zeros(len(feature.input_ids) + padding, np.float32) for feature in features]


def _every_span(features, starts, ends, longest: int) -> dict[int, list[tuple]]:
    """Returns the character spans of each example with their best scores, best first."""
    scores_of_example: dict[int, dict] = {}
    for feature, start, end in zip(features, starts, ends, strict=True):
        spans = scores_of_example.setdefault(feature.example, {})
        for first in range(feature.context_start, feature.context_end):
            for last in range(first, min(first + longest, feature.context_end)):
                span = (int(feature.starts[first]), int(feature.ends[last]))
                score = float(np.float32(start[first]) + np.float32(end[last]))
                spans[span] = max(score, spans.get(span, -np.inf))
    return {
        example: sorted(((-score, *span) for span, score in spans.items()))
        for example, spans in scores_of_example.items()
    }


@given(st.integers(0, 10_000), st.integers(6, 14), st.integers(1, 9), st.integers(1, 9))
def test_best_answers_equal_an_exhaustive_search(
    seed: int, length: int, stride: int, longest: int
) -> None:
    random = np.random.default_rng(seed)
    features = _features(length, stride)
    # Logits have few distinct values, so that scores tie.
    starts, ends = (
        [random.integers(0, 4, len(zeros)).astype(np.float32) for zeros in _zeros(features)]
        for _ in range(2)
    )
    answers = best_answers(EXAMPLES, features, starts, ends, max_answer_length=longest, n_best=3)
    expected = _every_span(features, starts, ends, longest)
    assert list(answers) == ["q1", "q2"]
    for index, example in enumerate(EXAMPLES):
        score, begin, end = expected[index][0]
        answer = answers[example.key]
        assert (answer.text, answer.start) == (example.texts[1][begin:end], begin)
        assert (answer.score, answer.n_best[0]) == (-score, (answer.text, -score))
        scores = [value for _, value in answer.n_best]
        assert scores == [-negative_score for negative_score, *_ in expected[index][: len(scores)]]


def test_answer_text_is_a_slice_of_the_context() -> None:
    features = _features(20)
    starts, ends = _zeros(features, padding=3), _zeros(features, padding=3)
    # Padding, the question and separators are ignored even with the largest logits.
    for logits in (*starts, *ends):
        logits[[0, 1, 2, -1, -2, -3]] = 99.0
    starts[0][4], ends[0][6] = 5.0, 6.0
    answer = best_answers(EXAMPLES, features, starts, ends)["q1"]
    assert (answer.text, answer.start, answer.score) == ("cd 中文", 3, 11.0)
    assert CONTEXT[3:8] == answer.text


def test_empty_context_gives_an_empty_answer() -> None:
    examples = (TaskExample("q", ("x", "")),)
    features = build_features(examples, Words(), kind="span", max_seq_length=9)
    answers = best_answers(examples, features, _zeros(features), _zeros(features))
    assert answers == {"q": Prediction("", 0, 0.0, ())}


def test_logits_of_another_shape_are_rejected() -> None:
    features = _features(20)
    with pytest.raises(ValueError, match="is shorter than argument"):
        best_answers(EXAMPLES, features, _zeros(features), _zeros(features)[:1])
    short = [logits[:-1] for logits in _zeros(features)]
    with pytest.raises(ValueError, match="expected logits of 11 tokens, received 10 and 11"):
        best_answers(EXAMPLES, features, short, _zeros(features))
