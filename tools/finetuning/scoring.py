"""Answers to questions, the scores of a task's benchmark, and files to hand in."""

import collections
import dataclasses
import difflib
import json
import math
import re
import string
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np

from data_specs.tasks import SPAN_SCORES, TaskSpec
from pipeline.base.location import Location
from tools.finetuning.inputs import Feature
from tools.finetuning.task_data import TaskExample

# The punctuation that CMRC 2018's script drops. Its list also holds "……", which, as it
# compares one character after another, never occurs.
_CMRC_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
# What both Chinese scripts take for a word of its own.
_CHINESE = re.compile("([\u4e00-\u9fa5])")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)

# The Penn Treebank's way to separate words, as far as CMRC's script can meet it: lower
# case, without its punctuation. It calls NLTK's word_tokenize, whose versions differ in
# details; these are the rules of 3.4 to 3.8, with a plain rule for the ends of sentences
# in place of NLTK's trained one. Each line: what is separated, and by what replaced.
_PUNCTUATION_RULES = (
    # Quotation marks: an opening one becomes ``, a closing one ''.
    (r"([«‘„])", r" \1 "),
    (r'^"', "`` "),
    (r"([ (\[{<])(\"|'')", r"\1 `` "),
    (r"'(?!re|ve|ll|[mtsdn])(?=\w\b)", "' "),
    # A full stop at the end, or after a word of two letters or more; commas but in numbers.
    (r"([^.])(\.)([\])}>\"'»”’ ]*)\s*$", r"\1 \2 \3 "),
    (r"(?<=[^\s.][^\W\d_])\.(?=\s)", " . "),
    (r",([^\d])", r" , \1"),
    (r",$", " , "),
    (r"(\.{2,}|[;@#$%&])", r" \1 "),
    (r"([?!])", r" \1 "),
    (r"([^'])' ", r"\1 ' "),
    (r"([\[\](){}<>])", r" \1 "),
)
# These take the text between two spaces.
_WORD_RULES = (
    (r"([»])", r" \1 "),
    (r"(''|\")", " '' "),
    (r"([^' ])('[smd]|') ", r"\1 \2 "),
    (r"([^' ])('ll|'re|'ve|n't) ", r"\1 \2 "),
    (r"\b(can(?=not)|gim(?=me)|gon(?=na)|got(?=ta)|lem(?=me))(not|me|na|ta)\b", r" \1 \2 "),
    (r"\b(d)('ye)\b", r" \1 \2 "),
    (r"\b(more)('n)\b", r" \1 \2 "),
    (r"\b(wan)(na)(?=\s)", r" \1 \2 "),
    (r" ('t)(is|was)\b", r" \1 \2 "),
)
_PUNCTUATION, _WORDS = (
    tuple((re.compile(pattern), replacement) for pattern, replacement in rules)
    for rules in (_PUNCTUATION_RULES, _WORD_RULES)
)


def squad_words(text: str) -> list[str]:
    """Returns the words that SQuAD's script compares.

    Lower case, without ASCII punctuation and English articles (Rajpurkar et al.
    2016, evaluate-v1.1.py).

    Example: `"The U.S., a state"` has the words `us`, `state`.
    """
    return _ARTICLES.sub(" ", text.lower().translate(_ASCII_PUNCTUATION)).split()


@cache
def _unicode_punctuation() -> dict[int, None]:
    marks = [
        code for code in range(sys.maxunicode) if unicodedata.category(chr(code)).startswith("P")
    ]
    return dict.fromkeys([*marks, *map(ord, string.punctuation)])


def mlqa_chinese_words(text: str) -> list[str]:
    """Returns the words that MLQA's script compares in Chinese.

    Lower case, without punctuation, each Chinese character a word (Lewis et al.
    2020, mlqa_evaluation_v1.py with the language zh).

    Example: `"第 10 章。"` has the words `第`, `10`, `章`.
    """
    return _CHINESE.sub(r" \1 ", text.lower().translate(_unicode_punctuation())).split()


