"""A directory of shards, checked whole: the manifest, each file, each record, and all together."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from data_specs import records
from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.base.json_text import shown
from pipeline.base.location import Location
from pipeline.storage import cache_input, token_counts
from pipeline.storage import manifest as manifests
from pipeline.storage.manifest import Manifest
from tools.verification import shard_checks
from tools.verification.record_checks import RecordChecker
from tools.verification.shard_checks import Block

# The name in a list of problems under which the tokenizer's files are.
TOKENIZER = "tokenizer"

# A record has at least its framing.
_RECORD_BYTES = 16
_CHECKSUM = re.compile(r"([0-9a-f]{64})  manifest\.json\n")
# What a manifest says twice: its own fields, by their names among the flags.
_SAID_TWICE = {
    "max_seq_length": "max_seq_length",
    "max_predictions_per_seq": "max_predictions_per_seq",
    "dupe_factor": "dupe_factor",
    "seed": "random_seed",
}
_TEACHER_SAID_TWICE = ("truncation_factor", "logit_encoding", "temperatures", "parent")

Problems = dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class DirectoryReport:
    """What was found.

    Attributes:
        problems: what is wrong, by the name of the file; empty where all is well.
        shared_texts: windows of the eval split whose text stands in a train window, too;
            None where there are no two splits of tokens.
    """

    problems: Problems
    shared_texts: int | None


def check_checksum(directory: Location) -> list[str]:
    """Returns what is wrong with the manifest's bytes; directories made before have no checksum."""
    path = directory / manifests.CHECKSUM_FILE
    if not path.is_file():
        return []
    # One byte more than there must be.
    with path.open("rb") as file:
        text = file.read(64 + 2 + len(manifests.MANIFEST_FILE) + 2).decode("latin-1")
    match = _CHECKSUM.fullmatch(text)
    if match is None:
        return [f"its checksum {path.name} is damaged"]
    received = path.with_name(manifests.MANIFEST_FILE).sha256()
    if received != match[1]:
        return [f"expected SHA-256 {match[1]}, as in {path.name}, received {received}"]
    return []


def manifest_problems(directory: Location, manifest: Manifest) -> Iterator[str]:
    """Yields what is wrong with a manifest by itself."""
    yield from check_checksum(directory)
    path = directory / manifests.MANIFEST_FILE
    # The form only: what it says is the checksum's matter, and one from before lacks fields.
    if path.read_bytes() != json_text.dump(path.read_json()):
        yield "it is not written as it was published"
    for name, flag in _SAID_TWICE.items():
        here, there = getattr(manifest, name), manifest.flags.get(flag)
        if there is not None and there != here:
            yield f"{name} is {here!r}, and {there!r} among its flags"
    if manifest.teacher_info is not None:
        said = manifest.teacher_info.to_json()
        for name in _TEACHER_SAID_TWICE:
            here, there = said[name], manifest.flags.get(name)
            here = list(here) if isinstance(here, tuple) else here
            if there is not None and there != here:
                yield f"{name} is {here!r}, and {there!r} among its flags"
    if not manifest.splits:
        yield "it names no shards"


def request_problems(directory: Location, manifest: Manifest) -> Iterator[str]:
    """Yields what is wrong with the request that a manifest answers."""
    path = directory / manifests.REQUEST_FILE
    if not path.is_file():
        yield "it is missing"
        return
    try:
        request = path.read_json()
    except InputError as error:
        yield str(error).removeprefix(f"{path}: ")
        return
    answered = {name: manifest.flags[name] for name in request if name in manifest.flags}
    difference = manifests.describe_difference(request, answered)
    if difference:
        # There is the request, here the manifest.
        yield f"it asks for something else than {manifests.MANIFEST_FILE} has: {difference}"


def special_problems(manifest: Manifest) -> Iterator[str]:
    """Yields which special tokens a manifest lacks, without which no record can be checked."""
    missing = {"cls", "sep", "mask"} - set(manifest.special_ids)
    if missing and manifest.kind != records.TASK_LOGITS:
        yield (
            f"expected special_ids with {', '.join(sorted(missing))}, "
            f"received {shown(dict(manifest.special_ids))}"
        )


def check_directory(
    directory: Location,
    manifest: Manifest,
    is_special: np.ndarray | None,
    *,
    on_records: Callable[[int], None],
) -> DirectoryReport:
    """Checks all of a directory but its tokenizer's files.

    Args:
        directory: a complete directory.
        manifest: its manifest, as `manifests.load` reads it.
        is_special: bool [V], which tokens the tokenizer calls special; None where it
            cannot be read: then those that the manifest names are.
        on_records: called with the number of records just checked.

    Returns:
        what is wrong with it.
    """
    found: Problems = {}
    checker = _make_checker(directory, manifest, is_special, found)
    together = _Together(manifest, checker is not None)
    # First eval, which is the smaller part: what is remembered is what a train record may repeat.
    splits = sorted(manifest.splits.items(), key=lambda item: item[0] != manifests.EVAL)
    for split, shards in splits:
        for shard in shards:
            together.begin(split)
            problems = shard_checks.check_shard(
                directory, shard, checker, on_block=together.add, on_records=on_records
            )
            problems += together.end() + shard_checks.check_sidecar(directory, shard)
            _note(found, shard.file, problems)
    if manifest.token_counts is not None and not found:
        _note(found, manifest.token_counts.file, together.count_problems(directory))
    return DirectoryReport(found, together.shared_texts)


