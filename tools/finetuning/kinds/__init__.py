"""The kinds of tasks; each kind is one module that declares `KIND`.

`data_specs.tasks.KINDS` has the rules for the declarations of each kind.
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
    """Returns the features of examples of a kind, in the order of the examples.

    Args:
        examples: the examples of a split.
        tokenizer: the model's tokenizer.
        kind: the kind of the task.
        max_seq_length: maximum number of tokens of a feature.
        doc_stride: tokens from the start of a window to the start of the next, at most the
            size of a window.
        max_query_length: maximum number of tokens of a question; the rest is cut off.
        double_separator: whether there are two separators between two texts, as in
            RoBERTa's family.

    Raises:
        InputError: `max_seq_length` leaves no space for text.
    """
    layout = Layout(tokenizer, max_seq_length, double_separator, doc_stride, max_query_length)
    return KINDS[kind].build_features(examples, layout)
