"""The kinds of tasks: one module each, which declares `KIND`.

The declarations of a kind have their rules in `data_specs.tasks.KINDS`.
"""

import importlib
from collections.abc import Mapping, Sequence

from pipeline.tokenizers.tokens import Tokenizer
from tools.finetuning.inputs import Feature, Layout
from tools.finetuning.kinds.base import TaskKind
from tools.finetuning.task_files import TaskExample

_MODULES = ("classification", "regression", "span", "token_classification")
KINDS: Mapping[str, TaskKind] = {
    kind.name: kind
    for kind in (importlib.import_module(f"{__name__}.{name}").KIND for name in _MODULES)
}


def build_features(
    examples: Sequence[TaskExample],
    tokenizer: Tokenizer,
    *,
    kind: str,
    max_seq_length: int,
    doc_stride: int = 128,
    max_query_length: int = 64,
    double_separator: bool = False,
) -> list[Feature]:
    """Makes the features of examples, in their order, as their kind does.

    Args:
        examples: of a split.
        tokenizer: the model's.
        kind: the task's.
        max_seq_length: tokens of a feature at most.
        doc_stride: tokens from the beginning of a window to that of the next; no
            more than the window has.
        max_query_length: tokens of a question at most; the rest is cut off.
        double_separator: whether two separators stand between two texts, as in
            RoBERTa's family.

    Raises:
        InputError: `max_seq_length` leaves no room for text.
    """
    layout = Layout(tokenizer, max_seq_length, double_separator, doc_stride, max_query_length)
    return KINDS[kind].build_features(examples, layout)
