"""The tensors of a model's files, by the names of its family.

`BertModel.save_pretrained` leaves out the encoder's prefix, `bert.`, which `BertForMaskedLM`
has. Training over several devices adds `module.` before all names. Files of another family, and
models without a masked-LM head, are recognized by the names in the files.
"""

import collections
import shlex
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.models.config import EncoderConfig
from pipeline.models.families import FAMILIES
from pipeline.models.families.base import rename
from pipeline.models.formats.base import WeightFiles
from pipeline.models.formats.hf_files import one_line
from pipeline.models.weight_names import (
    HF,
    POOLER,
    Shape,
    base_prefix,
    encoder_table,
    is_optimizer_state,
    separator_of,
    tied_hf_names,
    weight_table,
)

# Levels that frameworks add before all names of a model.
_WRAPPERS = ("module", "_orig_mod", "model")
_SHOWN = 3


def head_training(student: str) -> str:
    """Returns a command line that trains a new masked-LM head on an encoder."""
    return (
        f"run_distill `student`={student} `freeze`=encoder `losses`=masked_lm=1 "
        "`input_dir`=EXAMPLES `num_train_steps`=1000 `learning_rate`=2e-3 `output_dir`=NEW_TEACHER"
    )


class ModelTensors:
    """A model's tensors by its family's names, for any prefix of the names in the files.

    Attributes:
        shapes: the shape of every tensor by its name.

    Raises:
        InputError: the files hold another family's tensors, or no tensor of an encoder.
    """

    def __init__(self, files: WeightFiles, config: EncoderConfig, where: Location) -> None:
        self._files, self._config, self._where = files, config, where
        self._names = _family_names(files.shapes, config, files.layout, where)
        if files.layout == HF:
            self._add_copies()
        self.shapes: dict[str, Shape] = {
            name: files.shapes[stored] for name, stored in self._names.items()
        }

    def read(self, names: Collection[str]) -> dict[str, np.ndarray]:
        """Returns tensors, float32, by their names; see `WeightFiles.read`."""
        arrays = self._files.read(list(dict.fromkeys(self._names[name] for name in names)))
        return {name: arrays[self._names[name]] for name in names}

    @property
    def copies(self) -> dict[str, str]:
        """Copies of tensors and their originals, which must be equal."""
        if self._files.layout != HF or not self._config.tie_word_embeddings:
            return {}
        tied = tied_hf_names(self._config)
        return {copy: original for copy, original in tied.items() if copy in self.shapes}

    def missing_head(self) -> list[str]:
        """Returns the names of the masked-LM head's tensors that the files lack."""
        return [name for name in self._head_names() if name not in self.shapes]

    def is_bare(self) -> bool:
        """Returns whether the files have no tensor of the masked-LM head.

        Layers whose names also occur in task heads do not count.
        """
        layout = self._config.family.sequence_head
        shared = tuple(f"{name}." for name in (layout.dense, layout.norm) if name is not None)
        return all(name.startswith(shared) for name in self._head_names() if name in self.shapes)

    def expect_head(self) -> None:
        """Raises InputError unless the files have all tensors of the masked-LM head."""
        missing = self.missing_head()
        if not missing:
            return
        received, head = f"none: its files lack {_some(missing)}", len(self._head_names())
        others = self._other_heads()
        if others:
            received = f"{received}, and have {_some(others)}"
        command = head_training(shlex.quote(str(self._where)))
        hint = f"predictions would be random; to train a new head, run {command}"
        if not self.is_bare():
            received = f"{head - len(missing)} of its {head} tensors, without {_some(missing)}"
            hint = "get the complete files; a new head is made only if all its tensors are missing"
        raise InputError(self._where, "a model with a masked-LM head", received, hint)

    def describe_unused(self, others: Iterable[str] = ()) -> str | None:
        """Returns a line about tensors that a masked LM does not use; None without any.

        Args:
            others: names of further tensors that are used.
        """
        layout = self._files.layout
        used = {row.stored(layout)[0] for row in weight_table(self._config)}.union(others)
        used |= tied_hf_names(self._config).keys() if layout == HF else set()
        folded = self._config.family.folded_embeddings
        used |= set() if folded is None else {folded.hf}
        unused = [name for name in self.shapes if name not in used and not is_optimizer_state(name)]
        if not unused:
            return None
        plural = "" if len(unused) == 1 else "s"
        return f"{self._where}: {len(unused)} tensor{plural} not used: {_some(unused)}"

    def _head_names(self) -> list[str]:
        rows = (row for row in weight_table(self._config) if row.ours.startswith("head/"))
        return [row.stored(self._files.layout)[0] for row in rows]

    def _other_heads(self) -> list[str]:
        base = base_prefix(encoder_table(self._config), self._files.layout)
        names = (name for name in self.shapes if not name.startswith(base))
        return [name for name in names if not is_optimizer_state(name)]

    def _add_copies(self) -> None:
        """Replaces an original by its copy if it is missing or the model is not tied."""
        for copy, original in tied_hf_names(self._config).items():
            if copy in self._names and (
                original not in self._names or not self._config.tie_word_embeddings
            ):
                self._names[original] = self._names[copy]


