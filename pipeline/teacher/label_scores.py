"""A teacher's predictions of the labels, compared with chance and with a unigram model.

A teacher whose masked-LM head was never trained has all its tensors, but its targets are noise.
Its predictions reveal it: its most probable token is the label no more often than by chance.

The unigram model predicts a label from the frequencies of the other labels. Leaving the label
itself out keeps a small sample from predicting itself. Of n labels, c equal the label and T are
distinct. The label's probability is then (c − 1 + T / V) / (n − 1 + T), after Witten and Bell
(1991).
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data_specs import records
from pipeline.base.errors import InputError, Setting, show_settings
from pipeline.models.formats.tensor_names import head_training
from pipeline.storage.manifest import LabelSums, Manifest

# Name of the entropies in the output of the compiled forward pass. No record holds them.
ENTROPIES = "entropies"
# Name of the scores in a manifest's statistics.
STATISTICS_KEY = "teacher_on_labels"
# Fewer labels are too few to refuse a teacher.
MIN_LABELS = 1_500
# Threshold in standard errors. Sampling noise alone exceeds it for one teacher in a thousand.
_NUM_ERRORS = 3.0
# A teacher's loss must be below the unigram model's by this share. A masked LM of 4 layers of 256
# dimensions reaches it on Chinese text after about 700 steps from random weights.
_WEAK_GAIN = 0.15

_TRAIN_HEAD = head_training("TEACHER")
_RANDOM_ENCODER = "if its encoder is untrained too, train without `freeze`, for many more steps"
_ADAPT = (
    "run_distill `student`=TEACHER `losses`=masked_lm=1 `input_dir`=EXAMPLES "
    "`num_train_steps`=10000 `learning_rate`=5e-5 `output_dir`=NEW_TEACHER"
)


@dataclasses.dataclass(frozen=True)
class LabelScores:
    """Scores of the teacher and of two baselines on the labels.

    Accuracies are shares of the labels. Log-probabilities are means in nats.

    Attributes:
        num_labels: number of masked positions, at least one.
        accuracy: share of labels that are the teacher's most probable token.
        label_log_prob: the teacher's log-probability of the label.
        label_log_prob_error: standard error of `label_log_prob`.
        entropy_share: mean entropy of the teacher's distributions, divided by the logarithm of
            the vocabulary's size.
        unigram_accuracy: share of labels that are the most frequent label.
        unigram_log_prob: the unigram model's log-probability of the label.
        chance_accuracy: probability of each token in a uniform distribution.
        chance_log_prob: log-probability of each token in a uniform distribution.
    """

    num_labels: int
    accuracy: float
    label_log_prob: float
    label_log_prob_error: float
    entropy_share: float
    unigram_accuracy: float
    unigram_log_prob: float
    chance_accuracy: float
    chance_log_prob: float

    @classmethod
    def of(cls, sums: LabelSums | None, vocab_size: int) -> "LabelScores | None":
        """Returns the means of sums over labels; None without labels."""
        if sums is None or not sums.num_labels:
            return None
        count, log_vocab = sums.num_labels, math.log(vocab_size)
        mean = sums.log_prob / count
        variance = max(0.0, sums.log_prob_squares / count - mean * mean)
        return cls(
            num_labels=count,
            accuracy=sums.num_hits / count,
            label_log_prob=mean,
            label_log_prob_error=math.sqrt(variance / count),
            # The logarithm is 0 for a vocabulary of one token.
            entropy_share=sums.entropy / count / log_vocab if log_vocab else 0.0,
            unigram_accuracy=sums.unigram_hits / count,
            unigram_log_prob=sums.unigram_log_prob / count,
            chance_accuracy=1.0 / vocab_size,
            chance_log_prob=-log_vocab,
        )

    @property
    def is_worse_than_unigram(self) -> bool:
        """Whether the teacher is significantly worse than the unigram model.

        Its label log-probability must be lower, and its accuracy must not be higher. A teacher
        with a high accuracy is useful, even if it is overconfident where it is wrong.
        """
        share = self.unigram_accuracy
        error = math.sqrt(share * (1.0 - share) / self.num_labels)
        upper_bound = self.label_log_prob + _NUM_ERRORS * self.label_log_prob_error
        return self.accuracy <= share + _NUM_ERRORS * error and upper_bound < self.unigram_log_prob

    @property
    def is_weak(self) -> bool:
        """Whether the teacher's loss is hardly below the unigram model's; see `_WEAK_GAIN`."""
        gain = self.label_log_prob - self.unigram_log_prob
        return gain < -_WEAK_GAIN * self.unigram_log_prob

    def figures(self) -> str:
        """Returns the teacher's scores as text."""
        return (
            f"top-1 accuracy {self.accuracy:.1%} on {self.num_labels:,} labels, "
            f"log-probability {self.label_log_prob:.2f} nats, entropy "
            f"{self.entropy_share:.0%} of log V"
        )

    def baselines(self) -> str:
        """Returns the scores of the unigram model and of chance as text."""
        return (
            f"label frequencies alone {self.unigram_accuracy:.1%}, {self.unigram_log_prob:.2f} "
            f"nats; chance {100.0 * self.chance_accuracy:.2g}%, {self.chance_log_prob:.2f} nats"
        )

    def describe(self) -> Iterator[str]:
        """Yields lines for a summary: the scores, the baselines, and a warning if needed."""
        yield f"labels     {self.figures()}"
        yield f"           {self.baselines()}"
        for number, line in enumerate(self.warning()):
            yield f"{'' if number else 'warning:':9}{line}"

    def warning(self) -> Iterator[str]:
        """Yields the lines of a warning if the teacher is useless or barely useful."""
        if self.is_worse_than_unigram:
            yield "the teacher predicts the labels worse than their frequencies do;"
            yield "its masked-LM head may be untrained. This trains a new one:"
            yield show_settings(_TRAIN_HEAD, str)
            yield show_settings(_RANDOM_ENCODER, str)
        elif self.is_weak:
            difference = self.label_log_prob - self.unigram_log_prob
            gain = "not" if difference <= 0.0 else f"only {difference / -self.unigram_log_prob:.1%}"
            yield f"the teacher's loss is {gain} below that of label frequencies. If it is less"
            yield f"than {_WEAK_GAIN:.0%} below, a student learns little from the teacher."
            yield "First check that do_whole_word_mask and segments of create_pretraining_data are"
            yield "those of the teacher's own training. Otherwise add masked_lm to the student's"
            yield "losses, or adapt the teacher to this text first:"
            yield show_settings(_ADAPT, str)

    def expect_useful(self, setting: str) -> None:
        """Raises InputError if the teacher is significantly worse than the unigram model.

        `setting` is the subject of the error.
        """
        if self.is_worse_than_unigram and self.num_labels >= MIN_LABELS:
            raise InputError(
                Setting(setting),
                "a model that predicts the labels at least as well as their frequencies do",
                f"{self.figures()} ({self.baselines()})",
                f"its masked-LM head may be untrained: train it with {_TRAIN_HEAD}; "
                f"{_RANDOM_ENCODER}; set `force` to capture it nevertheless",
            )


