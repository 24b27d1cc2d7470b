"""A teacher's predictions of the labels, beside chance and the labels' own frequencies.

A teacher whose masked-LM head was never trained has all its tensors, and its targets are noise.
Its predictions show it: of a published model whose head begins at random, no more labels than by
chance are the most probable token.

The unigram model is the labels' own frequencies. A label's probability is that of the other
labels, so that few labels do not describe themselves: with c of n labels equal to it and T
different ones, (c − 1 + T / V) / (n − 1 + T), after Witten and Bell (1991).
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data_specs import records
from pipeline.base.errors import InputError, Setting, show_settings
from pipeline.storage.manifest import LabelSums, Manifest

# Among what is kept of a teacher's output, and in no record.
ENTROPIES = "entropies"
# In a manifest's statistics.
STATISTICS_KEY = "teacher_on_labels"
# No teacher is refused by fewer labels: so small a cache costs little.
MIN_LABELS = 1_500
# Standard errors: one in a thousand teachers differs by as much without being different.
_ERRORS = 3.0
# The share of the unigram model's loss that a teacher must save. A masked LM of 4 layers of 256
# dimensions that begins at random saves as much of Chinese text in some 700 steps.
_WEAK_GAIN = 0.15

_TRAIN_HEAD = "run_distill `student`=TEACHER `losses`=masked_lm=1 `freeze`=encoder"
_ADAPT = "run_distill `student`=TEACHER `losses`=masked_lm=1"


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Predictions of labels. Log-probabilities are means in nats, the others are shares.

    Attributes:
        num_labels: masked positions, at least one.
        accuracy: labels that are the teacher's most probable token.
        label_log_prob: of the labels.
        label_log_prob_error: its standard error.
        entropy_share: of the teacher's distributions, of the logarithm of the vocabulary's size.
        unigram_accuracy: labels that are the most frequent one.
        unigram_log_prob: of the labels, by their frequencies.
        chance_accuracy: of one token in the vocabulary.
        chance_log_prob: of the same.
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
    def of(cls, sums: LabelSums | None, vocab_size: int) -> "Judgement | None":
        """Returns the means of sums over labels; None where there are none."""
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
            # A vocabulary of one token leaves nothing to be unsure of.
            entropy_share=sums.entropy / count / log_vocab if log_vocab else 0.0,
            unigram_accuracy=sums.unigram_hits / count,
            unigram_log_prob=sums.unigram_log_prob / count,
            chance_accuracy=1.0 / vocab_size,
            chance_log_prob=-log_vocab,
        )

    @property
    def is_no_better(self) -> bool:
        """Whether the teacher is worse than the unigram model, by more than chance explains.

        Its label log-probability is, and its accuracy is not higher: a teacher that is often
        right, and too sure where it is wrong, knows something.
        """
        share = self.unigram_accuracy
        error = math.sqrt(share * (1.0 - share) / self.num_labels)
        most = self.label_log_prob + _ERRORS * self.label_log_prob_error
        return self.accuracy <= share + _ERRORS * error and most < self.unigram_log_prob

    @property
    def is_weak(self) -> bool:
        """Whether the teacher saves less of the unigram model's loss than a short training."""
        gain = self.label_log_prob - self.unigram_log_prob
        return gain < -_WEAK_GAIN * self.unigram_log_prob

    def figures(self) -> str:
        """Returns what the teacher predicts, in words."""
        return (
            f"first choice right at {self.accuracy:.1%} of {self.num_labels:,} labels, "
            f"log-probability {self.label_log_prob:.2f} nats, entropy "
            f"{self.entropy_share:.0%} of log V"
        )

    def baselines(self) -> str:
        """Returns the same of the labels' frequencies and of chance."""
        return (
            f"label frequencies alone {self.unigram_accuracy:.1%}, {self.unigram_log_prob:.2f} "
            f"nats; chance {100.0 * self.chance_accuracy:.2g}%, {self.chance_log_prob:.2f} nats"
        )

    def describe(self) -> Iterator[str]:
        """Yields lines for a summary: the figures, the baselines, and advice where it is due."""
        yield f"labels     {self.figures()}"
        yield f"           {self.baselines()}"
        if self.is_no_better:
            yield "warning    the teacher predicts the labels no better than their frequencies do;"
            yield "           its masked-LM head may be untrained. This trains a new one:"
            yield f"           {show_settings(_TRAIN_HEAD, str)}"
        elif self.is_weak:
            yield "warning    the teacher predicts the labels hardly better than their frequencies"
            yield "           do. A share of masked_lm in the student's losses pays, or to adapt"
            yield "           the teacher to this text first:"
            yield f"           {show_settings(_ADAPT, str)}"

    def expect_useful(self, setting: str) -> None:
        """Raises InputError about the setting that names the teacher, where it is no better."""
        if self.is_no_better and self.num_labels >= MIN_LABELS:
            raise InputError(
                Setting(setting),
                "a teacher that predicts labels better than their frequencies do",
                f"{self.figures()} ({self.baselines()})",
                f"its masked-LM head may be untrained: train it with {_TRAIN_HEAD}; "
                "`force` goes on all the same",
            )


def of_cache(manifest: Manifest) -> Judgement | None:
    """Returns the judgement of a cache's teacher; None where its shards do not tell."""
    return Judgement.of(manifest.label_sums(), manifest.vocab.size)


class LabelScores:
    """Predictions of labels, added batch by batch."""

    def __init__(self, vocab_size: int) -> None:
        self._counts = np.zeros(vocab_size, np.int64)
        self._num_hits = 0
        # The log-probability, its square and the entropy.
        self._sums = np.zeros(3)

    def add(self, labels: np.ndarray, kept: Mapping[str, Any]) -> None:
        """Adds positions.

        Args:
            labels: int [positions].
            kept: of the teacher's output, as `truncation.truncate` and `truncation.entropies`
                return it, [positions, …] each.
        """
        log_probs = kept[records.LABEL_LOG_PROBS].astype(np.float64)
        entropies = kept[ENTROPIES].astype(np.float64)
        self._num_hits += int((kept[records.TOPK_IDS][:, 0] == labels).sum())
        self._sums += [log_probs.sum(), np.square(log_probs).sum(), entropies.sum()]
        self._counts += np.bincount(labels, minlength=len(self._counts))

    def sums(self) -> LabelSums:
        """Returns the sums of what was added, beside the unigram model's."""
        counts = self._counts[self._counts > 0]
        total, types = int(counts.sum()), len(counts)
        others = (counts - 1 + types / len(self._counts)) / max(1, total - 1 + types)
        log_prob, squares, entropy = self._sums.tolist()
        return LabelSums(
            num_labels=total,
            num_hits=self._num_hits,
            log_prob=log_prob,
            log_prob_squares=squares,
            entropy=entropy,
            unigram_hits=int(counts.max(initial=0)),
            unigram_log_prob=float((counts * np.log(others)).sum()),
        )

    def judgement(self) -> Judgement | None:
        """Returns the means of what was added; None where there is no label."""
        return Judgement.of(self.sums(), len(self._counts))