def _family_names(
    stored: Collection[str], config: EncoderConfig, layout: str, where: Location
) -> dict[str, str]:
    """Returns the names in the files, by the family's names."""
    table, separator = encoder_table(config), separator_of(layout)
    base = base_prefix(table, layout)
    tails = {row.stored(layout)[0].removeprefix(base) for row in table}
    prefix = _find_prefix(stored, tails, base, separator)
    if prefix is None:
        raise _no_encoder(stored, config, base, separator, where)
    wrapper = prefix.removesuffix(base) if prefix.endswith(base) else prefix
    if any(level not in _WRAPPERS for level in wrapper.split(separator)[:-1]):
        raise _other_prefix(prefix, config, base, where)
    levels = {tail.partition(separator)[0] for tail in tails} | {POOLER}
    names: dict[str, str] = {}
    own: dict[str, str] = {}
    for name in stored:
        rest = name.removeprefix(wrapper)
        if prefix == wrapper and rest.partition(separator)[0] in levels:
            own[base + rest] = name
        elif name.startswith(prefix):
            own[rest] = name
        else:
            names[rest] = name
    return names | own


def _find_prefix(
    stored: Iterable[str], tails: Collection[str], base: str, separator: str
) -> str | None:
    """Returns the prefix of most of an encoder's weights; None without such weights."""
    depth = max(tail.count(separator) for tail in tails)
    votes: collections.Counter[str] = collections.Counter()
    for name in stored:
        levels = name.rsplit(separator, depth + 1)
        for first in range(len(levels)):
            tail = separator.join(levels[first:])
            if tail in tails:
                votes[name[: len(name) - len(tail)]] += 1
    return max(votes, key=lambda prefix: (votes[prefix], prefix == base, prefix), default=None)


def _other_prefix(prefix: str, config: EncoderConfig, base: str, where: Location) -> InputError:
    expected = f"tensors of {config.family.title}, named {base}… or without a prefix"
    received = f"an encoder named {one_line(prefix)}…"
    return InputError(where, expected, received, _hint([prefix]))


def _no_encoder(
    stored: Collection[str], config: EncoderConfig, base: str, separator: str, where: Location
) -> InputError:
    """Returns the error for files without any weight of the family's encoder."""
    counts = collections.Counter(name.partition(separator)[0] for name in stored)
    most = [(f"{name}{separator}", count) for name, count in counts.most_common(_SHOWN)]
    expected = f"tensors of {config.family.title}, such as {base}embeddings…"
    received = ", ".join(f"{count} named {one_line(prefix)}…" for prefix, count in most)
    return InputError(where, expected, received or "none", _hint([prefix for prefix, _ in most]))


def _hint(prefixes: Sequence[str]) -> str:
    """Returns the hint for files whose tensors have these prefixes."""
    for prefix in prefixes:
        base = prefix.replace("/", ".")
        families = [
            family for family in FAMILIES.values() if rename("bert.", family.hf_names) == base
        ]
        if families:
            names = " or ".join(f'"{family.model_type}"' for family in families)
            title = families[0].title
            return f'tensors of {title} need "model_type" {names} in the configuration'
    return f"supported families: {', '.join(FAMILIES)}"


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(one_line(name) for name in names[:_SHOWN]) + rest