def of_cache(manifest: Manifest) -> LabelScores | None:
    """Returns the scores of a cache's teacher; None if its shards hold no sums."""
    return LabelScores.of(manifest.label_sums(), manifest.vocab.size)


class LabelScoreAccumulator:
    """Running sums of a teacher's scores on labels."""

    def __init__(self, vocab_size: int) -> None:
        self._counts = np.zeros(vocab_size, np.int64)
        self._num_hits = 0
        # Sums of the log-probability, its square and the entropy.
        self._sums = np.zeros(3)

    def add(self, labels: np.ndarray, output: Mapping[str, Any]) -> None:
        """Adds the scores of masked positions.

        Args:
            labels: int [positions].
            output: of the teacher, as `truncation.truncate` and `truncation.entropies` return
                it, [positions, …] each.
        """
        log_probs = output[records.LABEL_LOG_PROBS].astype(np.float64)
        entropies = output[ENTROPIES].astype(np.float64)
        self._num_hits += int((output[records.TOPK_IDS][:, 0] == labels).sum())
        self._sums += [log_probs.sum(), np.square(log_probs).sum(), entropies.sum()]
        self._counts += np.bincount(labels, minlength=len(self._counts))

    def sums(self) -> LabelSums:
        """Returns the sums over the added positions, of the teacher and of the unigram model."""
        counts = self._counts[self._counts > 0]
        total, num_distinct = int(counts.sum()), len(counts)
        unigram_probs = (counts - 1 + num_distinct / len(self._counts)) / max(
            1, total - 1 + num_distinct
        )
        log_prob, squares, entropy = self._sums.tolist()
        return LabelSums(
            num_labels=total,
            num_hits=self._num_hits,
            log_prob=log_prob,
            log_prob_squares=squares,
            entropy=entropy,
            unigram_hits=int(counts.max(initial=0)),
            unigram_log_prob=float((counts * np.log(unigram_probs)).sum()),
        )

    def scores(self) -> LabelScores | None:
        """Returns the means over the added positions; None without labels."""
        return LabelScores.of(self.sums(), len(self._counts))
