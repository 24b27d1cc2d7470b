"""Divergence of self-attention relations."""

from collections.abc import Mapping, Sequence
from typing import Any

from keras import ops

from data_specs.records import INPUT_MASK
from pipeline.distill.losses.base import RelationLoss

# The logit of padding, which is finite and whose exponential is 0.
_NO_KEY = -1e4


class RelationKL(RelationLoss):
    """Σ_A KL(R_A of the teacher, R_A of the student), averaged over relation heads.

    A runs over the queries, the keys and the values. R_A = softmax(A Aᵀ / √d) over the real
    tokens, for each relation head of size d. See Wang et al., "MiniLMv2: Multi-Head
    Self-Attention Relation Distillation for Compressing Pretrained Transformers" (2021),
    formulas 5 to 8 with weights of 1.
    """

    name = "relation_kl"

    def __call__(
        self, student: Sequence[Any], teacher: Sequence[Any], batch: Mapping[str, Any]
    ) -> Any:
        is_real = ops.expand_dims(ops.cast(batch[INPUT_MASK], "bool"), (1, 2))
        return sum(
            _divergence(_log_relation(of_teacher, is_real), _log_relation(of_student, is_real))
            for of_teacher, of_student in zip(teacher, student, strict=True)
        )


def _log_relation(vectors: Any, is_real: Any) -> Any:
    """Returns the log of the relation of vectors [B, R, L, d] as float32 [B, R, L, L]."""
    vectors = ops.cast(vectors, "float32")
    products = ops.matmul(vectors, ops.transpose(vectors, (0, 1, 3, 2)))
    scaled = products * vectors.shape[-1] ** -0.5
    return ops.log_softmax(ops.where(is_real, scaled, _NO_KEY), axis=-1)


def _divergence(log_p: Any, log_q: Any) -> Any:
    """Returns KL(p, q) of each query, averaged over heads, float32 [B, L]."""
    return ops.mean(ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1), axis=1)
