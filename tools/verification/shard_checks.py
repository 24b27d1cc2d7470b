"""One shard against what its directory's manifest says of it, to the last byte."""

import collections
import dataclasses
import hashlib
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from data_specs import records
from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.storage import manifest as manifests
from pipeline.storage import serialization, spill
from pipeline.storage.manifest import FileInfo, ShardInfo
from tools.verification.record_checks import RecordChecker
from tools.vocabulary import cache_tokens

# Records checked at once: so many, or fewer that have so many bytes.
_RECORDS_AT_ONCE = 4_096
_BYTES_AT_ONCE = 4 * 2**20
_DIGEST_BYTES = 8
# Of a shard that is nothing but damage, the first problems are told.
_MAX_PROBLEMS = 8
_MAX_CHARACTERS = 400

Features = Mapping[str, bytes]


@dataclasses.dataclass(frozen=True)
class Block:
    """Records of a shard in which nothing is wrong, to be compared with other shards.

    Attributes:
        example_ids: S16 [n].
        texts: uint64 [n], digests of the true tokens of each; None without tokens.
        token_counts: int64 [V], how often each token is in them, [MASK] at a masked
            position and the label being one each; None without tokens.
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

    def __bool__(self) -> bool:
        return bool(self._problems or self._first)

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
    size = path.stat().st_size
    if size != info.bytes:
        return [f"expected {info.bytes} bytes, received {size}"]
    received = path.sha256()
    if received != info.sha256:
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
        shard: what the manifest says of it.
        checker: of the directory's records; None to check their framing and number only.
        on_block: called with records in which nothing is wrong.
        on_records: called with the number of records just read.

    Returns:
        what is wrong with it, its sidecar left out; empty where nothing is.
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
        findings.add(str(error).removeprefix(f"{path}: "))
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
        self.is_sound = True

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
                self._add(f"expected a tf.train.Example of bytes: {error}", [place])
        numbers, sound = np.array(places, np.int64), np.ones(len(places), bool)
        for finding in self.checker.check(examples) if examples else ():
            self._add(finding.problem, numbers[finding.places])
            sound[finding.places] = False
        kept = np.flatnonzero(sound)
        if len(kept):
            yield self._sound_block([examples[place] for place in kept], numbers[kept])

    def _add(self, problem: str, places: Sequence[int] | np.ndarray) -> None:
        self.is_sound = False
        self.findings.add_records(problem, places)

    def _sound_block(self, examples: Sequence[Features], numbers: np.ndarray) -> Block:
        manifest = self.checker.manifest
        ids = np.frombuffer(b"".join([one[records.EXAMPLE_ID] for one in examples]), "S16")
        if manifest.kind != records.TASK_LOGITS:
            self._check_order(examples, numbers)
        if self.shard.measured is not None and manifest.teacher_info is not None:
            added = [f.name for f in manifest.features if f not in records.MASKED_EXAMPLE_FEATURES]
            factor = manifest.teacher_info.truncation_factor
            for one in examples:
                features = {name: one[name] for name in added}
                manifests.measure_record(self.measured, features, factor)
        if records.INPUT_IDS not in examples[0]:
            return Block(ids, None, None)
        return Block(ids, *_texts(examples, manifest.vocab.size))

    def _check_order(self, examples: Sequence[Features], numbers: np.ndarray) -> None:
        """Checks that ids ascend, and that each is in its shard's range of keys.

        See `pipeline.storage.spill` and `pipeline.masking.shard_plan`.
        """
        ids = [one[records.EXAMPLE_ID] for one in examples]
        before = [self.last_id, *ids[:-1]]
        falls = [place for place, (a, b) in enumerate(zip(before, ids, strict=True)) if b <= a]
        if falls:
            problem = f"{records.EXAMPLE_ID}: expected ascending ids, none twice"
            self._add(problem, numbers[falls])
        self.last_id = ids[-1]
        index, count = manifests.shard_place(self.shard.file)
        low, high = (spill.KEY_SPACE * number // count for number in (index, index + 1))
        keys = np.frombuffer(b"".join(ids), ">u8")[::2]
        outside = np.flatnonzero((keys < low) | (keys > high - 1))
        if len(outside):
            problem = f"{records.EXAMPLE_ID}: expected ids of shard {index} of {count}"
            self._add(problem, numbers[outside])

    def finish(self) -> None:
        """Checks what can be known only at the end of a shard that could be read."""
        expected = self.shard.num_examples
        if self.num_records != expected:
            self.findings.add(f"expected {expected:,} records, received {self.num_records:,}")
        # Sums of sound records only would say nothing new.
        if self.checker is not None and self.shard.measured is not None and self.is_sound:
            told = dict(self.shard.measured)
            for name in sorted({*told, *self.measured}):
                if told.get(name, 0) != self.measured[name]:
                    self.findings.add(
                        f"measured {name}: expected {told.get(name, 0)}, as the manifest says, "
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
    parts = [one[records.INPUT_IDS] + one.get(records.MASKED_LM_IDS, b"") for one in examples]
    ids = np.frombuffer(b"".join(parts), dtype)
    return np.frombuffer(digests, "<u8"), np.bincount(ids, minlength=vocab_size)