def cmrc_text(text: str) -> str:
    """Returns what CMRC 2018's script compares for an exact match."""
    return "".join(char for char in text.lower().strip() if char not in _CMRC_PUNCTUATION)


def cmrc_words(text: str) -> list[str]:
    """Returns the words that CMRC 2018's script compares.

    Each Chinese character is one; what stands between them is separated as in the
    Penn Treebank (Cui et al. 2019, cmrc2018_evaluate.py, `mixed_segmentation`).

    Example: `"《BERT》有12层"` has the words `bert`, `有`, `12`, `层`.
    """
    parts = _CHINESE.split(cmrc_text(text))
    return [word for part in parts for word in _treebank_words(part)]


def _treebank_words(text: str) -> list[str]:
    for pattern, replacement in _PUNCTUATION:
        text = pattern.sub(replacement, text)
    text = f" {text} "
    for pattern, replacement in _WORDS:
        text = pattern.sub(replacement, text)
    return text.split()


def bag_overlap(answer: Sequence[str], right: Sequence[str]) -> int:
    """Returns how many words two answers share, in whatever order."""
    return (collections.Counter(answer) & collections.Counter(right)).total()


def run_overlap(answer: Sequence[str], right: Sequence[str]) -> int:
    """Returns the words of the longest run that two answers share.

    CMRC 2018's `find_lcs` looks for words in a row, not for a subsequence.
    """
    matcher = difflib.SequenceMatcher(None, answer, right, autojunk=False)
    return matcher.find_longest_match().size


