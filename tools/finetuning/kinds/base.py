"""The interface of a kind of task: how it is read, learned, predicted, scored and handed in."""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from data_specs.tasks import TaskSpec
from pipeline.base.location import Location
from pipeline.models.families.base import Family
from tools.finetuning.inputs import Feature, Layout
from tools.finetuning.task_files import SplitData, TaskExample

if TYPE_CHECKING:
    from pipeline.models.architectures.parts import Tensor

# Predictions of examples, by kind: classes by their indices, numbers, answers by the keys of
# their questions, or the indices of each word's tag.
Predictions = Any
# Makes the content of a file to hand in.
WriteSubmission = Callable[[TaskSpec, Sequence[TaskExample], Predictions], bytes]


class TaskKind(abc.ABC):
    """A kind of task.

    Attributes:
        name: its name in declarations, a key of `data_specs.tasks.KINDS`.
        architecture: the end of its class names in `transformers`.
        pipeline_tag: its name on model hubs.
        max_seq_length: tokens of an input unless a user asks for more.
        feature: the class of its features.
        has_windows: whether a long example becomes several features.
        names_labels: whether a model's `config.json` names the head's labels.
        problem_type: the `problem_type` there; None for none.
        output_layer: the name in `model.safetensors` of a head of one layer over each token.
        drops_hidden_rate: whether that head, in families that have no rate for it, has the
            dropout of hidden states before its outputs.
        predicts_number: whether the loss is a squared difference, not a cross-entropy.
        num_texts: texts of an input; None where the declaration says it.
        given: the input in words; empty where the number of texts says it.
        output: the output in words; `{labels}` stands for the labels.
        finds_labels: whether the training examples name the labels of a task that declares none.
    """

    name: ClassVar[str]
    architecture: ClassVar[str]
    pipeline_tag: ClassVar[str]
    max_seq_length: ClassVar[int] = 128
    feature: ClassVar[type[Feature]] = Feature
    has_windows: ClassVar[bool] = False
    names_labels: ClassVar[bool] = True
    problem_type: ClassVar[str | None] = None
    output_layer: ClassVar[str] = ""
    drops_hidden_rate: ClassVar[bool] = True
    predicts_number: ClassVar[bool] = False
    num_texts: ClassVar[int | None] = None
    given: ClassVar[str] = ""
    output: ClassVar[str]
    finds_labels: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def submissions(self) -> Mapping[str, WriteSubmission]:
        """The forms in which its predictions may be handed in, by name."""

    @property
    def is_over_tokens(self) -> bool:
        """Whether the head computes something of each token."""
        return self.feature.token_axis is not None

    def num_outputs(self, labels: Sequence[str]) -> int:
        """Returns how many numbers a head computes of an input, or of a token."""
        return len(labels)

    def is_meant_by(self, settings: Mapping[str, Any], labels: Sequence[str]) -> bool:
        """Returns whether a `config.json` of this architecture is of this kind."""
        return True

    def dropout(self, family: Family) -> tuple[str, float] | None:
        """Returns the key and the rate of a family's dropout before the outputs.

        The rate is that of the sequence head, except where a head of one layer has its own.
        """
        return family.sequence_head.dropout

    def find_labels(self, spec: TaskSpec, examples: Sequence[TaskExample]) -> tuple[str, ...]:
        """Returns the labels of a task whose training examples name them."""
        return ()

    @abc.abstractmethod
    def read(self, data: SplitData, paths: tuple[Location, ...]) -> Iterator[TaskExample]:
        """Yields the examples of a split's files."""

    @abc.abstractmethod
    def build_features(self, examples: Sequence[TaskExample], layout: Layout) -> list[Feature]:
        """Makes the features of examples, in their order."""

    @abc.abstractmethod
    def targets(
        self,
        examples: Sequence[TaskExample],
        features: Sequence[Feature],
        labels: Sequence[str],
    ) -> Sequence[np.ndarray]:
        """Returns the targets of each feature, N in all; `labels` are those of the head."""

    def mask_logits(self, logits: "Tensor", batch: Mapping[str, "Tensor"]) -> "Tensor":
        """Returns the logits of which the last axis becomes a distribution."""
        return logits

    def mean_losses(self, losses: "Tensor") -> "Tensor":
        """Returns the losses that are weighted, of one for each distribution."""
        return losses

    def loss_weights(self, weights: "Tensor", batch: Mapping[str, "Tensor"]) -> "Tensor":
        """Returns the weight of each loss; `weights` float32 [B] are those of a batch's rows."""
        return weights

    @abc.abstractmethod
    def predict(
        self,
        examples: Sequence[TaskExample],
        features: Sequence[Feature],
        logits: Sequence[np.ndarray],
        *,
        max_answer_length: int,
    ) -> Predictions:
        """Returns the predictions of examples from the logits of their features."""

    @abc.abstractmethod
    def evaluate(
        self, spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions
    ) -> dict[str, float]:
        """Returns the scores of predictions by their names.

        Raises:
            ValueError: the predictions do not fit the examples.
        """
