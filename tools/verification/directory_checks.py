"""Checks of a shard directory: the manifest, each file, each record, and across shards."""

import collections
import hashlib
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data_specs import records
from pipeline.base import json_text
from pipeline.base.errors import InputError, describe
from pipeline.base.json_text import format_value
from pipeline.base.location import Location
from pipeline.storage import cache_input, serialization, spill, token_counts
from pipeline.storage import manifest as manifests
from pipeline.storage.arrays import Column
from pipeline.storage.manifest import FileInfo, Manifest, ShardInfo
from tools.verification.record_checks import Features, RecordChecker
from tools.vocabulary import cache_tokens

# Key of the problems of the tokenizer's files.
TOKENIZER = "tokenizer"
# Name of the old manifest of a cache during a repair.
OLD_MANIFEST = f"{manifests.MANIFEST_FILE}.old"

# Size of the framing, the minimum size of a record.
_RECORD_BYTES = 16
_CHECKSUM = re.compile(r"([0-9a-f]{64})  manifest\.json\n")
# Fields that a manifest also holds in its flags, with their names there.
_STATED_TWICE = {
    "max_seq_length": "max_seq_length",
    "max_predictions_per_seq": "max_predictions_per_seq",
    "dupe_factor": "dupe_factor",
    "seed": "random_seed",
}
_TEACHER_STATED_TWICE = ("truncation_factor", "logit_encoding", "temperatures", "parent")
# Limits of a block of records that are checked together.
_MAX_BLOCK_RECORDS = 4_096
_MAX_BLOCK_BYTES = 4 * 2**20
_DIGEST_BYTES = 8
# Limits of the report on a shard: the number of problems, and the characters of each.
_MAX_PROBLEMS = 8
_MAX_CHARACTERS = 400

(_INPUT_IDS,) = (
    feature for feature in records.MASKED_EXAMPLE_FEATURES if feature.name == records.INPUT_IDS
)

Problems = dict[str, list[str]]


def problem_text(error: InputError, path: Location | None = None) -> str:
    """Returns an error's text for a list of problems, without its setting and the file's path."""
    subject = str(error.subject or "").removeprefix(str(path or "")).removeprefix(": ")
    return describe(InputError(subject or None, error.expected, error.received, error.hint), str)


# One shard.


class Block(NamedTuple):
    """Valid records of a shard, for the comparison with other shards.

    Attributes:
        example_ids: S16 [n].
        texts: uint64 [n], digests of the true tokens of each record; None for records without
            tokens.
        token_counts: int64 [V], counts of the tokens, or None likewise. A masked position counts
            twice: once for the token in the input and once for the label.
    """

    example_ids: np.ndarray
    texts: np.ndarray | None
    token_counts: np.ndarray | None


class Findings:
    """The problems of a shard, each with the index of its first record."""

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._first: dict[str, int] = {}
        self._counts: collections.Counter[str] = collections.Counter()

    @property
    def has_records(self) -> bool:
        """Whether a record has a problem."""
        return bool(self._first)

    def add(self, problem: str) -> None:
        """Adds a problem of the shard as a whole."""
        self._problems.append(problem)

    def add_records(self, problem: str, indices: Sequence[int] | np.ndarray) -> None:
        """Adds a problem of the records with these indices, at least one."""
        self._first.setdefault(problem, int(indices[0]))
        self._counts[problem] += len(indices)

    def texts(self) -> list[str]:
        """Returns the problems as text, within the limits of a report."""
        problems = list(self._problems)
        for problem, index in self._first.items():
            others = self._counts[problem] - 1
            more = f" ({others:,} more)" if others else ""
            problems.append(f"record {index}: {problem}{more}")
        texts = [textwrap.shorten(text, _MAX_CHARACTERS) for text in problems[:_MAX_PROBLEMS]]
        if len(problems) > len(texts):
            texts.append(f"{len(problems) - _MAX_PROBLEMS:,} other problems")
        return texts


