"""Checks of a directory of shards: the manifest, each file, each record, and all together."""

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
from pipeline.base.json_text import shown
from pipeline.base.location import Location
from pipeline.storage import cache_input, serialization, spill, token_counts
from pipeline.storage import manifest as manifests
from pipeline.storage.arrays import Column
from pipeline.storage.manifest import FileInfo, Manifest, ShardInfo
from tools.verification.record_checks import Features, RecordChecker
from tools.vocabulary import cache_tokens

# The name in a list of problems under which the tokenizer's files are.
TOKENIZER = "tokenizer"
# The manifest of a cache while it is repaired.
OLD_MANIFEST = f"{manifests.MANIFEST_FILE}.old"

# A record has at least its framing.
_RECORD_BYTES = 16
_CHECKSUM = re.compile(r"([0-9a-f]{64})  manifest\.json\n")
# What a manifest states twice: its own fields, by their names among the flags.
_STATED_TWICE = {
    "max_seq_length": "max_seq_length",
    "max_predictions_per_seq": "max_predictions_per_seq",
    "dupe_factor": "dupe_factor",
    "seed": "random_seed",
}
_TEACHER_STATED_TWICE = ("truncation_factor", "logit_encoding", "temperatures", "parent")
# Records checked at once: so many, or fewer that have so many bytes.
_RECORDS_AT_ONCE = 4_096
_BYTES_AT_ONCE = 4 * 2**20
_DIGEST_BYTES = 8
# Only the first problems of a shard are reported, each cut to so many characters.
_MAX_PROBLEMS = 8
_MAX_CHARACTERS = 400

(_INPUT_IDS,) = (
    feature for feature in records.MASKED_EXAMPLE_FEATURES if feature.name == records.INPUT_IDS
)

Problems = dict[str, list[str]]


def facts(error: InputError, path: Location | None = None) -> str:
    """Returns an error's text for a list of problems: without its setting, or the file's path."""
    subject = str(error.subject or "").removeprefix(str(path or "")).removeprefix(": ")
    return describe(InputError(subject or None, error.expected, error.received, error.hint), str)


# One shard.


class Block(NamedTuple):
    """Records of a shard in which nothing is wrong, to be compared with other shards.

    `example_ids` are S16 [n]. Without tokens the others are None: `texts`, uint64 [n], digests
    of the true tokens of each record, and `token_counts`, int64 [V], how often each token is
    in them, [MASK] at a masked position and the label being one each.
    """

    example_ids: np.ndarray
    texts: np.ndarray | None
    token_counts: np.ndarray | None


class Findings:
    """What is wrong with a shard: each problem with the first record that has it."""

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._first: dict[str, int] = {}
        self._counts: collections.Counter[str] = collections.Counter()

    @property
    def has_records(self) -> bool:
        """Whether some record is broken."""
        return bool(self._first)

    def add(self, problem: str) -> None:
        """Adds what is wrong with the shard as a whole."""
        self._problems.append(problem)

    def add_records(self, problem: str, places: Sequence[int] | np.ndarray) -> None:
        """Adds what is wrong with some records, of which there is at least one."""
        self._first.setdefault(problem, int(places[0]))
        self._counts[problem] += len(places)

    def texts(self) -> list[str]:
        """Returns the problems as sentences."""
        found = list(self._problems)
        for problem, place in self._first.items():
            others = self._counts[problem] - 1
            found.append(f"record {place}: {problem}" + (f" ({others:,} more)" if others else ""))
        told = [textwrap.shorten(text, _MAX_CHARACTERS) for text in found[:_MAX_PROBLEMS]]
        return told + [f"{len(found) - _MAX_PROBLEMS:,} other problems"] * (len(found) > len(told))


def check_file(path: Location, info: ShardInfo | FileInfo) -> list[str]:
    """Returns what is wrong with a file's size or checksum."""
    if not path.is_file():
        return ["it is missing"]
    if (size := path.stat().st_size) != info.bytes:
        return [f"expected {info.bytes} bytes, received {size}"]
    if (received := path.sha256()) != info.sha256:
        return [f"expected SHA-256 {info.sha256}, received {received}"]
    return []


def check_sidecar(directory: Location, shard: ShardInfo) -> list[str]:
    """Returns what is wrong with a shard's sidecar; it says what the manifest says."""
    path = manifests.sidecar_path(directory, shard.file)
    if not path.is_file():
        return [f"its sidecar {path.name} is missing"]
    expected = json_text.dump(shard.to_json())
    if path.stat().st_size == len(expected) and path.read_bytes() == expected:
        return []
    return [f"its sidecar {path.name} says something else than {manifests.MANIFEST_FILE}"]


