"""The interface of a kind of task: reading, training, prediction, scoring and submission."""

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
    from pipeline.models.architectures.components import Tensor

# Predictions of examples. Depending on the kind, they are class indices, numbers, answers by
# question key, or the tag indices of each example's words.
Predictions = Any
# Returns the content of a submission file.
WriteSubmission = Callable[[TaskSpec, Sequence[TaskExample], Predictions], bytes]


class TaskKind(abc.ABC):
    """A kind of task.

    Attributes:
        name: its name in declarations, a key of `data_specs.tasks.KINDS`.
        architecture: the suffix of its class names in `transformers`.
        pipeline_tag: its name on model hubs.
        max_seq_length: default of the maximum number of tokens of an input.
        feature: the class of its features.
        has_windows: whether a long example becomes several features.
        names_labels: whether a model's `config.json` names the head's labels.
        problem_type: the value of `problem_type` in `config.json`; None to leave it out.
        output_layer: the name in `model.safetensors` of a head of one layer over each token.
        drops_hidden_rate: whether that head applies the dropout rate of hidden states, in
            families that have no separate rate for it.
        predicts_number: whether the loss is a squared difference, not a cross-entropy.
        num_texts: number of texts of an input; None if the declaration decides it.
        given: description of the input; empty if the number of texts describes it.
        output: description of the output; `{labels}` stands for the labels.
        finds_labels: whether the training examples give the labels of a task that declares none.
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
        """The functions that write submission files, by the name of the format."""

    @property
    def is_over_tokens(self) -> bool:
        """Whether the head has outputs for each token."""
        return self.feature.token_axis is not None

    def num_outputs(self, labels: Sequence[str]) -> int:
        """Returns the number of outputs of a head per input, or per token."""
        return len(labels)

    def is_meant_by(self, settings: Mapping[str, Any], labels: Sequence[str]) -> bool:
        """Returns whether a `config.json` with this architecture belongs to this kind."""
        return True

    def dropout(self, family: Family) -> tuple[str, float] | None:
        """Returns the configuration key and the rate of a family's dropout before the outputs.

        The rate is that of the sequence head, unless a head of one layer has a separate rate.
        """
        return family.sequence_head.dropout

    def find_labels(self, spec: TaskSpec, examples: Sequence[TaskExample]) -> tuple[str, ...]:
        """Returns the labels of the training examples, for a task that declares none."""
        return ()

    @abc.abstractmethod
    def read(self, data: SplitData, paths: tuple[Location, ...]) -> Iterator[TaskExample]:
        """Yields the examples of a split's files."""

    @abc.abstractmethod
    def build_features(self, examples: Sequence[TaskExample], layout: Layout) -> list[Feature]:
        """Returns the features of examples, in the order of the examples."""

    @abc.abstractmethod
    def targets(
        self,
        examples: Sequence[TaskExample],
        features: Sequence[Feature],
        labels: Sequence[str],
    ) -> Sequence[np.ndarray]:
        """Returns the targets of all N features; `labels` are the labels of the head."""

    def mask_logits(self, logits: "Tensor", batch: Mapping[str, "Tensor"]) -> "Tensor":
        """Returns the logits whose last axis becomes a distribution."""
        return logits

    def mean_losses(self, losses: "Tensor") -> "Tensor":
        """Reduces the losses of all distributions to the losses that `loss_weights` weights."""
        return losses

    def loss_weights(self, weights: "Tensor", batch: Mapping[str, "Tensor"]) -> "Tensor":
        """Returns the weight of each loss; `weights`, float32 [B], has that of each row."""
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

    def constant_predictions(
        self, examples: Sequence[TaskExample], labels: Sequence[str]
    ) -> Iterator[Predictions]:
        """Yields predictions that are the same for all inputs; none if all of them score 0."""
        return iter(())

    @abc.abstractmethod
    def evaluate(
        self, spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions
    ) -> dict[str, float]:
        """Returns the scores of predictions by metric name.

        Raises:
            ValueError: the predictions do not fit the examples.
        """
