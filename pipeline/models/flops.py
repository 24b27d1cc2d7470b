"""Operations of a model's forward pass and of a training step."""

from pipeline.models.config import EncoderConfig


# Only matrix products are counted; a multiplication and an addition are two operations. This is
# the count of Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters
# Using Megatron-LM" (2021), appendix. A gradient costs twice its forward pass. Activations that
# `recompute_activations` computes a second time are not counted.
def forward_flops(config: EncoderConfig, length: float, positions: float) -> float:
    """Returns the number of operations of a forward pass for one example.

    A layer over L tokens of D dimensions, with width F inside the feed-forward block, takes:
        8·L·D²  for query, key, value and output
        4·L²·D  for the scores and their product with the values
        4·L·D·F for the feed-forward block, or 6·L·D·F with gated units
    Local attention is counted like global attention, because all its scores are computed. The
    head over P positions, with embeddings of width E and V tokens, takes 2·P·D·E + 2·P·E·V.

    Args:
        config: the model's shape.
        length: L.
        positions: P, the number of positions whose logits are computed.

    Example:
        BERT's base shape with 512 tokens and 20 positions takes 9.76e10 operations. The
        twelve layers take 9.66e10 of them.
    """
    size, inner, width = config.hidden_size, config.intermediate_size, config.embedding_width
    feed_forward = 4 * length * size * inner
    if config.family.has_gated_units:
        feed_forward += 2 * length * size * inner
    layer = 8 * length * size**2 + 4 * length**2 * size + feed_forward
    head = 2 * positions * size * width + 2 * positions * width * config.vocab_size
    embedded = 2 * length * size * width if width != size else 0
    return float(config.num_hidden_layers * layer + head + embedded)


def step_flops(
    student: EncoderConfig,
    teacher: EncoderConfig | None,
    length: float,
    positions: float,
    *,
    embeds: bool = False,
) -> float:
    """Returns the number of operations of a training step for one example.

    Matrix products within losses on attention are not counted.

    Args:
        student: the trained model's shape.
        teacher: the shape of a live teacher; None without one.
        length: L.
        positions: P, the number of positions whose logits are computed.
        embeds: whether both models read the input a second time for its embedding.
    """
    passes = [positions, *([0] * embeds)]
    total = 3.0 * sum(forward_flops(student, length, count) for count in passes)
    if teacher is not None:
        total += sum(forward_flops(teacher, length, count) for count in passes)
    return total
