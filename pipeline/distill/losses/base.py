"""The interface of a loss, and a base class for each kind of compared output."""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

# Needs of a loss. LABEL needs only the true token. The others need an output of the teacher: its
# output distribution, hidden states, attention maps, attention scores before the softmax, queries,
# keys and values, or embeddings of the inputs before masking.
TOPK = "topk"
LABEL = "label"
HIDDEN = "hidden states"
ATTENTION = "attention maps"
SCORES = "attention scores"
RELATIONS = "queries, keys and values"
EMBEDDING = "embeddings"
# Needs of losses that compare logits at each position.
POSITION_NEEDS = (TOPK, LABEL)
# Needs of losses on attention. No cache holds attention, and layer 0 has none. Memory grows with
# the square of the length.
ATTENTION_NEEDS = (ATTENTION, SCORES, RELATIONS)

# The elements that a loss is averaged over, in the order of the columns of `LOSS_SHARES`.
AVERAGES = MASKED, TOKENS, PAIRS, EXAMPLES = (
    "masked positions",
    "tokens",
    "pairs of tokens",
    "examples",
)
# A target of updates that are computed in microbatches, float32 [B, 4], with equal rows. It is the
# microbatch's count of each of `AVERAGES`, divided by the mean count of the microbatches.
LOSS_SHARES = "loss_shares"

# Treatments of the teacher's probability mass outside its top-k; see `distributions`.
TAIL_POLICIES = ("drop", "renormalize", "bucket", "label")
# Positions where distributions are compared: the masked positions or all tokens.
LOSS_POSITIONS = ("masked", "all")


class Loss(abc.ABC):
    """A term of the training objective.

    Attributes:
        name: the name in `--losses` and in metrics.jsonl.
        needs: `TOPK`, `LABEL`, `HIDDEN`, `EMBEDDING` or one of `ATTENTION_NEEDS`.
        averaged_over: the elements that it is averaged over, one of `AVERAGES`.
        uses_temperature: whether it compares distributions at the distillation temperature
            instead of at 1.
        default_tail: the default tail policy; None for a loss without one.
        is_expectation: whether it is an expectation under the teacher, which random draws
            from the teacher can estimate.
        default_layer_groups: the layers that it compares by default; None for a loss that
            compares no layers.
        from_cache: the name of the loss that replaces it if hidden states come from a cache,
            which holds only those of masked positions.
    """

    name: ClassVar[str]
    needs: ClassVar[str]
    averaged_over: ClassVar[str]
    uses_temperature: ClassVar[bool] = False
    default_tail: ClassVar[str | None] = None
    is_expectation: ClassVar[bool] = True
    default_layer_groups: ClassVar[str | None] = None
    from_cache: ClassVar[str | None] = None

    def __init__(self, *, temperature: float = 1.0, tail: str | None = None) -> None:
        """Sets the temperature and the tail policy, for losses that have them."""
        self.temperature = temperature if self.uses_temperature else 1.0
        self.tail = self.default_tail if tail is None else tail

    @abc.abstractmethod
    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Any:
        """Returns the loss of each element that it is averaged over.

        Args:
            student: the student's side of the comparison; see the subclasses.
            teacher: the teacher's side.
            batch: the inputs and targets, by the names of `data_specs.records`.

        Returns:
            float32 [B, P] over masked positions, [B, L] over tokens, [B, L, L] over pairs
            of tokens, [B] over examples. Values at padding are ignored.
        """


class DistributionLoss(Loss):
    """Compares output distributions.

    Both sides are at `temperature`: a `distributions.StudentDistribution` and a
    `distributions.TeacherDistribution`. With `--loss_positions=all` the loss is averaged
    over tokens.
    """

    needs = TOPK
    averaged_over = MASKED


class HiddenLoss(Loss):
    """Compares hidden states, float32 [..., D] on both sides.

    The teacher's state is the mean over a group of layers. The student's state is projected to
    the teacher's size if the sizes differ.

    Attributes:
        projects_with_bias: whether this projection has a bias.
    """

    projects_with_bias: ClassVar[bool] = False

    needs = HIDDEN
    averaged_over = TOKENS
    default_layer_groups = "last"


class AttentionLoss(Loss):
    """Compares attention maps, float32 [B, H, L, L] on both sides.

    The teacher's map is the mean over a group of layers.
    """

    needs = ATTENTION
    averaged_over = PAIRS
    default_layer_groups = "mean"


class RelationLoss(Loss):
    """Compares queries, keys and values of one layer of each model, in relation heads.

    Both sides are sequences of these three, [B, R, L, d], with R relation heads. Each model has
    its own head size d.
    """

    needs = RELATIONS
    averaged_over = TOKENS
    default_layer_groups = "last"


class EmbeddingLoss(Loss):
    """Compares embeddings of inputs before masking, float32 [B, D] on both sides.

    The student's embedding is projected to the teacher's size if the sizes differ.
    """

    needs = EMBEDDING
    averaged_over = EXAMPLES