def answer_f1(answer: Sequence[str], right: Sequence[str], overlap: Callable[..., int]) -> float:
    """Returns the harmonic mean of precision and recall of words; 0 where nothing is shared."""
    shared = overlap(answer, right)
    return 2 * shared / (len(answer) + len(right)) if shared else 0.0


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer to a question.

    Attributes:
        text: cut from the context; empty where no window has a token of it.
        start: the character of the context at which it begins.
        score: the sum of its first token's start logit and its last one's end
            logit; 0 where there is no answer.
        n_best: the best answers and their scores, this one first.
    """

    text: str
    start: int
    score: float
    n_best: tuple[tuple[str, float], ...]


# A span of characters and its score.
_Span = tuple[int, int, float]


def best_answers(
    examples: Sequence[TaskExample],
    features: Sequence[Feature],
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    *,
    max_answer_length: int = 30,
    n_best: int = 20,
) -> dict[str, Prediction]:
    """Finds the best answers to questions.

    Every span of the context of at most `max_answer_length` tokens counts, in
    every window; a span that several windows hold counts with its best score. Of
    equal scores the earlier span wins.

    Args:
        examples: the questions.
        features: theirs.
        start_logits: for each feature float [≥ L]; what stands beyond L is padding.
        end_logits: likewise.
        max_answer_length: tokens of an answer at most.
        n_best: answers that are kept.

    Returns:
        the answers by the questions' keys, in their order.

    Raises:
        ValueError: there are not as many logits as features, or fewer than tokens.
    """
    found: list[list[_Span]] = [[] for _ in examples]
    for feature, starts, ends in zip(features, start_logits, end_logits, strict=True):
        length = len(feature.input_ids)
        if len(starts) < length or len(ends) < length:
            received = f"received {len(starts)} and {len(ends)}"
            raise ValueError(f"expected logits of {length} tokens, {received}")
        found[feature.example] += _spans(feature, starts, ends, max_answer_length, n_best)
    return {
        example.key: _predict(example, spans, n_best)
        for example, spans in zip(examples, found, strict=True)
    }


def _spans(
    feature: Feature,
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    max_answer_length: int,
    n_best: int,
) -> list[_Span]:
    """Returns the best spans of a window, the best first."""
    window = slice(feature.context_start, feature.context_end)
    starts = np.asarray(start_logits, np.float32)[window]
    if not len(starts):
        return []
    width = min(max_answer_length, len(starts))
    beyond = np.full(width - 1, -np.inf, np.float32)
    ends = np.concatenate([np.asarray(end_logits, np.float32)[window], beyond])
    windows = np.lib.stride_tricks.sliding_window_view(ends, width)
    # Spans from tokens other than these are worse than n_best others.
    rows = _best_places(starts + windows.max(axis=1), n_best)
    # scores[i, j] is that of the tokens rows[i] to rows[i] + j.
    scores = (starts[rows, None] + windows[rows]).ravel()
    places = _best_places(scores, n_best)
    places = places[scores[places] > -np.inf]
    best = places[np.argsort(-scores[places], kind="stable")][:n_best]
    row, more = np.divmod(best, width)
    first = rows[row]
    begins = feature.starts[window][first]
    stops = feature.ends[window][first + more]
    return list(zip(begins.tolist(), stops.tolist(), scores[best].tolist(), strict=True))


def _best_places(scores: np.ndarray, count: int) -> np.ndarray:
    """Returns where the best scores are, ascending, with all that tie with the last of them."""
    count = min(count, len(scores))
    return np.flatnonzero(scores >= np.partition(scores, len(scores) - count)[-count])


def _predict(example: TaskExample, spans: list[_Span], n_best: int) -> Prediction:
    context = example.texts[1]
    spans = sorted(spans, key=lambda span: (-span[2], span[0], span[1]))
    best: dict[tuple[int, int], float] = {}
    for begin, stop, score in spans:
        if stop > begin and len(best) < n_best:
            best.setdefault((begin, stop), score)
    if not best:
        return Prediction("", 0, 0.0, ())
    texts = tuple((context[begin:stop], score) for (begin, stop), score in best.items())
    (start, _), score = next(iter(best.items()))
    return Prediction(texts[0][0], start, score, texts)


def answer_texts(predictions: Mapping[str, Prediction | str]) -> dict[str, str]:
    """Returns the texts of answers, which may be texts already."""
    return {key: one if isinstance(one, str) else one.text for key, one in predictions.items()}


# Predictions: for classes their indices [examples], for a regression numbers [examples],
# for questions answers by key.
Predictions = np.ndarray | Sequence[int] | Sequence[float] | Mapping[str, Prediction | str]


def evaluate(
    spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions
) -> dict[str, float]:
    """Scores predictions as the task's benchmark does.

    Args:
        spec: the task.
        examples: one at least, all with labels or answers.
        predictions: class indices int [examples], numbers float [examples], or the
            answers by the questions' keys; a question without one scores 0.

    Returns:
        for each of the task's metrics its value by its name; for questions `f1`
        and `exact_match`.

    Raises:
        ValueError: the predictions do not fit the examples.
    """
    if spec.kind == "span":
        answers, metric = answer_texts(predictions), spec.metrics[0]
        scores = [
            answer_scores(metric, answers[example.key], [right.text for right in example.answers])
            if example.key in answers
            else (0.0, 0.0)
            for example in examples
        ]
        return dict(zip(SPAN_SCORES, np.mean(scores, axis=0).tolist(), strict=True))
    labels = np.array([example.label for example in examples])
    found = np.asarray(predictions)
    if found.shape != labels.shape:
        raise ValueError(f"expected {len(labels)} predictions, received {list(found.shape)}")
    if spec.kind == "classification" and not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"expected class indices, received {found.dtype}")
    return {name: _METRICS[name](found, labels) for name in spec.metrics}


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of predictions that are right."""
    return float(np.mean(predictions == labels))


def _counts(predictions: np.ndarray, labels: np.ndarray, positive: int) -> tuple[int, ...]:
    """Returns true positives, false positives, false negatives and true negatives."""
    said, true = predictions == positive, labels == positive
    pairs = ((said, true), (said, ~true), (~said, true), (~said, ~true))
    return tuple(int(np.count_nonzero(first & second)) for first, second in pairs)


