"""The answer to a question: the best span over all windows of its context."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tools.finetuning.features import Feature
from tools.finetuning.task_data import TaskExample


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
    if not len(features) == len(start_logits) == len(end_logits):
        raise ValueError(
            f"expected logits of {len(features)} features, "
            f"received {len(start_logits)} and {len(end_logits)}"
        )
    found: list[list[_Span]] = [[] for _ in examples]
    for feature, starts, ends in zip(features, start_logits, end_logits, strict=True):
        length = len(feature.input_ids)
        if len(starts) < length or len(ends) < length:
            raise ValueError(
                f"expected logits of {length} tokens, received {len(starts)} and {len(ends)}"
            )
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
    return {
        key: prediction if isinstance(prediction, str) else prediction.text
        for key, prediction in predictions.items()
    }