def check_file(path: Location, info: ShardInfo | FileInfo) -> list[str]:
    """Returns the problems of a file's size or checksum."""
    if not path.is_file():
        return ["it is missing"]
    if (size := path.stat().st_size) != info.bytes:
        return [f"expected {info.bytes} bytes, received {size}"]
    if (received := path.sha256()) != info.sha256:
        return [f"expected SHA-256 {info.sha256}, received {received}"]
    return []


def check_sidecar(directory: Location, shard: ShardInfo) -> list[str]:
    """Returns the problems of a shard's sidecar, which must equal the manifest's entry."""
    path = manifests.sidecar_path(directory, shard.file)
    if not path.is_file():
        return [f"its sidecar {path.name} is missing"]
    expected = json_text.dump(shard.to_json())
    if path.stat().st_size == len(expected) and path.read_bytes() == expected:
        return []
    return [f"its sidecar {path.name} differs from {manifests.MANIFEST_FILE}"]


def check_shard(
    directory: Location,
    shard: ShardInfo,
    checker: RecordChecker | None,
    *,
    on_block: Callable[[Block], None],
    on_records: Callable[[int], None],
) -> list[str]:
    """Checks a shard's file, framing, records, their order, and their measured sizes.

    Args:
        directory: of the shard.
        shard: its entry in the manifest.
        checker: of the directory's records; None to check only their framing and number.
        on_block: called with each block of valid records.
        on_records: called with the number of records just read.

    Returns:
        the problems, as text.
    """
    path, findings = directory / shard.file, Findings()
    for problem in check_file(path, shard):
        findings.add(problem)
    if not path.is_file():
        return findings.texts()
    reading = _Reading(shard, checker, findings)
    try:
        for block in _blocks(serialization.read_records(path)):
            for checked in reading.check(block):
                on_block(checked)
            on_records(len(block))
    except InputError as error:
        findings.add(problem_text(error, path))
    else:
        reading.finish()
    return findings.texts()


def _blocks(serialized: Iterator[bytes]) -> Iterator[list[bytes]]:
    block: list[bytes] = []
    size = 0
    for record in serialized:
        block.append(record)
        size += len(record)
        if size >= _MAX_BLOCK_BYTES or len(block) == _MAX_BLOCK_RECORDS:
            yield block
            block, size = [], 0
    if block:
        yield block


