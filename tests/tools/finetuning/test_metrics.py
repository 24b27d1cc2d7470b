"""Metrics against values by hand, the benchmarks' definitions, and SciPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs import tasks
from tools.finetuning import scoring
from tools.finetuning.kinds import classification, regression, span
from tools.finetuning.kinds.span import Prediction
from tools.finetuning.task_files import Answer, TaskExample


def _labeled(*labels: float) -> list[TaskExample]:
    return [TaskExample(str(n), ("a", "b"), label) for n, label in enumerate(labels)]


def _asked(**answers: tuple[str, ...]) -> list[TaskExample]:
    return [
        TaskExample(key, ("?", "c"), None, tuple(Answer(text, 0) for text in texts))
        for key, texts in answers.items()
    ]


def test_f1_and_matthews_equal_values_computed_by_hand() -> None:
    # The predictions have 2 true and 1 false positive, and 1 false and 1 true negative.
    examples, predictions = _labeled(1, 1, 1, 0, 0), np.array([1, 1, 0, 1, 0])
    for task, name, score in (("mrpc", "f1", 2 / 3), ("cola", "matthews", 1 / 6)):
        scores = scoring.evaluate(tasks.load_task(task), examples, predictions)
        assert scores == pytest.approx({name: score, "accuracy": 3 / 5})


def test_weighted_f1_weighs_classes_by_their_counts() -> None:
    # F1 is 2/3, 1/2 and 0 for classes of 2, 1 and 1 examples.
    scores = scoring.evaluate(tasks.load_task("rusentiment"), _labeled(0, 0, 1, 2), [0, 1, 1, 1])
    assert scores == pytest.approx({"f1_weighted": (2 * 2 / 3 + 1 / 2) / 4, "accuracy": 1 / 2})


def test_pearson_and_spearman_equal_values_computed_by_hand() -> None:
    spec = tasks.load_task("stsb")
    scores = scoring.evaluate(spec, _labeled(1.0, 3.0, 2.0, 4.0), [1, 2, 3, 4])
    assert scores == pytest.approx({"pearson": 0.8, "spearman": 0.8})
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 · 5).
    scores = scoring.evaluate(spec, _labeled(1.0, 2.0, 3.0, 9.0), [0.1, 0.2, 0.2, 0.3])
    assert scores["spearman"] == pytest.approx(0.9486832980505138)


def test_missing_class_and_constant_scores_give_zero() -> None:
    negatives, one_positive = np.zeros(3, int), np.array([0, 0, 1])
    assert (
        classification.f1(negatives, one_positive)
        == classification.matthews(negatives, one_positive)
        == 0.0
    )
    assert regression.pearson(np.full(3, 0.1), np.arange(3.0)) == 0.0
    assert regression.spearman(np.ones(3), np.arange(3.0)) == 0.0


def test_constant_score_is_that_of_the_best_constant_prediction() -> None:
    # MRPC's main metric is F1 of class 1, which is 2 · 3 / (2 · 3 + 2) if it is always predicted.
    for task, score in (("mrpc", 6 / 8), ("sst2", 3 / 5), ("cola", 0.0)):
        examples = _labeled(1, 1, 1, 0, 0)
        assert scoring.constant_score(tasks.load_task(task), examples) == pytest.approx(score)
    assert scoring.constant_score(tasks.load_task("stsb"), _labeled(1.0, 3.0)) == 0.0
    assert scoring.constant_score(tasks.load_task("squad"), _asked(a=("b",))) == 0.0


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30))
def test_matthews_equals_pearsons_correlation_of_two_classes(pairs: list[tuple[int, int]]) -> None:
    predictions, labels = np.array(pairs).T
    assert classification.matthews(predictions, labels) == pytest.approx(
        regression.pearson(predictions, labels)
    )


def test_predictions_that_do_not_match_the_examples_are_rejected() -> None:
    spec = tasks.load_task("rte")
    for predictions, message in (
        ([0, 1, 1], r"expected 2 predictions, received \[3\]"),
        (np.zeros((2, 2)), r"expected 2 predictions, received \[2, 2\]"),
        ([0.1, 0.9], "expected class indices, received float64"),
    ):
        with pytest.raises(ValueError, match=message):
            scoring.evaluate(spec, _labeled(0, 1), predictions)


@pytest.mark.parametrize(
    ("split", "text", "words"),
    [
        (span.squad_words, "The U.S., a state", ["us", "state"]),
        (span.squad_words, "An  apple\nand THE-end", ["apple", "and", "theend"]),
        (span.squad_words, "theatre a.", ["theatre"]),
        (span.squad_words, "«Ёлка» – да", ["«ёлка»", "–", "да"]),
        (span.squad_words, "长江。", ["长江。"]),
        (span.squad_words, "the", []),
        (span.mlqa_chinese_words, "第 10 章。", ["第", "10", "章"]),
        (span.mlqa_chinese_words, "《BERT》 the“A”", ["bert", "thea"]),
        (span.mlqa_chinese_words, "……", []),
        (span.cmrc_words, "《BERT》有12层", ["bert", "有", "12", "层"]),
        (span.cmrc_words, " 1963年，5.5% ", ["1963", "年", "5.5", "%"]),
        (span.cmrc_words, "1,000米, a.m.", ["1,000", "米", ",", "a.m", "."]),
        (span.cmrc_words, "nba-总决赛", ["nba", "总", "决", "赛"]),
        (span.cmrc_words, "He said, “It's here.”",
         ["he", "said", ",", "it", "'s", "here", "."]),
        # The script drops single characters, and its entry `……` has two, so it never matches.
        (span.cmrc_words, "好……", ["好", "……"]),
        (span.cmrc_words, "(a) can't. i cannot",
         ["(", "a", ")", "ca", "n't", ".", "i", "can", "not"]),
        (span.cmrc_words, "\"一\"", ["``", "一", "``"]),
        (span.cmrc_words, "", []),
    ],
)  # fmt: skip
def test_words_equal_those_of_the_benchmarks_scripts(split, text: str, words: list[str]) -> None:
    assert split(text) == words


def test_cmrc_counts_the_longest_common_run_of_words() -> None:
    # The common run is 甲乙 or 丙丁 of 4 and 5 words; a common subsequence has four words.
    score, exact = span.answer_scores("cmrc", "甲乙戊丙丁", ["甲乙丙丁"])
    assert (score, exact) == (pytest.approx(4 / 9), 0.0)
    assert span.answer_scores("squad", "a b c", ["c b"]) == (pytest.approx(1.0), 0.0)


@given(st.text("甲乙丙", max_size=9), st.text("甲乙丙", max_size=9))
def test_longest_common_run_equals_an_exhaustive_search(first: str, second: str) -> None:
    ends = range(len(first) + 1)
    runs = [end - begin for end in ends for begin in ends[:end] if first[begin:end] in second]
    assert span.run_overlap(list(first), list(second)) == max(runs, default=0)


def test_answer_scores_follow_each_benchmarks_definition() -> None:
    examples = _asked(q1=("Denver Broncos", "The Broncos"), q2=("1963年",), q3=("x",))
    answers = {"q1": "broncos!", "q2": Prediction("1963年被任为主教", 0, 1.0, ())}
    squad = scoring.evaluate(tasks.load_task("squad"), examples, answers)
    assert squad == pytest.approx({"f1": 1 / 3, "exact_match": 1 / 3})
    # The correct answer has 2 of the 7 words. The question without a prediction scores 0.
    cmrc = scoring.evaluate(tasks.load_task("cmrc2018"), examples[1:], answers)
    assert cmrc == pytest.approx({"f1": 2 * 2 / (7 + 2) / 2, "exact_match": 0.0})
    mlqa = scoring.evaluate(tasks.load_task("xquad_zh"), examples[1:2], {"q2": "1963 年。"})
    assert mlqa == {"f1": 1.0, "exact_match": 1.0}


def test_an_answer_of_articles_alone_matches_without_overlap() -> None:
    assert span.answer_scores("squad", "a", ["the"]) == (0.0, 1.0)


def test_exact_match_ignores_punctuation() -> None:
    assert span.answer_scores("cmrc", " 《BERT》 ", ["bert"])[1] == 1.0
    assert span.answer_scores("cmrc", "bert.", ["bert"])[1] == 0.0


@pytest.mark.peers
def test_correlations_equal_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(1)
    for _ in range(20):
        labels = random.integers(0, 26, 200) / 5
        predictions = labels + random.normal(0, 1, 200).round(1)
        assert regression.pearson(predictions, labels) == pytest.approx(
            stats.pearsonr(predictions, labels)[0]
        )
        assert regression.spearman(predictions, labels) == pytest.approx(
            stats.spearmanr(predictions, labels)[0]
        )


@pytest.mark.peers
def test_answer_scores_equal_those_of_transformers() -> None:
    peer = pytest.importorskip(
        "transformers.data.metrics.squad_metrics", reason="transformers 5 dropped it"
    )
    words = ("the", "A", "an", "U.S.", "state,", "(50%)", "Ёлка", "長江。", "co-op", "it's", "–")
    random = np.random.default_rng(2)
    for _ in range(300):
        answer, expected_answer = (
            " ".join(random.choice(words, random.integers(1, 6))) for _ in range(2)
        )
        score, exact = span.answer_scores("squad", answer, [expected_answer])
        assert exact == peer.compute_exact(expected_answer, answer)
        # transformers gives two answers without words the score 1; SQuAD 1.1's script gives 0.
        if span.squad_words(answer):
            assert score == pytest.approx(peer.compute_f1(expected_answer, answer))
