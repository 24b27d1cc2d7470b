"""How many floating-point operations a model needs for an example, whatever computes it.

The matrix products alone, a multiplication and an addition counting as two, as in
Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using
Megatron-LM" (2021), appendix. A layer over L tokens of D dimensions with F inside the
feed-forward block:

    8·L·D²  query, key, value and output
    4·L²·D  the scores and their product with the values
    4·L·D·F the feed-forward block

and the head over P positions, with embeddings of width E and V tokens, 2·P·D·E + 2·P·E·V.
A gradient costs twice its forward pass. What is computed once more for
`--recompute_activations` is not counted: the model does not need it.
"""

from pipeline.models.config import EncoderConfig
from tools.dev.workloads.step_programs import Workload


def forward_flops(config: EncoderConfig, length: int, positions: int) -> float:
    """Returns the operations of a forward pass for one example.

    Args:
        config: the model's shape.
        length: L.
        positions: P, those that go through the vocabulary.

    Example:
        BERT's base shape with 512 tokens and 20 positions: 9.76e10, of which 9.66e10
        are the twelve layers'.
    """
    size, inner, width = config.hidden_size, config.intermediate_size, config.embedding_width
    layer = 8 * length * size**2 + 4 * length**2 * size + 4 * length * size * inner
    head = 2 * positions * size * width + 2 * positions * width * config.vocab_size
    embedded = 2 * length * size * width if config.embedding_size is not None else 0
    return float(config.num_hidden_layers * layer + head + embedded)


def step_flops(workload: Workload) -> float:
    """Returns the operations of a step of stage 2 for one example, a live teacher's included."""
    length = workload.max_seq_length
    everywhere = workload.config.loss_positions == "all"
    positions = length if everywhere else workload.max_predictions_per_seq
    flops = 3.0 * forward_flops(workload.student, length, positions)
    if workload.live:
        flops += forward_flops(workload.teacher, length, positions)
    return flops


def teacher_flops(workload: Workload) -> float:
    """Returns the operations of the teacher's forward pass in stage 1b for one example."""
    return forward_flops(
        workload.teacher, workload.max_seq_length, workload.max_predictions_per_seq
    )
