"""Span extraction: questions whose answers are spans of a context, as in SQuAD."""

import collections
import dataclasses
import difflib
import json
import re
import string
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import numpy as np

from data_specs.records import INPUT_MASK
from data_specs.tasks import SPAN, SPAN_SCORES, TaskSpec
from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.base.json_text import format_value
from pipeline.base.location import Location
from pipeline.models.families.base import Family
from pipeline.tokenizers.tokens import Tokens
from tools.finetuning.inputs import Feature, Layout
from tools.finetuning.kinds.base import Predictions, TaskKind, WriteSubmission
from tools.finetuning.task_files import Answer, SplitData, TaskExample, is_text

if TYPE_CHECKING:
    from pipeline.models.architectures.components import Tensor

_OUTSIDE = -1


@dataclasses.dataclass(frozen=True, eq=False)
class SpanFeature(Feature):
    """A window of a question's context.

    Attributes:
        context_start: the position of the first context token.
        context_end: the position after the last context token.
        starts: int32 [L], the character of the context at which each token begins; -1
            outside the context.
        ends: int32 [L], the character after the last of each token; -1 outside the context.
        answer: the positions of the first and last token of the first right answer. They
            are (0, 0), which is [CLS], if the window does not contain the whole answer, and
            None if no answer is known.
    """

    token_axis: ClassVar[int | None] = 1

    context_start: int
    context_end: int
    starts: np.ndarray
    ends: np.ndarray
    answer: tuple[int, int] | None


# The punctuation that CMRC 2018's script drops. Its list also has "……", which never matches,
# because the script compares single characters.
_CMRC_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
# The characters that both Chinese scripts treat as separate words.
_CHINESE = re.compile("([\u4e00-\u9fa5])")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)

# The Penn Treebank's word segmentation, for text that CMRC's script can pass to it: lower
# case, without the punctuation above. The script calls NLTK's word_tokenize, whose versions
# differ in details. These are the rules of 3.4 to 3.8, with a plain rule for the ends of
# sentences in place of NLTK's trained one. Each line has a pattern and its replacement.
_PUNCTUATION_RULES = (
    # An opening quotation mark becomes ``, a closing one ''.
    (r"([«‘„])", r" \1 "),
    (r'^"', "`` "),
    (r"([ (\[{<])(\"|'')", r"\1 `` "),
    (r"'(?!re|ve|ll|[mtsdn])(?=\w\b)", "' "),
    # A full stop is separated at the end, or after a word of at least two letters. A comma
    # is separated unless a digit follows.
    (r"([^.])(\.)([\])}>\"'»”’ ]*)\s*$", r"\1 \2 \3 "),
    (r"(?<=[^\s.][^\W\d_])\.(?=\s)", " . "),
    (r",([^\d])", r" , \1"),
    (r",$", " , "),
    (r"(\.{2,}|[;@#$%&])", r" \1 "),
    (r"([?!])", r" \1 "),
    (r"([^'])' ", r"\1 ' "),
    (r"([\[\](){}<>])", r" \1 "),
)
# These rules need a space before and after the text.
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

    They are in lower case, without ASCII punctuation and English articles (Rajpurkar et al.
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

    They are in lower case and without punctuation; each Chinese character is a word (Lewis
    et al. 2020, mlqa_evaluation_v1.py with the language zh).

    Example: `"第 10 章。"` has the words `第`, `10`, `章`.
    """
    return _CHINESE.sub(r" \1 ", text.lower().translate(_unicode_punctuation())).split()


def cmrc_text(text: str) -> str:
    """Returns the text that CMRC 2018's script compares for an exact match."""
    return "".join(char for char in text.lower().strip() if char not in _CMRC_PUNCTUATION)


def cmrc_words(text: str) -> list[str]:
    """Returns the words that CMRC 2018's script compares.

    Each Chinese character is a word. Text between Chinese characters is separated as in
    the Penn Treebank (Cui et al. 2019, cmrc2018_evaluate.py, `mixed_segmentation`).

    Example: `"《BERT》有12层"` has the words `bert`, `有`, `12`, `层`.
    """
    texts = _CHINESE.split(cmrc_text(text))
    return [word for text_between in texts for word in _treebank_words(text_between)]


def _treebank_words(text: str) -> list[str]:
    for pattern, replacement in _PUNCTUATION:
        text = pattern.sub(replacement, text)
    text = f" {text} "
    for pattern, replacement in _WORDS:
        text = pattern.sub(replacement, text)
    return text.split()


def bag_overlap(answer: Sequence[str], right: Sequence[str]) -> int:
    """Returns the number of words that two answers share, in any order."""
    return (collections.Counter(answer) & collections.Counter(right)).total()


def run_overlap(answer: Sequence[str], right: Sequence[str]) -> int:
    """Returns the number of words in the longest run that two answers share.

    CMRC 2018's `find_lcs` looks for consecutive words, not for a subsequence.
    """
    matcher = difflib.SequenceMatcher(None, answer, right, autojunk=False)
    return matcher.find_longest_match().size


def answer_f1(answer: Sequence[str], right: Sequence[str], overlap: Callable[..., int]) -> float:
    """Returns the harmonic mean of precision and recall of words; 0 if they share none."""
    shared = overlap(answer, right)
    return 2 * shared / (len(answer) + len(right)) if shared else 0.0


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer to a question.

    Attributes:
        text: a span of the context; empty if no window contains a token of the context.
        start: the character of the context at which the answer begins.
        score: the sum of the start logit of its first token and the end logit of its last
            token; 0 without an answer.
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
    features: Sequence[SpanFeature],
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    *,
    max_answer_length: int = 30,
    n_best: int = 20,
) -> dict[str, Prediction]:
    """Returns the best answers to questions.

    The candidates are all spans of at most `max_answer_length` context tokens, in all
    windows. A span in several windows has its best score. Of equal scores, the earlier
    span wins.

    Args:
        examples: the questions.
        features: the features of the questions.
        start_logits: for each feature float [≥ L]; values after L are padding.
        end_logits: the end logits, in the same shapes.
        max_answer_length: maximum number of tokens of an answer.
        n_best: number of answers in `Prediction.n_best`.

    Returns:
        the answers by question key, in the order of the examples.

    Raises:
        ValueError: the number of logit arrays differs from that of features, or an array is
            shorter than its feature.
    """
    spans_by_example: list[list[_Span]] = [[] for _ in examples]
    for feature, starts, ends in zip(features, start_logits, end_logits, strict=True):
        length = len(feature.input_ids)
        if len(starts) < length or len(ends) < length:
            received = f"received {len(starts)} and {len(ends)}"
            raise ValueError(f"expected logits of {length} tokens, {received}")
        spans_by_example[feature.example] += _spans(
            feature, starts, ends, max_answer_length, n_best
        )
    return {
        example.key: _predict(example, spans, n_best)
        for example, spans in zip(examples, spans_by_example, strict=True)
    }