def total_records(directory: Location, manifest: Manifest) -> int:
    """Returns how many records there are to read, and never more than files can hold."""
    total = 0
    for shard in (shard for shards in manifest.splits.values() for shard in shards):
        path = directory / shard.file
        size = path.stat().st_size if path.is_file() else 0
        total += min(shard.num_examples, size // _RECORD_BYTES)
    return total


def _note(found: Problems, file: str, problems: Iterable[str]) -> None:
    problems = list(problems)
    if problems:
        found.setdefault(file, []).extend(problems)


class _Known:
    """Values of the eval split, and which of them the train split has, too."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.values = np.sort(np.concatenate(parts))
        self.is_met = np.zeros(len(self.values), bool)

    def meet(self, values: np.ndarray) -> int:
        """Returns how many of the values are known."""
        places = np.minimum(np.searchsorted(self.values, values), len(self.values) - 1)
        is_known = self.values[places] == values
        self.is_met[places[is_known]] = True
        return int(np.count_nonzero(is_known))

    def num_met(self) -> int:
        """Returns how many of the eval split's values have been met, equal ones each."""
        return int(np.isin(self.values, self.values[self.is_met]).sum())


def _make_checker(
    directory: Location, manifest: Manifest, is_special: np.ndarray | None, found: Problems
) -> RecordChecker | None:
    """Checks what stands beside the shards, and returns what checks the records.

    Arguments as `check_directory` has them, and what is found wrong.

    Returns:
        None where records cannot be read: their sizes, or the codec's own file, are broken.
    """
    _note(found, manifests.MANIFEST_FILE, manifest_problems(directory, manifest))
    _note(found, manifests.REQUEST_FILE, request_problems(directory, manifest))
    unreadable = list(special_problems(manifest))
    _note(found, manifests.MANIFEST_FILE, unreadable)
    if manifest.token_counts is not None:
        path = directory / manifest.token_counts.file
        problems = shard_checks.check_file(path, manifest.token_counts)
        _note(found, manifest.token_counts.file, problems)
        unreadable += problems if manifest.teacher_info is not None else []
    if unreadable:
        return None
    if is_special is None:
        is_special = np.zeros(manifest.vocab.size, bool)
        is_special[list(manifest.special_ids.values())] = True
    if manifest.teacher_info is None:
        return RecordChecker(manifest, is_special)
    try:
        codec = cache_input.make_codec(directory, manifest.teacher_info, manifest.vocab.size)
    except InputError as error:
        _note(found, token_counts.TOKEN_COUNTS_FILE, [str(error)])
        return None
    return RecordChecker(manifest, is_special, codec)


class _Together:
    """What can be seen only by comparing records of all shards, those of eval first."""

    def __init__(self, manifest: Manifest, is_readable: bool) -> None:
        self.manifest = manifest
        has_tokens = is_readable and manifest.kind != records.TASK_LOGITS
        self._counts = np.zeros(manifest.vocab.size, np.int64) if has_tokens else None
        self._eval: list[tuple[np.ndarray, np.ndarray]] = []
        self._ids: _Known | None = None
        self._texts: _Known | None = None
        self._split, self._repeated = "", 0

    @property
    def shared_texts(self) -> int | None:
        """Eval windows whose text stands in a train window, too; None without both splits."""
        return None if self._texts is None else self._texts.num_met()

    def begin(self, split: str) -> None:
        """Begins a shard."""
        self._split, self._repeated = split, 0
        if split != manifests.EVAL and self._eval:
            self._ids, self._texts = (_Known(parts) for parts in zip(*self._eval, strict=True))
            self._eval.clear()

    def add(self, block: Block) -> None:
        """Adds records of a shard."""
        if self._counts is None:
            return
        self._counts += block.token_counts
        if self._split == manifests.EVAL:
            self._eval.append((block.example_ids, block.texts))
        elif self._ids is not None:
            self._repeated += self._ids.meet(block.example_ids)
            self._texts.meet(block.texts)

    def end(self) -> list[str]:
        """Returns what is wrong with the shard that was begun."""
        if not self._repeated:
            return []
        return [f"{self._repeated:,} examples of the eval split stand in it, too"]

    def count_problems(self, directory: Location) -> list[str]:
        """Returns what is wrong with the counts of tokens in a directory of sound records."""
        told = token_counts.load_counts(directory, self.manifest)
        wrong = np.flatnonzero(told != self._counts)
        if not len(wrong):
            return []
        token = int(wrong[0])
        others = f" ({len(wrong) - 1:,} more)" if len(wrong) > 1 else ""
        return [
            f"token {token}: expected {self._counts[token]}, as the records hold it, "
            f"received {told[token]}{others}"
        ]