def check_shard(
    directory: Location,
    shard: ShardInfo,
    checker: RecordChecker | None,
    *,
    on_block: Callable[[Block], None],
    on_records: Callable[[int], None],
) -> list[str]:
    """Checks a shard's file, framing, records and their order, and what was measured of them.

    Args:
        directory: of the shard.
        shard: its entry in the manifest.
        checker: of the directory's records; None to check their framing and number only.
        on_block: called with records in which nothing is wrong.
        on_records: called with the number of records just read.
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
        findings.add(facts(error, path))
    else:
        reading.finish()
    return findings.texts()


def _blocks(stream: Iterator[bytes]) -> Iterator[list[bytes]]:
    block: list[bytes] = []
    size = 0
    for record in stream:
        block.append(record)
        size += len(record)
        if size >= _BYTES_AT_ONCE or len(block) == _RECORDS_AT_ONCE:
            yield block
            block, size = [], 0
    if block:
        yield block


class _Reading:
    """What is remembered of a shard's records from one block to the next."""

    def __init__(self, shard: ShardInfo, checker: RecordChecker | None, findings: Findings) -> None:
        self.shard, self.checker, self.findings = shard, checker, findings
        self.num_records = 0
        self.last_id = b""
        self.measured: collections.Counter[str] = collections.Counter()

    def check(self, block: Sequence[bytes]) -> Iterator[Block]:
        """Checks records; yields those that are sound."""
        first = self.num_records
        self.num_records += len(block)
        if self.checker is None:
            return
        places, examples = [], []
        for place, record in enumerate(block, first):
            try:
                examples.append(serialization.decode_example(record))
                places.append(place)
            except ValueError as error:
                self.findings.add_records(f"expected a tf.train.Example of bytes: {error}", [place])
        numbers, sound = np.array(places, np.int64), np.ones(len(places), bool)
        for finding in self.checker.check(examples) if examples else ():
            self.findings.add_records(finding.problem, numbers[finding.places])
            sound[finding.places] = False
        kept = np.flatnonzero(sound)
        if len(kept):
            yield self._sound_block([examples[place] for place in kept], numbers[kept])

    def _sound_block(self, examples: Sequence[Features], numbers: np.ndarray) -> Block:
        manifest = self.checker.manifest
        ids = np.array([one[records.EXAMPLE_ID] for one in examples], "S16")
        if manifest.kind != records.TASK_LOGITS:
            self._check_order(examples, numbers)
        if self.shard.measured is not None and (info := manifest.teacher_info) is not None:
            added = [f.name for f in manifest.features if f not in records.MASKED_EXAMPLE_FEATURES]
            for one in examples:
                features = {name: one[name] for name in added}
                manifests.measure_record(self.measured, features, info.truncation_factor)
        if records.INPUT_IDS not in examples[0]:
            return Block(ids, None, None)
        return Block(ids, *_texts(examples, manifest.vocab.size))

    def _check_order(self, examples: Sequence[Features], numbers: np.ndarray) -> None:
        """Checks that ids ascend, and that each is in its shard's range of keys.

        See `pipeline.storage.spill` and `pipeline.masking.masked_examples.ShardPlan`.
        """
        ids = [one[records.EXAMPLE_ID] for one in examples]
        before = [self.last_id, *ids[:-1]]
        falls = [place for place, (a, b) in enumerate(zip(before, ids, strict=True)) if b <= a]
        if falls:
            problem = f"{records.EXAMPLE_ID}: expected ascending ids, none twice"
            self.findings.add_records(problem, numbers[falls])
        self.last_id = ids[-1]
        index, count = manifests.shard_place(self.shard.file)
        low, high = (spill.KEY_SPACE * number // count for number in (index, index + 1))
        keys, _ = spill.keys_and_ties(ids)
        outside = np.flatnonzero((keys < low) | (keys > high - 1))
        if len(outside):
            problem = f"{records.EXAMPLE_ID}: expected ids of shard {index} of {count}"
            self.findings.add_records(problem, numbers[outside])

    def finish(self) -> None:
        """Checks what can be known only at the end of a shard that could be read."""
        expected = self.shard.num_examples
        if self.num_records != expected:
            self.findings.add(f"expected {expected:,} records, received {self.num_records:,}")
        # Sums of sound records only would say nothing new.
        if self.checker and not self.findings.has_records and self.shard.measured is not None:
            recorded = collections.Counter(self.shard.measured)
            for name in sorted({*recorded, *self.measured}):
                if recorded[name] != self.measured[name]:
                    self.findings.add(
                        f"measured {name}: expected {recorded[name]}, as the manifest says, "
                        f"received {self.measured[name]}"
                    )


def _texts(examples: Sequence[Features], vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns digests of the true tokens of sound records, uint64 [n], and counts of tokens."""
    tokens = cache_tokens.true_tokens(examples, vocab_size)
    dtype = records.id_dtype(vocab_size)
    content = tokens.astype(dtype).tobytes()
    ends = np.cumsum([len(one[records.INPUT_IDS]) for one in examples]).tolist()
    digests = b"".join(
        hashlib.blake2b(content[begin:end], digest_size=_DIGEST_BYTES).digest()
        for begin, end in zip([0, *ends[:-1]], ends, strict=True)
    )
    # As `token_counts.count_tokens` counts them.
    contents = [one[records.INPUT_IDS] + one.get(records.MASKED_LM_IDS, b"") for one in examples]
    ids = Column.decode(_INPUT_IDS, contents, vocab_size).values
    return np.frombuffer(digests, "<u8"), np.bincount(ids, minlength=vocab_size)


# The directory.


class DirectoryReport(NamedTuple):
    """What is wrong, by the name of the file, and how many eval windows repeat a train text.

    The number is None where there are no two splits of tokens.
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
    stated = [(name, getattr(manifest, name), flag) for name, flag in _STATED_TWICE.items()]
    if manifest.teacher_info is not None:
        values = manifest.teacher_info.to_json()
        stated += [(name, values[name], name) for name in _TEACHER_STATED_TWICE]
    for name, value, flag in stated:
        value = list(value) if isinstance(value, tuple) else value
        other = manifest.flags.get(flag)
        if other is not None and other != value:
            yield f"{name} is {value!r}, and {other!r} among its flags"
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
        yield facts(error, path)
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
    """Checks all of a complete directory except its tokenizer's files.

    `is_special`, bool [V], are the tokens that the tokenizer calls special; None where it
    cannot be read: then those that the manifest names are. `on_records` is called with the
    number of records just checked.
    """
    found: Problems = {}
    checker = _make_checker(directory, manifest, is_special, found)
    together = _Together(manifest, checker is not None)
    # First eval, which is the smaller part: what is remembered is what a train record may repeat.
    splits = sorted(manifest.splits.items(), key=lambda item: item[0] != manifests.EVAL)
    for split, shards in splits:
        for shard in shards:
            together.begin(split)
            problems = check_shard(
                directory, shard, checker, on_block=together.add, on_records=on_records
            )
            problems += together.end() + check_sidecar(directory, shard)
            _note(found, shard.file, problems)
    if manifest.token_counts is not None and not found:
        _note(found, manifest.token_counts.file, together.count_problems(directory))
    return DirectoryReport(found, together.shared_texts)


def total_records(directory: Location, manifest: Manifest) -> int:
    """Returns how many records there are to read, and never more than files can hold."""
    paths = {directory / shard.file: shard.num_examples for shard in manifest.shards}
    return sum(
        min(count, path.stat().st_size // _RECORD_BYTES)
        for path, count in paths.items()
        if path.is_file()
    )


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
    """Checks the files beside the shards, and returns what checks the records.

    None where records cannot be read: their sizes, or the codec's own file, are broken.
    """
    _note(found, manifests.MANIFEST_FILE, manifest_problems(directory, manifest))
    _note(found, manifests.REQUEST_FILE, request_problems(directory, manifest))
    unreadable = list(special_problems(manifest))
    _note(found, manifests.MANIFEST_FILE, unreadable)
    for info in filter(None, (manifest.token_counts, manifest.output_table)):
        problems = check_file(directory / info.file, info)
        _note(found, info.file, problems)
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
        file = manifest.output_table or manifest.token_counts
        _note(found, file.file, [facts(error)])
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
        self._split, self._repeated = split, 0
        if split != manifests.EVAL and self._eval:
            self._ids, self._texts = (_Known(parts) for parts in zip(*self._eval, strict=True))
            self._eval.clear()

    def add(self, block: Block) -> None:
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