def _spans(
    feature: SpanFeature,
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
    # Spans that start at other tokens are worse than n_best spans that start at these.
    rows = _best_indices(starts + windows.max(axis=1), n_best)
    # Before it is flattened, scores[i, j] is the score of tokens rows[i] to rows[i] + j.
    scores = (starts[rows, None] + windows[rows]).ravel()
    candidates = _best_indices(scores, n_best)
    candidates = candidates[scores[candidates] > -np.inf]
    best = candidates[np.argsort(-scores[candidates], kind="stable")][:n_best]
    row, last_offset = np.divmod(best, width)
    first = rows[row]
    begins = feature.starts[window][first]
    stops = feature.ends[window][first + last_offset]
    return list(zip(begins.tolist(), stops.tolist(), scores[best].tolist(), strict=True))


def _best_indices(scores: np.ndarray, count: int) -> np.ndarray:
    """Returns the ascending indices of the `count` best scores, and of ties with the last."""
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
    """Returns the texts of predictions; a prediction may already be a text."""
    return {
        key: prediction if isinstance(prediction, str) else prediction.text
        for key, prediction in predictions.items()
    }


def answer_scores(metric: str, answer: str, right: Sequence[str]) -> tuple[float, float]:
    """Returns the F1 and the exact match of an answer, each the best over the right answers."""
    words = _WORDS_OF[metric]
    overlap = run_overlap if metric == "cmrc" else bag_overlap
    compared = cmrc_text if metric == "cmrc" else words
    answer_words = words(answer)
    return (
        max(answer_f1(answer_words, words(text), overlap) for text in right),
        max(float(compared(answer) == compared(text)) for text in right),
    )


_WORDS_OF = {"squad": squad_words, "mlqa_zh": mlqa_chinese_words, "cmrc": cmrc_words}


class _SquadAnswer(msgspec.Struct):
    text: str
    answer_start: int


class _SquadQuestion(msgspec.Struct):
    question: str
    answers: list[_SquadAnswer] = []


class _SquadParagraph(msgspec.Struct):
    context: str
    # Each question is checked separately, because a bad one may be left out.
    qas: list[dict[str, Any]]


class _CmrcQuestion(msgspec.Struct):
    query_id: str
    query_text: str
    answers: list[str] = []


class _CmrcParagraph(msgspec.Struct):
    context_text: str
    qas: list[_CmrcQuestion]

    def to_squad(self) -> _SquadParagraph:
        """Returns the paragraph in SQuAD's layout, with each answer at its first occurrence."""
        questions = [self._question(question) for question in self.qas]
        return _SquadParagraph(self.context_text, questions)

    def _question(self, content: _CmrcQuestion) -> dict[str, Any]:
        texts = dict.fromkeys(content.answers)
        answers = [{"text": text, "answer_start": self.context_text.find(text)} for text in texts]
        return {"id": content.query_id, "question": content.query_text, "answers": answers}


class _SquadArticle(msgspec.Struct):
    paragraphs: list[_SquadParagraph]


class _SquadFile(msgspec.Struct):
    data: list[_SquadArticle]


def _read_paragraphs(path: Location) -> Iterator[_SquadParagraph]:
    """Yields the paragraphs of a file in SQuAD's layout, or in CMRC's, which is a list."""
    content = path.read_json_value()
    if isinstance(content, list):
        for paragraph in json_text.convert(content, list[_CmrcParagraph], path):
            yield paragraph.to_squad()
        return
    for article in json_text.convert(content, _SquadFile, path).data:
        yield from article.paragraphs


def _read_questions(data: SplitData, paths: tuple[Location, ...]) -> Iterator[TaskExample]:
    """Yields the questions of JSON files; questions of a paragraph share its context."""
    seen_keys: set[str] = set()
    for path in paths:
        for paragraph in _read_paragraphs(path):
            if not is_text(paragraph.context):
                raise InputError(f"{path}: context", "text", format_value(paragraph.context))
            for question in paragraph.qas:
                try:
                    example = _question_example(data, path, question, paragraph.context, seen_keys)
                except InputError as error:
                    data.bad_row(error)
                else:
                    yield example


def _question_example(
    data: SplitData, path: Location, content: Mapping[str, Any], context: str, seen_keys: set[str]
) -> TaskExample:
    """Returns the example of a question, and adds its id to `seen_keys`."""
    key = str(content.get("id", ""))
    where = f"{path}, question {' '.join(key.split())[:80]}"
    if not key or key in seen_keys or not is_text(key):
        raise InputError(where, "a unique id", format_value(key))
    seen_keys.add(key)
    question = json_text.convert(content, _SquadQuestion, where)
    answers = []
    for text in (question.question, *(answer.text for answer in question.answers)):
        if not is_text(text):
            raise InputError(where, "text", format_value(text))
    for answer in question.answers:
        start = _locate(context, Answer(answer.text, answer.answer_start))
        if start is not None:
            data.num_relocated += start != answer.answer_start
            answers.append(Answer(answer.text, start))
        elif data.labeled:
            description = f"the answer {answer.text[:40]!r} in its context at character"
            raise InputError(where, f"{description} {answer.answer_start}", "none")
    if data.labeled and not answers:
        received = f"an unanswerable question of SQuAD 2.0, which {data.spec.name} does not have"
        raise InputError(where, "an answer", received)
    return TaskExample(key, (question.question, context), answers=tuple(answers))


def _locate(context: str, answer: Answer) -> int | None:
    """Returns the start of the occurrence nearest to the stated start; on a tie, the first one."""
    if not answer.text:
        return None
    if answer.start >= 0 and context.startswith(answer.text, answer.start):
        return answer.start
    # The last occurrence up to the stated start, and the first one after it.
    start = max(answer.start, -1)
    before = context.rfind(answer.text, 0, start + len(answer.text)) if start >= 0 else -1
    after = context.find(answer.text, start + 1)
    occurrences = [position for position in (before, after) if position >= 0]
    return min(occurrences, key=lambda position: abs(position - answer.start), default=None)


def _windows(
    layout: Layout,
    index: int,
    example: TaskExample,
    query: np.ndarray,
    context: Tokens,
) -> list[SpanFeature]:
    room = layout.room(2, used=len(query))
    total = len(context.ids)
    span = answer_tokens(example, context)
    features, begin, stop = [], 0, False
    while not stop:
        end = min(begin + room, total)
        stop = end == total
        ids, segments, first = layout.join([query, context.ids[begin:end]])
        last = first + end - begin
        starts, ends = (np.full(len(ids), _OUTSIDE, np.int32) for _ in range(2))
        starts[first:last] = context.starts[begin:end]
        ends[first:last] = context.ends[begin:end]
        answer = None
        if span is not None:
            inside = begin <= span[0] <= span[1] < end
            answer = (first + span[0] - begin, first + span[1] - begin) if inside else (0, 0)
        features.append(SpanFeature(index, ids, segments, first, last, starts, ends, answer))
        begin += min(layout.doc_stride, room)
    return features


def answer_tokens(example: TaskExample, context: Tokens) -> tuple[int, int] | None:
    """Returns the first and the last token of the context that overlap the first answer.

    If no token overlaps the answer, because a tokenizer may drop characters, returns
    (0, -1), which no window contains. Without an answer, returns None.

    Example: tokens at characters 0-2, 3-5 and 5-9 and an answer at 4-7 give (1, 2).
    """
    if not example.answers:
        return None
    answer = example.answers[0]
    first = int(np.searchsorted(context.ends, answer.start, side="right"))
    last = int(np.searchsorted(context.starts, answer.start + len(answer.text), side="left")) - 1
    return (first, last) if first <= last else (0, -1)


class Span(TaskKind):
    """An answer to each question; logits are [2, L], the start and end logit of each token."""

    name = SPAN
    architecture = "ForQuestionAnswering"
    pipeline_tag = "question-answering"
    max_seq_length = 384
    feature = SpanFeature
    has_windows = True
    names_labels = False
    output_layer = "qa_outputs"
    drops_hidden_rate = False
    num_texts = 2
    given = "a question and its context"
    output = "the answer's first and last token"

    def num_outputs(self, labels: Sequence[str]) -> int:
        """Returns 2: a start and an end."""
        return 2

    def dropout(self, family: Family) -> tuple[str, float] | None:
        """Returns the dropout of the family's head for spans."""
        if family.has_sequence_head_over_tokens:
            return super().dropout(family)
        return family.span_dropout

    def read(self, data: SplitData, paths: tuple[Location, ...]) -> Iterator[TaskExample]:
        """Yields the questions of JSON files; questions of a paragraph share its context."""
        return _read_questions(data, paths)

    def build_features(self, examples: Sequence[TaskExample], layout: Layout) -> list[Feature]:
        """Returns one feature for each window of a question's context.

        A feature is `[CLS] question [SEP] window [SEP]`. As in BERT's run_squad.py, each
        window begins `doc_stride` tokens after the previous one, and the last window ends
        with the context.

        Example: a context of 10 tokens and room for 4, with `doc_stride` 3, has the
            windows 0-3, 3-6 and 6-9.
        """
        features = []
        # The questions of a paragraph share its text, which is tokenized once.
        contexts: dict[str, Tokens] = {}
        tokenizer = layout.tokenizer
        for index, example in enumerate(examples):
            question, context = example.texts
            if context not in contexts:
                contexts[context] = tokenizer.tokenize(context)
            query = tokenizer.tokenize(question).ids[: layout.max_query_length]
            features += _windows(layout, index, example, query, contexts[context])
        return features

    def targets(
        self,
        examples: Sequence[TaskExample],
        features: Sequence[SpanFeature],
        labels: Sequence[str],
    ) -> np.ndarray:
        """Returns the first and the last token of each answer, int32 [N, 2]."""
        pairs = [feature.answer or (0, 0) for feature in features]
        return np.array(pairs, np.int32).reshape(-1, 2)

    def mask_logits(self, logits: "Tensor", batch: Mapping[str, "Tensor"]) -> "Tensor":
        """Masks padding, because a loss must not depend on the length of the batch."""
        from keras import ops

        from pipeline.models.architectures.components import MASKED_SCORE

        padding = 1.0 - ops.cast(batch[INPUT_MASK], "float32")
        return logits + ops.expand_dims(padding, 1) * MASKED_SCORE

    def mean_losses(self, losses: "Tensor") -> "Tensor":
        """Returns the mean of the start and end loss, [B] from [B, 2]."""
        from keras import ops

        return ops.mean(losses, axis=1)

    def predict(
        self,
        examples: Sequence[TaskExample],
        features: Sequence[SpanFeature],
        logits: Sequence[np.ndarray],
        *,
        max_answer_length: int,
    ) -> dict[str, Prediction]:
        """Returns the best answers by question key."""
        starts, ends = ([value[side] for value in logits] for side in (0, 1))
        return best_answers(examples, features, starts, ends, max_answer_length=max_answer_length)

    def evaluate(
        self, spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions
    ) -> dict[str, float]:
        """Returns F1 and exact match; a question without a prediction scores 0."""
        answers, metric = answer_texts(predictions), spec.metrics[0]
        scores = [
            answer_scores(metric, answers[example.key], [right.text for right in example.answers])
            if example.key in answers
            else (0.0, 0.0)
            for example in examples
        ]
        return dict(zip(SPAN_SCORES, np.mean(scores, axis=0).tolist(), strict=True))

    @property
    def submissions(self) -> Mapping[str, WriteSubmission]:
        """SQuAD and CMRC 2018 take one JSON object of answers by id."""
        return {"squad": _squad}


def _squad(spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions) -> bytes:
    texts = answer_texts(predictions)
    answers = {example.key: texts.get(example.key, "") for example in examples}
    return (json.dumps(answers, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


KIND = Span()
