"""The two sides of every loss: the student's and the teacher's outputs for a batch."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from keras import ops

from data_specs import records
from pipeline.base.errors import InputError, Setting
from pipeline.distill.cached_head import CachedHead
from pipeline.distill.losses import LOSSES, load_loss
from pipeline.distill.losses.base import (
    ATTENTION,
    ATTENTION_NEEDS,
    EMBEDDING,
    EXAMPLES,
    HIDDEN,
    LABEL,
    MASKED,
    PAIRS,
    POSITION_NEEDS,
    RELATIONS,
    SCORES,
    TOKENS,
    TOPK,
    Loss,
)
from pipeline.distill.losses.distributions import (
    StudentDistribution,
    TeacherDistribution,
    dense_distribution,
    join_tails,
    student_log_probs,
    teacher_distribution,
)
from pipeline.models import layer_groups, position_blocks, topk
from pipeline.models.architectures.components import (
    ATTENTION_SCORES,
    ATTENTIONS,
    QUERIES_KEYS_VALUES,
    split_heads,
)
from pipeline.models.layer_groups import LayerGroup, TeacherGroup, mean_attention, mean_state
from pipeline.models.masked_lm import LOGITS, MaskedLM, gather_positions

# Activations by model, as `Distiller.call` returns them.
STUDENT = "student"
TEACHER = "teacher"
# Measurements of evaluation besides losses; see `Distributions.predictions`.
PREDICTION = "prediction"
CONFIDENCE = "confidence"
FIRST = "first"
# Targets of a cache that describe the teacher's distribution.
_TOPK_TARGETS = (records.TOPK_IDS, records.TOPK_LOGITS, records.LOG_TAIL_MASSES)
_FROM_TEACHER = "a live teacher (`teacher`=DIR)"
# Activations by the need of a loss. A model always returns hidden states. It returns the other
# activations only on request.
ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    HIDDEN: (records.HIDDEN_STATES,),
    ATTENTION: (ATTENTIONS,),
    SCORES: (ATTENTION_SCORES,),
    RELATIONS: QUERIES_KEYS_VALUES,
}
# The setting of a cache that supports every k, every temperature and every loss on distributions.
CAPTURE_STATES = "create_teacher_output_data `logit_encoding`=states"
# Sources of the target that a loss needs, for hints of errors.
_SOURCES = {
    TOPK: f"a teacher cache (make one with create_teacher_output_data) or {_FROM_TEACHER}",
    HIDDEN: "a teacher cache of create_teacher_output_data `cache_hidden_states`=… or "
    f"{_FROM_TEACHER}",
    EMBEDDING: "a teacher cache of create_teacher_output_data `cache_embedding`=… or "
    f"{_FROM_TEACHER}",
    **{need: f"{_FROM_TEACHER} (no cache holds {need})" for need in ATTENTION_NEEDS},
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Settings of the comparison with the teacher, and the sources of its targets.

    A target comes from the cache if the cache holds it, else from a live teacher.

    Attributes:
        temperature: the distillation temperature, for losses with `uses_temperature`.
        tail: the tail policy; None for each loss's own default.
        truncation_factor: k, at most the cached one; None for the whole distribution of a live
            teacher or of cached head states.
        cached_temperatures: the temperatures whose tail mass the cache holds; empty without a
            top-k.
        states_cached: whether the cache holds head states, from which the teacher's logits are
            rebuilt.
        sampled: whether the cache holds random draws instead of a top-k.
        live: whether the run has a live teacher.
        loss_positions: the positions where distributions are compared, one of
            `LOSS_POSITIONS`.
        layer_groups: the layers that a loss compares, by the loss's name.
        cached_groups: the groups whose hidden states the cache holds, in its order.
        relation_heads: R, the number of relation heads of losses that compare relations.
        pooling: the pooling of the embeddings that are compared.
        cached_pooling: the pooling of the cache's embeddings; None if it holds none.
    """

    temperature: float = 1.0
    tail: str | None = None
    truncation_factor: int | None = None
    cached_temperatures: tuple[float, ...] = ()
    states_cached: bool = False
    sampled: bool = False
    live: bool = False
    loss_positions: str = "masked"
    layer_groups: Mapping[str, tuple[LayerGroup, ...]] = dataclasses.field(default_factory=dict)
    cached_groups: tuple[TeacherGroup, ...] = ()
    relation_heads: int = 1
    pooling: str = "mean"
    cached_pooling: str | None = None

    def __post_init__(self) -> None:
        if self.loss_positions == "all" and not self.live:
            expected = f"masked, the positions that a cache holds, or {_FROM_TEACHER}"
            raise InputError(Setting("loss_positions"), expected, "all")
        if not self.topk_cached:
            return
        expected, hints = None, []
        if self.sampled and self.temperature != 1.0:
            expected = "1, the only temperature of a cache of `truncation`=sampled"
        elif self.tail != "renormalize" and self.temperature not in self.cached_temperatures:
            cached = ", ".join(f"{value:g}" for value in self.cached_temperatures)
            expected = f"a temperature whose tail mass is cached ({cached})"
            hints.append(f"set `tail`=renormalize, or use {_FROM_TEACHER} over masked examples")
        if expected is not None:
            if not self.sampled and self.temperature > 1.0:
                temperatures = sorted({*self.cached_temperatures, self.temperature})
                listed = ",".join(f"{value:g}" for value in temperatures)
                command = f"create_teacher_output_data `temperatures`={listed}"
                hints.append(f"or capture again with {command}")
            hints.append(f"a cache of {CAPTURE_STATES} supports all temperatures")
            hint = "; ".join(hints)
            raise InputError(Setting("temperature"), expected, f"{self.temperature:g}", hint)

    @property
    def has_teacher(self) -> bool:
        """Whether the teacher's distribution is known."""
        return self.live or self.states_cached or bool(self.cached_temperatures)

    @property
    def from_states(self) -> bool:
        """Whether the teacher's logits are rebuilt from cached head states."""
        return self.states_cached and self.loss_positions == "masked"

    @property
    def topk_cached(self) -> bool:
        """Whether the teacher's distribution comes from the cache."""
        return bool(self.cached_temperatures) and self.loss_positions == "masked"

    @property
    def hidden_cached(self) -> bool:
        """Whether the cache holds all hidden states that are compared."""
        groups = self.groups(HIDDEN)
        return bool(groups) and {group.teacher for group in groups} <= set(self.cached_groups)

    @property
    def embedding_cached(self) -> bool:
        """Whether the cache holds the embeddings that are compared."""
        return self.cached_pooling == self.pooling

    def groups(self, need: str) -> tuple[LayerGroup, ...]:
        """Returns the layers compared by losses with a need, each group once."""
        return tuple(dict.fromkeys(itertools.chain(*self._groups_of_losses(need))))

    def describe_groups(self, need: str) -> str:
        """Returns the layers compared by losses with a need, as text.

        If losses compare different layers, a semicolon separates their groups.
        """
        return ";".join(dict.fromkeys(map(layer_groups.describe, self._groups_of_losses(need))))

    def _groups_of_losses(self, need: str) -> list[tuple[LayerGroup, ...]]:
        compared = self.layer_groups.items()
        return [groups for name, groups in compared if load_loss(name).needs == need]

    def projects_with_bias(self, layer: int) -> bool:
        """Returns whether the projection of a student layer's hidden states has a bias."""
        return any(
            load_loss(name).needs == HIDDEN
            and load_loss(name).projects_with_bias
            and layer in {group.student for group in groups}
            for name, groups in self.layer_groups.items()
        )

    def losses(self, names: Iterable[str]) -> list[Loss]:
        """Returns the losses of these names in the order in which they are computed.

        Losses on distributions come first, by temperature, then losses on layers. The order
        decides the last bits of gradients.
        """
        names = set(names)
        settings = {"temperature": self.temperature, "tail": self.tail}
        losses = [load_loss(name)(**settings) for name in LOSSES if name in names]
        return sorted(losses, key=lambda loss: (loss.needs not in POSITION_NEEDS, loss.temperature))

    def averaged_over(self, loss: Loss) -> str:
        """Returns the elements that a loss is averaged over, one of `losses.base.AVERAGES`."""
        return TOKENS if loss.needs == TOPK and self.loss_positions == "all" else loss.averaged_over

    def reported_losses(self, trained: Iterable[str]) -> tuple[str, ...]:
        """Returns the losses that evaluation reports, in the order of `LOSSES`.

        They are all losses on distributions and labels whose targets are known, and the losses
        on layers that are `trained`, that is, have a weight.
        """
        always_known = {LABEL, TOPK} if self.has_teacher else {LABEL}
        return tuple(
            loss.name
            for loss in map(load_loss, LOSSES)
            if loss.name in trained or (loss.needs in always_known and not self._needs_topk(loss))
        )

    def _needs_topk(self, loss: type[Loss]) -> bool:
        """Returns whether a loss needs a top-k but the cache holds random draws."""
        return self.sampled and self.topk_cached and not loss.is_expectation

    def expect_target(self, name: str) -> None:
        """Checks that the cache or a live teacher gives the target of a loss.

        Raises:
            InputError: neither of them gives it.
        """
        loss = load_loss(name)
        if self._needs_topk(loss):
            of_topk = [other for other in map(load_loss, LOSSES) if other.needs == TOPK]
            others = " or ".join(other.name for other in of_topk if other.is_expectation)
            hint = (
                f"with a cache of `truncation`=sampled use {others}; a cache of "
                f"{CAPTURE_STATES} supports all losses on distributions"
            )
            raise InputError(Setting("losses"), received=f"{name} needs a top-k", hint=hint)
        cached = {
            LABEL: True,
            TOPK: self.states_cached or bool(self.cached_temperatures),
            HIDDEN: loss.averaged_over == MASKED and self.hidden_cached,
            EMBEDDING: self.embedding_cached,
        }
        if not (self.live or cached.get(loss.needs, False)):
            target, held = "top-k" if loss.needs == TOPK else loss.needs, "none"
            if loss.needs == HIDDEN and self.cached_groups:
                held = f"only those of layers {', '.join(map(str, self.cached_groups))}"
            if loss.needs == EMBEDDING and self.cached_pooling is not None:
                held = f"only those of the pooling {self.cached_pooling}"
            received = f"{name} needs the teacher's {target}, but the input holds {held}"
            required = ",".join(str(group.teacher) for group in self.groups(HIDDEN))
            required = self.pooling if loss.needs == EMBEDDING else required
            hint = _SOURCES[loss.needs].replace("…", required or "…")
            raise InputError(Setting("losses"), received=received, hint=f"use {hint}")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Settings for mapping head states of the student and the teacher to logits in blocks.

    Attributes:
        student: the student.
        teacher: the live teacher, or the output layer of cached head states; None without one.
        block_size: the maximum number of positions in a block.
        recompute: whether blocks are computed a second time for the gradient.
    """

    student: MaskedLM
    teacher: MaskedLM | CachedHead | None
    block_size: int
    recompute: bool


class Distributions:
    """Both models' distributions at some positions of a batch.

    Each is computed once for each temperature.

    Args:
        comparison: the settings.
        logits: float32 [B, P, V], by `STUDENT` and, with a live teacher or head states,
            `TEACHER`. In the teacher's logits the student's tokens come first.
        labels: int [B, P].
        targets: from a cache `topk_ids`, `topk_logits` [B, P, K] and `log_tail_masses`
            [B, P, T].
    """

    def __init__(
        self,
        comparison: Comparison,
        logits: Mapping[str, Any],
        labels: Any,
        targets: Mapping[str, Any],
    ) -> None:
        self._comparison = comparison
        self._logits = logits
        self._labels = labels
        self._targets = targets
        self._sides: dict[float, tuple[StudentDistribution, TeacherDistribution | None]] = {}

    def value(self, loss: Loss) -> Any:
        """Returns a loss on distributions or labels at each position, float32 [B, P]."""
        return loss(*self._at(loss.temperature), self._targets)

    def predictions(self) -> dict[str, Any]:
        """Returns the most probable tokens.

        Returns:
            `prediction`, int [B, P], the student's most probable token; `confidence`, float32
            [B, P], its probability; with a teacher also `first`, int [B, P], the teacher's
            most probable token among those that the student has.
        """
        logits, dtype = self._logits[STUDENT], self._labels.dtype
        largest = ops.max(logits, axis=-1)
        predictions = {
            PREDICTION: ops.cast(ops.argmax(logits, axis=-1), dtype),
            CONFIDENCE: ops.exp(largest - ops.logsumexp(logits, axis=-1)),
        }
        if self._comparison.topk_cached:
            # Ids that the student lacks come after the others.
            predictions[FIRST] = self._targets[records.TOPK_IDS][..., 0]
        elif self._comparison.has_teacher:
            known = self._logits[TEACHER][..., : self._vocab_size]
            predictions[FIRST] = ops.cast(ops.argmax(known, axis=-1), dtype)
        return predictions

    @property
    def _vocab_size(self) -> int:
        """V of the student."""
        return self._logits[STUDENT].shape[-1]

    def _at(self, temperature: float) -> tuple[StudentDistribution, TeacherDistribution | None]:
        if temperature not in self._sides:
            teacher, ids = None, ops.expand_dims(self._labels, -1)
            if self._comparison.has_teacher:
                teacher = self._teacher(temperature)
                ids = teacher.ids
            student = student_log_probs(
                self._logits[STUDENT], ids, self._labels, temperature=temperature
            )
            self._sides[temperature] = student, teacher
        return self._sides[temperature]

    def _teacher(self, temperature: float) -> TeacherDistribution:
        comparison, k = self._comparison, self._comparison.truncation_factor
        if comparison.topk_cached:
            ids, logits, tails = (self._targets[name] for name in _TOPK_TARGETS)
            # A temperature that is not cached requires the policy `renormalize`, under which the
            # tail's mass cancels out.
            cached = comparison.cached_temperatures
            index = cached.index(temperature) if temperature in cached else 0
        elif k is None:
            return dense_distribution(
                self._logits[TEACHER], temperature=temperature, vocab_size=self._vocab_size
            )
        else:
            all_logits, size = self._logits[TEACHER], self._vocab_size
            top = topk.top_k(all_logits[..., :size], k, temperatures=(temperature,))
            ids, logits, tails, index = top.ids, top.logits, top.log_tail_masses, 0
            if size < all_logits.shape[-1]:
                tails = join_tails(tails, all_logits, temperature=temperature, vocab_size=size)
        return teacher_distribution(
            ids, logits, tails[..., index], temperature=temperature, truncation_factor=k
        )


class BatchComparison:
    """The two sides of the losses for one batch.

    Args:
        comparison: the settings.
        inputs: the batch's inputs, by the names of `data_specs.records`.
        targets: the batch's targets: `masked_lm_ids` and `masked_lm_weights` [B, P]; from a
            cache `topk_ids`, `topk_logits` [B, P, K] and `log_tail_masses` [B, P, T], and
            `hidden_states` [B, P, G, D].
        activations: by `STUDENT` and, with a live teacher or head states, `TEACHER`.
        projections: projections of the student's hidden states to the teacher's size, by the
            student's layer; empty if the sizes are equal.
        vocabulary: settings for computing the logits in blocks of positions; None to take the
            logits of the activations.
        embeddings: float32 [B, D] of both models, of equal sizes; None if no loss compares
            them.
    """

    def __init__(
        self,
        comparison: Comparison,
        inputs: Mapping[str, Any],
        targets: Mapping[str, Any],
        activations: Mapping[str, Mapping[str, Any]],
        projections: Mapping[int, Any] | None = None,
        vocabulary: Vocabulary | None = None,
        embeddings: Mapping[str, Any] | None = None,
    ) -> None:
        self._embeddings = embeddings or {}
        self._comparison = comparison
        self._inputs = inputs
        self._targets = targets
        self._activations = activations
        self._projections = projections or {}
        self._vocabulary = vocabulary
        self.labels = targets[records.MASKED_LM_IDS]
        self.weights = targets[records.MASKED_LM_WEIGHTS]
        if comparison.loss_positions == "all":
            self.labels, self.weights = _spread_over_tokens(inputs, targets)

    def at_positions(
        self, losses: Sequence[Loss], *, with_predictions: bool = False
    ) -> dict[str, Any]:
        """Returns losses on distributions and labels at each position, by name, [B, P].

        Values at padding are undefined. `with_predictions` adds the values of
        `Distributions.predictions`.
        """

        def measure(distributions: Distributions) -> dict[str, Any]:
            values = {loss.name: distributions.value(loss) for loss in losses}
            return values | (distributions.predictions() if with_predictions else {})

        if self._vocabulary is not None:
            return self._in_blocks(measure)
        logits = {name: model[LOGITS] for name, model in self._activations.items()}
        return measure(Distributions(self._comparison, logits, self.labels, self._targets))

    def _in_blocks(self, measure: Callable[[Distributions], dict[str, Any]]) -> dict[str, Any]:
        """Applies `measure` to the distributions in blocks of positions and joins the results."""
        vocabulary, comparison = self._vocabulary, self._comparison
        arrays = {name: model[records.HEAD_STATES] for name, model in self._activations.items()}
        arrays[records.MASKED_LM_IDS] = self.labels
        cached = _TOPK_TARGETS if comparison.topk_cached else ()
        arrays |= {name: self._targets[name] for name in cached}

        student, teacher = vocabulary.student, vocabulary.teacher
        # A gradient inside a TensorFlow loop cannot read a variable from outside the loop, so the
        # loop gets copies.
        output = [ops.copy(tensor) for tensor in student.output_layer()]
        fixed = () if teacher is None else [ops.copy(tensor) for tensor in teacher.output_layer()]

        def function(output: Sequence[Any], block: Mapping[str, Any]) -> dict[str, Any]:
            logits = {STUDENT: student.vocabulary_logits(block[STUDENT], *output)}
            if teacher is not None:
                # The teacher's table gets no gradient, because it is not an argument of `function`.
                states = ops.stop_gradient(block[TEACHER])
                logits[TEACHER] = teacher.vocabulary_logits(states, *fixed)
            labels = block[records.MASKED_LM_IDS]
            return measure(Distributions(comparison, logits, labels, block))

        return position_blocks.over_positions(
            function,
            output,
            arrays,
            size=vocabulary.block_size,
            recompute=vocabulary.recompute,
        )

    def means(
        self, losses: Sequence[Loss], at_positions: Mapping[str, Any]
    ) -> dict[str, tuple[Any, Any]]:
        """Returns each loss's mean over its elements, and the number of elements.

        Args:
            losses: the losses.
            at_positions: the result of `at_positions`, which has some of the losses.
        """
        # All values are computed before the means, because the order decides the last bits of
        # gradients.
        values = [
            [at_positions[loss.name]] if loss.name in at_positions else self._layer_values(loss)
            for loss in losses
        ]
        means = {}
        for loss, groups in zip(losses, values, strict=True):
            weights = self._weights(loss)
            mean = sum(mean_over_weights(group, weights) for group in groups) / len(groups)
            means[loss.name] = mean, ops.sum(weights)
        return means

    def _layer_values(self, loss: Loss) -> list[Any]:
        """Returns the values of a loss at its elements, for each layer group.

        A loss on embeddings has no layer groups and gives one array.
        """
        if loss.needs == EMBEDDING:
            return [loss(self._embeddings[STUDENT], self._embeddings[TEACHER], self._targets)]
        side = {
            HIDDEN: self._hidden_states,
            ATTENTION: self._attention_maps,
            SCORES: self._attention_maps,
            RELATIONS: self._relations,
        }[loss.needs]
        batch = {**self._inputs, **self._targets}
        groups = self._comparison.layer_groups[loss.name]
        return [loss(*side(loss, group), batch) for group in groups]

    def _weights(self, loss: Loss) -> Any:
        """Returns 1 for real elements and 0 for padding: [B, P], [B, L], [B, L, L] or [B]."""
        over = self._comparison.averaged_over(loss)
        if over == MASKED:
            spread = loss.needs in (LABEL, TOPK)
            return self.weights if spread else self._targets[records.MASKED_LM_WEIGHTS]
        mask = ops.cast(self._inputs[records.INPUT_MASK], "float32")
        if over == EXAMPLES:
            return ops.max(mask, axis=1)
        return ops.expand_dims(mask, 2) * ops.expand_dims(mask, 1) if over == PAIRS else mask

    def _hidden_states(self, loss: Loss, group: LayerGroup) -> tuple[Any, Any]:
        comparison, positions = self._comparison, self._inputs[records.MASKED_LM_POSITIONS]

        def select(state: Any) -> Any:
            return gather_positions(state, positions) if loss.averaged_over == MASKED else state

        if loss.averaged_over == MASKED and comparison.hidden_cached:
            index = comparison.cached_groups.index(group.teacher)
            teacher = self._targets[records.HIDDEN_STATES][:, :, index]
        else:
            teacher = select(
                mean_state(self._activations[TEACHER][records.HIDDEN_STATES], group.teacher)
            )
        student = self._activations[STUDENT][records.HIDDEN_STATES][group.student]
        student = ops.cast(select(student), "float32")
        project = self._projections.get(group.student)
        return (student if project is None else project(student)), teacher

    def _attention_maps(self, loss: Loss, group: LayerGroup) -> tuple[Any, Any]:
        (name,) = ACTIVATIONS[loss.needs]
        teacher = mean_attention(self._activations[TEACHER][name], group.teacher)
        return self._activations[STUDENT][name][group.student - 1], teacher

    def _relations(self, loss: Loss, group: LayerGroup) -> tuple[list[Any], list[Any]]:
        def select(model: str, layer: int) -> list[Any]:
            tensors = (self._activations[model][name] for name in ACTIVATIONS[loss.needs])
            heads = self._comparison.relation_heads
            return [split_heads(of_layers[layer - 1], heads) for of_layers in tensors]

        return select(STUDENT, group.student), select(TEACHER, group.teacher.last)


def _spread_over_tokens(inputs: Mapping[str, Any], targets: Mapping[str, Any]) -> tuple[Any, Any]:
    """Moves labels and weights of masked positions to arrays over all tokens, [B, L].

    Example: labels [7, 9] at positions [1, 3] of 5 tokens become [0, 7, 0, 9, 0].
    """
    tokens = ops.arange(ops.shape(inputs[records.INPUT_IDS])[1], dtype="int32")
    positions = ops.cast(inputs[records.MASKED_LM_POSITIONS], "int32")
    hits = ops.equal(ops.expand_dims(positions, -1), tokens)
    weights = ops.expand_dims(targets[records.MASKED_LM_WEIGHTS], -1)
    hits = ops.cast(hits, "float32") * weights
    labels = ops.expand_dims(targets[records.MASKED_LM_IDS], -1)
    return ops.sum(ops.cast(hits, labels.dtype) * labels, axis=1), ops.sum(hits, axis=1)


def mean_over_weights(values: Any, weights: Any) -> Any:
    """Returns the mean of the values with weight 1; padding has weight 0."""
    # Values at padding may be infinite, so a product with the weights would not be finite.
    real = ops.where(weights > 0, values, 0.0)
    return ops.sum(real) / ops.maximum(ops.sum(weights), 1.0)
