"""Means over the layers of a group, as `layer_groups` numbers them."""

from collections.abc import Sequence
from typing import Any

from keras import ops

from pipeline.models.layer_groups import TeacherGroup


def mean_state(states: Sequence[Any], group: TeacherGroup) -> Any:
    """Returns the mean of a group's hidden states, float32 [..., D].

    Args:
        states: all N + 1, the embeddings' output first.
        group: which.
    """
    chosen = [ops.cast(state, "float32") for state in states[group.first : group.last + 1]]
    return sum(chosen) / len(chosen)


def mean_attention(attentions: Sequence[Any], group: TeacherGroup) -> Any:
    """Returns the mean of a group's attention maps, float32 [B, H, L, L].

    Args:
        attentions: all N, the first layer's first.
        group: which; without layer 0.
    """
    chosen = [ops.cast(one, "float32") for one in attentions[group.first - 1 : group.last]]
    return sum(chosen) / len(chosen)