def f1(predictions: np.ndarray, labels: np.ndarray, *, positive: int = 1) -> float:
    """Returns 2·tp / (2·tp + fp + fn) of one class; 0 where it never occurs."""
    tp, fp, fn, _ = _counts(predictions, labels, positive)
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


def f1_weighted(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean of each class's F1, weighted by how often it is right."""
    classes, counts = np.unique(labels, return_counts=True)
    scores = [f1(predictions, labels, positive=index) for index in classes]
    return float(np.average(scores, weights=counts))


def matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Returns Matthews' correlation of two classes (1975); 0 where one never occurs."""
    tp, fp, fn, tn = _counts(predictions, labels, 1)
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(product) if product else 0.0


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Returns Pearson's correlation; 0 where one side is constant, which has none."""
    first = predictions - np.mean(predictions, dtype=np.float64)
    second = labels - np.mean(labels, dtype=np.float64)
    # Divided by the largest first, so that no square underflows.
    scales = [float(np.max(np.abs(side))) for side in (first, second)]
    if not all(scales):
        return 0.0
    first, second = first / scales[0], second / scales[1]
    return float(first @ second / math.sqrt((first @ first) * (second @ second)))


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Returns Pearson's correlation of the ranks; equal values share their mean rank."""
    return pearson(_ranks(predictions), _ranks(labels))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Returns ranks from 1, float64; `[3, 1, 3]` has the ranks `[2.5, 1, 2.5]`."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


_METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "f1_weighted": f1_weighted,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


def answer_scores(metric: str, answer: str, right: Sequence[str]) -> tuple[float, float]:
    """Returns the F1 and the exact match of an answer, each with the best of the right ones."""
    words = _WORDS_OF[metric]
    overlap = run_overlap if metric == "cmrc" else bag_overlap
    compared = cmrc_text if metric == "cmrc" else words
    found = words(answer)
    return (
        max(answer_f1(found, words(text), overlap) for text in right),
        max(float(compared(answer) == compared(text)) for text in right),
    )


_WORDS_OF = {"squad": squad_words, "mlqa_zh": mlqa_chinese_words, "cmrc": cmrc_words}


def write_submission(
    spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions, path: Location
) -> None:
    """Writes predictions, atomically.

    CLUE takes JSON lines, `{"id": 0, "label": "1"}`; GLUE a TSV with the header
    `index`, `prediction`, classes by their names and numbers with three decimals
    within the task's range; SQuAD and CMRC 2018 one JSON object of answers by id.

    Args:
        spec: the task.
        examples: in the order of the file.
        predictions: as for `evaluate`.
        path: the file; its name is `spec.submission.file_of(split)`.

    Raises:
        ValueError: the predictions do not fit the examples.
    """
    path.write_whole(_FORMATS[spec.submission.format](spec, examples, predictions))


def _said(
    spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions
) -> list[tuple[str, str]]:
    """Returns each example's key, and what is predicted in the file's words."""
    if len(predictions) != len(examples):
        raise ValueError(f"expected {len(examples)} predictions, received {len(predictions)}")
    if spec.kind == "regression":
        values = np.clip(np.asarray(predictions, np.float64), *spec.score_range)
        words = [f"{value:.3f}" for value in values]
    else:
        words = [spec.labels[index] for index in predictions]
    return [(example.key, word) for example, word in zip(examples, words, strict=True)]


def _clue(spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions) -> bytes:
    lines = (
        {"id": int(key) if key.isascii() and key.isdigit() else key, "label": word}
        for key, word in _said(spec, examples, predictions)
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8")


def _glue(spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions) -> bytes:
    rows = [("index", "prediction"), *_said(spec, examples, predictions)]
    return "".join(f"{key}\t{word}\n" for key, word in rows).encode("utf-8")


def _squad(spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions) -> bytes:
    texts = answer_texts(predictions)
    answers = {example.key: texts.get(example.key, "") for example in examples}
    return (json.dumps(answers, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


_FORMATS: dict[str, Callable[..., bytes]] = {"clue": _clue, "glue": _glue, "squad": _squad}