class _Reading:
    """The state of checking a shard, from one block of records to the next."""

    def __init__(self, shard: ShardInfo, checker: RecordChecker | None, findings: Findings) -> None:
        self.shard, self.checker, self.findings = shard, checker, findings
        self.num_records = 0
        self.last_id = b""
        self.measured: collections.Counter[str] = collections.Counter()

    def check(self, block: Sequence[bytes]) -> Iterator[Block]:
        """Checks records; yields the valid ones."""
        first = self.num_records
        self.num_records += len(block)
        if self.checker is None:
            return
        decodable, examples = [], []
        for index, record in enumerate(block, first):
            try:
                examples.append(serialization.decode_example(record))
                decodable.append(index)
            except ValueError as error:
                self.findings.add_records(f"expected a tf.train.Example of bytes: {error}", [index])
        numbers, is_valid = np.array(decodable, np.int64), np.ones(len(decodable), bool)
        for finding in self.checker.check(examples) if examples else ():
            self.findings.add_records(finding.problem, numbers[finding.indices])
            is_valid[finding.indices] = False
        valid = np.flatnonzero(is_valid)
        if len(valid):
            yield self._valid_block([examples[index] for index in valid], numbers[valid])

    def _valid_block(self, examples: Sequence[Features], numbers: np.ndarray) -> Block:
        manifest = self.checker.manifest
        ids = np.array([example[records.EXAMPLE_ID] for example in examples], "S16")
        if manifest.kind != records.TASK_LOGITS:
            self._check_order(examples, numbers)
        if self.shard.measured is not None and (info := manifest.teacher_info) is not None:
            added = [f.name for f in manifest.features if f not in records.MASKED_EXAMPLE_FEATURES]
            for example in examples:
                features = {name: example[name] for name in added}
                manifests.measure_record(self.measured, features, info.truncation_factor)
        if records.INPUT_IDS not in examples[0]:
            return Block(ids, None, None)
        return Block(ids, *_texts(examples, manifest.vocab.size))

    def _check_order(self, examples: Sequence[Features], numbers: np.ndarray) -> None:
        """Checks that ids ascend, and that each is in the shard's range of keys.

        See `pipeline.storage.spill` and `pipeline.masking.masked_examples.ShardPlan`.
        """
        ids = [example[records.EXAMPLE_ID] for example in examples]
        pairs = zip([self.last_id, *ids[:-1]], ids, strict=True)
        out_of_order = [index for index, (previous, id_) in enumerate(pairs) if id_ <= previous]
        if out_of_order:
            problem = f"{records.EXAMPLE_ID}: expected ascending ids, none twice"
            self.findings.add_records(problem, numbers[out_of_order])
        self.last_id = ids[-1]
        index, count = manifests.parse_shard_file(self.shard.file)
        low, high = (spill.KEY_SPACE * number // count for number in (index, index + 1))
        keys, _ = spill.keys_and_ties(b"".join(ids))
        outside = np.flatnonzero((keys < low) | (keys > high - 1))
        if len(outside):
            problem = f"{records.EXAMPLE_ID}: expected ids of shard {index} of {count}"
            self.findings.add_records(problem, numbers[outside])

    def finish(self) -> None:
        """Checks the number of records and the measured sizes, after the last block."""
        expected = self.shard.num_examples
        if self.num_records != expected:
            self.findings.add(f"expected {expected:,} records, received {self.num_records:,}")
        # With invalid records, the sums differ anyway.
        if self.checker and not self.findings.has_records and self.shard.measured is not None:
            recorded = collections.Counter(self.shard.measured)
            for name in sorted({*recorded, *self.measured}):
                if recorded[name] != self.measured[name]:
                    self.findings.add(
                        f"measured {name}: expected {recorded[name]}, as in the manifest, "
                        f"received {self.measured[name]}"
                    )


def _texts(examples: Sequence[Features], vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns digests of the true tokens of valid records, uint64 [n], and counts of tokens."""
    tokens = cache_tokens.true_tokens(examples, vocab_size)
    dtype = records.id_dtype(vocab_size)
    content = tokens.astype(dtype).tobytes()
    ends = np.cumsum([len(example[records.INPUT_IDS]) for example in examples]).tolist()
    digests = b"".join(
        hashlib.blake2b(content[begin:end], digest_size=_DIGEST_BYTES).digest()
        for begin, end in zip([0, *ends[:-1]], ends, strict=True)
    )
    # The counts equal those of `token_counts.count_tokens`.
    contents = [
        example[records.INPUT_IDS] + example.get(records.MASKED_LM_IDS, b"") for example in examples
    ]
    ids = Column.decode(_INPUT_IDS, contents, vocab_size).values
    return np.frombuffer(digests, "<u8"), np.bincount(ids, minlength=vocab_size)


# The directory.


class DirectoryReport(NamedTuple):
    """The problems of a directory.

    Attributes:
        problems: by the name of the file.
        shared_texts: number of eval examples whose text is also in the train split; None unless
            both splits exist and hold tokens.
    """

    problems: Problems
    shared_texts: int | None


def check_checksum(directory: Location) -> list[str]:
    """Returns the problems of the manifest's checksum, if there is a checksum file.

    Directories of older versions have none.
    """
    path = directory / manifests.CHECKSUM_FILE
    if not path.is_file():
        return []
    # One byte more than expected is read, to detect a longer file.
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
    """Yields the problems of a manifest that show without other files."""
    yield from check_checksum(directory)
    path = directory / manifests.MANIFEST_FILE
    # Only the form is compared. The checksum covers the values, and older manifests have fewer
    # fields.
    if path.read_bytes() != json_text.dump(path.read_json()):
        yield "its bytes are not those that were published"
    stated = [(name, getattr(manifest, name), flag) for name, flag in _STATED_TWICE.items()]
    if manifest.teacher_info is not None:
        values = manifest.teacher_info.to_json()
        stated += [(name, values[name], name) for name in _TEACHER_STATED_TWICE]
    for name, value, flag in stated:
        value = list(value) if isinstance(value, tuple) else value
        other = manifest.flags.get(flag)
        if other is not None and other != value:
            yield f"{name} is {value!r}, but {other!r} among its flags"
    if not manifest.splits:
        yield "it names no shards"


def run_config_problems(directory: Location, manifest: Manifest) -> Iterator[str]:
    """Yields the problems of the run configuration, which must agree with the manifest."""
    path = directory / manifests.RUN_CONFIG_FILE
    if not path.is_file():
        yield "it is missing"
        return
    try:
        run_config = path.read_json()
    except InputError as error:
        yield problem_text(error, path)
        return
    recorded = {name: manifest.flags[name] for name in run_config if name in manifest.flags}
    sides = (f"{manifests.MANIFEST_FILE} has", f"{manifests.RUN_CONFIG_FILE} has")
    difference = manifests.describe_difference(recorded, run_config, sides)
    if difference:
        yield f"it differs from {manifests.MANIFEST_FILE}: {difference}"


def special_problems(manifest: Manifest) -> Iterator[str]:
    """Yields a problem if a manifest lacks special tokens that checks of records need."""
    missing = {"cls", "sep", "mask"} - set(manifest.special_ids)
    if missing and manifest.kind != records.TASK_LOGITS:
        yield (
            f"expected special_ids with {', '.join(sorted(missing))}, "
            f"received {format_value(dict(manifest.special_ids))}"
        )


def check_directory(
    directory: Location,
    manifest: Manifest,
    is_special: np.ndarray | None,
    *,
    on_records: Callable[[int], None],
) -> DirectoryReport:
    """Checks a complete directory, except its tokenizer's files.

    Args:
        directory: the shard directory.
        manifest: its manifest.
        is_special: bool [V], the special tokens of the tokenizer. None if it cannot be read:
            then the manifest's special tokens are used.
        on_records: called with the number of records just checked.
    """
    problems: Problems = {}
    checker = _make_checker(directory, manifest, is_special, problems)
    comparison = _ShardComparison(manifest, checker is not None)
    # The eval split comes first: it is smaller, and its records are held in memory.
    splits = sorted(manifest.splits.items(), key=lambda item: item[0] != manifests.EVAL)
    for split, shards in splits:
        for shard in shards:
            comparison.begin(split)
            shard_problems = check_shard(
                directory, shard, checker, on_block=comparison.add, on_records=on_records
            )
            shard_problems += comparison.end() + check_sidecar(directory, shard)
            _note(problems, shard.file, shard_problems)
    if manifest.token_counts is not None and not problems:
        _note(problems, manifest.token_counts.file, comparison.count_problems(directory))
    return DirectoryReport(problems, comparison.shared_texts)


def total_records(directory: Location, manifest: Manifest) -> int:
    """Returns the number of records to read, bounded by the sizes of the files."""
    paths = {directory / shard.file: shard.num_examples for shard in manifest.shards}
    return sum(
        min(count, path.stat().st_size // _RECORD_BYTES)
        for path, count in paths.items()
        if path.is_file()
    )


def _note(problems: Problems, file: str, new_problems: Iterable[str]) -> None:
    new_problems = list(new_problems)
    if new_problems:
        problems.setdefault(file, []).extend(new_problems)


class _EvalValues:
    """Values of the eval split, matched with values of the train split."""

    def __init__(self, blocks: Sequence[np.ndarray]) -> None:
        self.values = np.sort(np.concatenate(blocks))
        self.is_matched = np.zeros(len(self.values), bool)

    def match(self, values: np.ndarray) -> int:
        """Marks the given values; returns the number of them that are in the eval split."""
        indices = np.minimum(np.searchsorted(self.values, values), len(self.values) - 1)
        is_match = self.values[indices] == values
        self.is_matched[indices[is_match]] = True
        return int(np.count_nonzero(is_match))

    def num_matched(self) -> int:
        """Returns the number of marked values; equal values are counted separately."""
        return int(np.isin(self.values, self.values[self.is_matched]).sum())


def _make_checker(
    directory: Location, manifest: Manifest, is_special: np.ndarray | None, problems: Problems
) -> RecordChecker | None:
    """Checks all files except the shards, and returns the checker of records.

    Returns None if records cannot be decoded, as special tokens or a file of the codec are
    invalid.
    """
    _note(problems, manifests.MANIFEST_FILE, manifest_problems(directory, manifest))
    _note(problems, manifests.RUN_CONFIG_FILE, run_config_problems(directory, manifest))
    unreadable = list(special_problems(manifest))
    _note(problems, manifests.MANIFEST_FILE, unreadable)
    for info in filter(None, (manifest.token_counts, manifest.output_table)):
        file_problems = check_file(directory / info.file, info)
        _note(problems, info.file, file_problems)
        unreadable += file_problems if manifest.teacher_info is not None else []
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
        file = manifest.output_table or manifest.token_counts
        _note(problems, file.file, [problem_text(error)])
        return None
    return RecordChecker(manifest, is_special, codec)


class _ShardComparison:
    """Checks across the records of all shards; the eval split must come first."""

    def __init__(self, manifest: Manifest, is_readable: bool) -> None:
        self.manifest = manifest
        has_tokens = is_readable and manifest.kind != records.TASK_LOGITS
        self._counts = np.zeros(manifest.vocab.size, np.int64) if has_tokens else None
        self._eval: list[tuple[np.ndarray, np.ndarray]] = []
        self._ids: _EvalValues | None = None
        self._texts: _EvalValues | None = None
        self._split, self._repeated = "", 0

    @property
    def shared_texts(self) -> int | None:
        """Number of eval examples whose text is also in the train split; see `DirectoryReport`."""
        return None if self._texts is None else self._texts.num_matched()

    def begin(self, split: str) -> None:
        self._split, self._repeated = split, 0
        if split != manifests.EVAL and self._eval:
            self._ids, self._texts = map(_EvalValues, zip(*self._eval, strict=True))
            self._eval.clear()

    def add(self, block: Block) -> None:
        if self._counts is None:
            return
        self._counts += block.token_counts
        if self._split == manifests.EVAL:
            self._eval.append((block.example_ids, block.texts))
        elif self._ids is not None:
            self._repeated += self._ids.match(block.example_ids)
            self._texts.match(block.texts)

    def end(self) -> list[str]:
        """Returns the problems of the current shard."""
        if not self._repeated:
            return []
        return [f"it repeats {self._repeated:,} examples of the eval split"]

    def count_problems(self, directory: Location) -> list[str]:
        """Returns the problems of the file of token counts; all records must be valid."""
        recorded = token_counts.load_counts(directory, self.manifest)
        wrong = np.flatnonzero(recorded != self._counts)
        if not len(wrong):
            return []
        token = int(wrong[0])
        others = f" ({len(wrong) - 1:,} more)" if len(wrong) > 1 else ""
        return [
            f"token {token}: expected {self._counts[token]}, as counted in the records, "
            f"received {recorded[token]}{others}"
        ]
