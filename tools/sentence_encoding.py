"""Text vectors from a model's encoder, and correlations of cosines with given similarities."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tqdm

from data_specs.tasks import CLASSIFICATION, REGRESSION, TaskSpec
from pipeline.base.errors import InputError, Setting
from pipeline.models.formats.model_directory import ModelSource
from pipeline.tokenizers.tokens import Tokenizer
from tools import inference_programs
from tools.finetuning.inputs import Padding, prediction_batches
from tools.finetuning.kinds import build_features, regression
from tools.finetuning.task_files import TaskExample
from tools.inference_programs import Forward
from tools.sentence_layout import SentenceLayout

# The number of texts in memory at once, sorted by length.
_BLOCK = 4096
# The minimum of a denominator, which makes cosines of zero vectors 0.
_LEAST_NORM = 1e-12


@dataclasses.dataclass(frozen=True)
class TextReader:
    """Encodes texts with a model.

    Attributes:
        source: the model.
        tokenizer: the model's tokenizer.
        layout: the pooling and normalization of vectors.
        max_seq_length: maximum number of tokens; longer texts are truncated.
        batch_size: texts per batch.
    """

    source: ModelSource
    tokenizer: Tokenizer
    layout: SentenceLayout
    max_seq_length: int
    batch_size: int

    @property
    def hidden_size(self) -> int:
        """D, the size of the vectors."""
        return self.source.config.hidden_size

    def compile(self, device: str, compute_dtype: str) -> Forward:
        """Returns the compiled function from a batch to its vectors, float32 [B, D]."""
        # Keras is imported only here, so that invalid settings are reported without it.
        from pipeline.models import embeddings

        layout = self.layout
        select = functools.partial(
            embeddings.vectors, pooling=layout.pooling, normalize=layout.normalize
        )
        return inference_programs.keras_forward(self.source, device, compute_dtype, select)

    def encode(
        self, forward: Forward, texts: Iterable[str], bar: tqdm.tqdm
    ) -> Iterator[np.ndarray]:
        """Yields the vectors of texts block by block, in their order, float32 [texts, D].

        Args:
            forward: from `compile`.
            texts: any number of texts.
            bar: progress bar that counts the texts done.

        Raises:
            InputError: the model returns NaN or infinity.
        """
        text_iterator = iter(texts)
        while block := list(itertools.islice(text_iterator, _BLOCK)):
            yield self._encode_block(forward, block, bar)

    def _encode_block(self, forward: Forward, texts: Sequence[str], bar: tqdm.tqdm) -> np.ndarray:
        if self.layout.lower_case:
            texts = [text.lower() for text in texts]
        features = build_features(
            [TaskExample("", (text,)) for text in texts],
            self.tokenizer,
            kind=CLASSIFICATION,
            max_seq_length=self.max_seq_length,
        )
        vectors = np.zeros((len(features), self.hidden_size), np.float32)
        padding = Padding(self.batch_size, self.max_seq_length, self.source.config.type_vocab_size)
        for indices, batch in prediction_batches(features, padding):
            vectors[indices] = forward(batch)[: len(indices)]
            bar.update(len(indices))
        if not np.isfinite(vectors).all():
            hint = "check the model for damage, or try `compute_dtype`=float32"
            raise InputError(
                Setting("model"), received="its vectors hold NaN or infinity", hint=hint
            )
        return vectors


def cosine_similarities(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the cosines of two arrays of vectors, float [N, D], as float64 [N].

    The cosine with a zero vector is 0. Example: the cosine of [3, 4] and [4, 3] is 0.96.
    """
    first, second = (side.astype(np.float64) for side in (first, second))
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.einsum("nd,nd->n", first, second) / np.maximum(norms, _LEAST_NORM)


def expect_similarities(spec: TaskSpec) -> None:
    """Checks that a task consists of pairs of texts with a number each.

    Raises:
        InputError: the task has another kind or another number of texts.
    """
    if spec.kind != REGRESSION or len(spec.text_fields) != 2:
        expected = "a task of kind regression with two texts, for example stsb"
        received = f"{spec.name} of kind {spec.kind} with {len(spec.text_fields)}"
        raise InputError(Setting("task"), expected, received)


def similarity_scores(cosines: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Returns the correlations of cosines with given similarities, the main one first."""
    return {
        "spearman": regression.spearman(cosines, expected),
        "pearson": regression.pearson(cosines, expected),
    }
