"""The manifest, which describes the contents of a shard directory and is written last.

A shard directory is made in three steps. `reserve_output_dir` writes `request.json`, the run
configuration. Then shards are written, each atomically, each with a hidden sidecar file of its
count and checksum. When all shards are complete, `publish` writes `manifest.json`. A directory
without it is unfinished.

A manifest may come from an untrusted source. Its numbers become sizes of arrays, and its names
become paths of files to copy. The types below bound both, and each value is checked before use.
"""

import collections
import contextlib
import dataclasses
import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from data_specs import records
from data_specs.records import Feature
from pipeline.base import json_text
from pipeline.base.errors import InputError, show_settings
from pipeline.base.json_text import format_value
from pipeline.base.location import Location
from pipeline.storage import arrays
from pipeline.storage.codecs import (
    CODECS,
    ENCODINGS,
    HIDDEN_CODECS,
    STATES,
    HiddenCodec,
)
from pipeline.storage.codecs.states import STATE_PACKINGS, StatePacking
from pipeline.tokenizers.vocabulary import MAX_TOKENIZER_BYTES, Sha256, VocabInfo

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
CHECKSUM_FILE = ".manifest.json.sha256"
RUN_CONFIG_FILE = "request.json"
# Number of differences between two run configurations that a message lists.
_MAX_DIFFERENCES = 3
# The file of token counts; see `pipeline.storage.token_counts`.
TOKEN_COUNTS_FILE = "token_counts.npy"
# The file of the output table of a cache of head states; see `pipeline.storage.output_table`.
OUTPUT_TABLE_FILE = "output_table.safetensors"
TRAIN = "train"
EVAL = "eval"
SPLITS = (TRAIN, EVAL)
SHARD_FILE = re.compile(r"(train|eval)-([0-9]{5})-of-([0-9]{5})\.tfrecord")
# Key in a run configuration: the origin of models, which does not decide the output.
HUB = "hub"
# Key in the statistics: the share of each text in the eval split, if texts were divided.
HELD_OUT_TEXT = "held_out_text"
# Key in the statistics: true if each row was a document and `documents` therefore had no effect.
ROWS = "documents_are_rows"
_LINES_HINT = "if each line of the text is a document: create_pretraining_data `documents`=lines"
# The selection of the ids of a masked position: the most probable tokens, or random draws.
TOPK = "topk"
SAMPLED = "sampled"
TRUNCATIONS = (TOPK, SAMPLED)
# Keys in `ShardInfo.measured`: numbers of masked positions, and of ids stored at them.
NUM_POSITIONS = "num_positions"
NUM_IDS = "num_ids"
# The command that makes a directory of each kind. The same settings give the same bytes.
MAKERS = {
    records.MASKED_EXAMPLES: "create_pretraining_data",
    records.UNMASKED_WINDOWS: "create_pretraining_data",
    records.TEACHER_CACHE: "create_teacher_output_data",
    records.TASK_LOGITS: "offline_distill finetune",
}
_REPAIR = (
    "offline_distill verify_cache `input_dir`=CACHE `repair` `teacher`=TEACHER `examples`=EXAMPLES"
)
# Encodings that were removed, with the last commit that reads and writes them.
_REMOVED_ENCODINGS = {"uint8": "ef818ef"}
# Maximum number of values at a position, over all groups of hidden states.
_MAX_HIDDEN_SIZE = 2**20
_MAX_STATE_SIZE = 2**16

# An array cannot have more items.
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
# A record stores positions in uint16.
Length = Annotated[int, Meta(ge=0, le=2**16)]
# A positive, finite number.
Positive = Annotated[float, Meta(gt=0.0, le=1.7e308)]
Share = Annotated[float, Meta(gt=0.0, le=1.0)]
# A sum of logarithms, or of their squares. The bounds keep computations with it finite.
Sum = Annotated[float, Meta(ge=-1e30, le=1e30)]
# A tokenizer file that may be copied into a directory. No other file in it has such a name.
TokenizerFile = Annotated[
    str,
    json_text.matching(
        r"vocab\.txt|tokenizer(_config)?\.json|[A-Za-z0-9_.\-]{1,64}\.model",
        "a tokenizer's file (vocab.txt, tokenizer.json, tokenizer_config.json or *.model)",
    ),
]


class LabelSums(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sums over the masked positions of a shard that score the teacher on the labels.

    The teacher is compared with a unigram model of the labels' frequencies in the shard.
    Logarithms are in nats.

    Attributes:
        num_labels: number of masked positions.
        num_hits: number of labels that are the teacher's most probable token.
        log_prob: sum of the teacher's log-probabilities of the labels.
        log_prob_squares: sum of their squares.
        entropy: sum of the entropies of the teacher's distributions. Each position is assigned
            the entropy of the first position of its example in the block.
        unigram_hits: number of labels that are the most frequent label.
        unigram_log_prob: sum of the unigram model's log-probabilities; each label is left out of
            the frequencies that predict it.
    """

    num_labels: Count
    num_hits: Count
    log_prob: Sum
    log_prob_squares: Sum
    entropy: Sum
    unigram_hits: Count
    unigram_log_prob: Sum


class ShardInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A shard: the name of its file, its numbers of examples and bytes, its SHA-256 in hex.

    `measured` is present if records of equal shape may differ in size. It holds sums over all
    records: the bytes of each feature that a teacher cache adds, by name, `NUM_POSITIONS` and
    `NUM_IDS`. `labels` is present in a shard of captured targets.
    """

    file: Annotated[str, json_text.matching(SHARD_FILE.pattern, "the name of a shard")]
    num_examples: Count
    bytes: Count
    sha256: Sha256
    measured: Mapping[str, Count] | None = None
    labels: LabelSums | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the object that the sidecar and the manifest hold."""
        return msgspec.to_builtins(self)


class FileInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file in a shard directory: its name, its number of bytes and its SHA-256 in hex."""

    # Readers of the file accept only this name.
    file: Annotated[
        str, json_text.matching(re.escape(TOKEN_COUNTS_FILE), f"the file {TOKEN_COUNTS_FILE}")
    ]
    bytes: Count
    sha256: Sha256


class TableInfo(FileInfo, frozen=True, forbid_unknown_fields=True):
    """The file of the teacher's output table; see `FileInfo`."""

    file: Annotated[
        str, json_text.matching(re.escape(OUTPUT_TABLE_FILE), f"the file {OUTPUT_TABLE_FILE}")
    ]


class HubSource(msgspec.Struct):
    """The origin of weights on the hub: the model's id and its commit."""

    id: Annotated[str, json_text.matching(r"[\w.\-]{1,96}(/[\w.\-]{1,96})?", "the id of a model")]
    commit: Annotated[str, json_text.matching(r"[0-9a-f]{40}", "a commit")]

    def __str__(self) -> str:
        return f"{self.id}@{self.commit}"


class _MergedTeacher(msgspec.Struct):
    """A teacher of a merged cache; its own cache may be a merged one too."""

    weight: Share
    sha256: Sha256 | None = None
    merged: list["_MergedTeacher"] | None = None
    hub: HubSource | None = None

    def __post_init__(self) -> None:
        if self.sha256 is None and self.merged is None:
            raise ValueError("no field sha256")


@dataclasses.dataclass(frozen=True)
class TeacherInfo:
    """The fields that a teacher cache adds to a manifest.

    Attributes:
        truncation_factor: K, the number of ids stored at a masked position, or the maximum if
            it varies; the number of draws if `truncation` is `sampled`; V for head states.
        logit_encoding: a name in `pipeline.storage.codecs.ENCODINGS`.
        temperatures: the temperatures of the stored tail masses, ascending from 1; empty for
            head states, which have no tail.
        teacher: the teacher's `config`, the `sha256` of its weights and, for a model of the
            hub, its id and commit in `hub`. A merged cache has `merged` instead, the list of its
            inputs' teachers, each with its `weight`.
        parent: the `sha256` of the masked examples' manifest.
        hidden_groups: the groups of teacher layers, for example `1-6`, whose mean hidden state
            is stored; empty if none are.
        hidden_encoding: a name in `pipeline.storage.codecs.HIDDEN_CODECS`.
        hidden_size: D of the stored hidden states and of the stored embedding.
        truncation: one of `TRUNCATIONS`.
        truncation_mass: the mass at which a position's ids end; None without this limit.
        embedding: the pooling of the stored embedding, one of `records.POOLINGS`; None if none
            is stored.
        state_bits: bits per number of a head state; None unless `logit_encoding` is `states`.
        state_size: E of the head states; None unless `logit_encoding` is `states`.
    """

    truncation_factor: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    logit_encoding: str
    temperatures: Annotated[tuple[Positive, ...], Meta(max_length=64)]
    teacher: Mapping[str, Any]
    parent: Mapping[str, Any]
    hidden_groups: Annotated[tuple[str, ...], Meta(max_length=2**10)] = ()
    hidden_encoding: str | None = None
    hidden_size: int | None = None
    truncation: Literal[TOPK, SAMPLED] = TOPK
    truncation_mass: Share | None = None
    embedding: Literal[records.POOLINGS] | None = None
    state_bits: int | None = None
    state_size: int | None = None

    @property
    def holds_states(self) -> bool:
        """Whether the cache holds head states instead of a top-k."""
        return self.logit_encoding == STATES

    @property
    def variable(self) -> bool:
        """Whether positions may have fewer than K ids."""
        return self.truncation == SAMPLED or self.truncation_mass is not None

    def hidden_codec(self) -> HiddenCodec | None:
        """Returns the codec of the hidden states; None if none are cached."""
        if not self.hidden_groups:
            return None
        return HIDDEN_CODECS[self.hidden_encoding](len(self.hidden_groups), self.hidden_size)

    def state_packing(self) -> StatePacking | None:
        """Returns the packing of the head states; None if none are cached."""
        return STATE_PACKINGS[self.state_bits](self.state_size) if self.holds_states else None

    @property
    def target_features(self) -> tuple[Feature, ...]:
        """The features that hold the teacher's distribution and the label's probability."""
        if self.holds_states:
            return (*self.state_packing().stored, records.LABEL_FEATURE)
        counts = (records.TOPK_COUNTS_FEATURE,) if self.variable else ()
        return (*CODECS[self.logit_encoding].stored, *counts, *records.MASS_FEATURES)

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of the dimensions, by the letters of `data_specs.records`."""
        return {
            "K": self.truncation_factor,
            "T": len(self.temperatures),
            "G": len(self.hidden_groups),
            "D": self.hidden_size or 0,
            **(self.state_packing().sizes if self.holds_states else {}),
        }

    def to_json(self) -> dict[str, Any]:
        """Returns the fields of a manifest.

        Options at their default are left out, so that manifests equal those of versions without
        these options.
        """
        value = dataclasses.asdict(self)
        if self.truncation == TOPK:
            del value["truncation"]
        for name in ("truncation_mass", "embedding", "state_bits", "state_size"):
            if value[name] is None:
                del value[name]
        return value


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of a shard directory. Attributes are named as in `manifest.json`.

    Only a teacher cache has `teacher_info`. Unmasked windows have `token_counts`, and so have
    teacher caches whose codec needs them. Caches of head states have an `output_table`.
    """

    kind: Literal[tuple(records.FEATURES)]
    vocab: VocabInfo
    special_ids: Mapping[str, Count]
    max_seq_length: Length
    max_predictions_per_seq: Length
    dupe_factor: Count
    # The seed is only hashed, so it needs no upper bound.
    seed: Annotated[int, Meta(ge=0)]
    flags: Mapping[str, Any]
    splits: Mapping[Literal[SPLITS], Annotated[tuple[ShardInfo, ...], Meta(max_length=2**20)]]
    tokenizer_files: Annotated[tuple[TokenizerFile, ...], Meta(max_length=2**20)] = ()
    statistics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    teacher_info: TeacherInfo | None = None
    token_counts: FileInfo | None = None
    output_table: TableInfo | None = None

    @property
    def shards(self) -> list[ShardInfo]:
        """The shards of all splits."""
        return [shard for shards in self.splits.values() for shard in shards]

    @property
    def features(self) -> tuple[Feature, ...]:
        """The features of a record."""
        info = self.teacher_info
        if info is None:
            return records.FEATURES[self.kind]
        return (
            *records.MASKED_EXAMPLE_FEATURES,
            *info.target_features,
            *(records.HIDDEN_FEATURES[info.hidden_encoding] if info.hidden_groups else ()),
            *((records.EMBEDDING_FEATURE,) if info.embedding else ()),
        )

    def bytes_per_position(self) -> dict[str, float]:
        """Returns the bytes of each feature of a teacher cache at a masked position, by name.

        If the size varies, it is the measured mean.
        """
        sizes = {"P": 1, **self.teacher_info.sizes}
        added = self.features[len(records.MASKED_EXAMPLE_FEATURES) :]
        added = [feature for feature in added if feature.name != records.EMBEDDING]
        means = measured_means(self.shards, [feature.name for feature in added])
        if means is not None:
            return {name: round(mean, 2) for name, mean in means.items()}
        return {
            feature.name: math.prod(sizes[letter] for letter in feature.shape)
            * feature.numpy_dtype(self.vocab.size).itemsize
            for feature in added
        }

    def ids_per_position(self) -> float:
        """Returns the mean number of ids that a teacher cache holds at a masked position."""
        means = measured_means(self.shards, [NUM_IDS])
        return self.teacher_info.truncation_factor if means is None else means[NUM_IDS]

    def maker(self) -> str:
        """Returns the command that makes the directory; a value of `MAKERS`, or `merge_caches`."""
        if self.teacher_info is not None and "merged" in self.teacher_info.teacher:
            return "offline_distill merge_caches"
        return MAKERS[self.kind]

    def label_sums(self) -> LabelSums | None:
        """Returns the sums over all shards; None if a shard has none, as in a merged cache."""
        sums = [shard.labels for shard in self.shards]
        if not sums or None in sums:
            return None
        names = LabelSums.__struct_fields__
        return LabelSums(**{name: sum(getattr(shard, name) for shard in sums) for name in names})

    def num_examples(self, split: str) -> int:
        """Returns the number of examples of a split; 0 if the split does not exist."""
        return sum(shard.num_examples for shard in self.splits.get(split, ()))

    def evaluation_notes(self) -> Iterator[str]:
        """Yields lines on the eval split if there were too few documents to hold some out."""
        share = self.statistics.get(HELD_OUT_TEXT)
        if not self.num_examples(EVAL):
            yield "no eval split: eval_fraction was 0, or there was one short document"
        elif share is not None:
            yield f"the eval split is at least the last {share:.1%} of the text, because the text"
            yield "has fewer than two different documents"
        else:
            return
        if not self.statistics.get(ROWS):
            yield show_settings(_LINES_HINT, str)

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `manifest.json` holds."""
        value = {**vars(self), "format_version": FORMAT_VERSION}
        del value["teacher_info"]
        for name in ("vocab", "splits", "token_counts", "output_table"):
            value[name] = msgspec.to_builtins(value[name])
        for name in ("token_counts", "output_table"):
            if value[name] is None:
                del value[name]
        if self.teacher_info is not None:
            value |= self.teacher_info.to_json()
            # This is for readers of the manifest: programs compute it from the other fields.
            value["bytes_per_position"] = self.bytes_per_position()
        return value

    def sha256(self) -> str:
        """Returns the SHA-256 of the manifest as it is written."""
        return hashlib.sha256(json_text.dump(self.to_json())).hexdigest()


def shard_file(split: str, index: int, num_shards: int) -> str:
    """Returns the file name of a shard, for example `train-00000-of-00008.tfrecord`."""
    return f"{split}-{index:05d}-of-{num_shards:05d}.tfrecord"


def parse_shard_file(file: str) -> tuple[int, int]:
    """Returns the index and the number of shards from a name that `shard_file` made."""
    match = SHARD_FILE.fullmatch(file)
    if match is None:
        raise ValueError(f"file: expected the name of a shard, received {file!r}")
    return int(match[2]), int(match[3])


def sidecar_path(directory: Location, file: str) -> Location:
    """Returns the path of a shard's sidecar, a hidden file that globs of shards do not match."""
    return directory / f".{file}.json"


def completed_shard(directory: Location, file: str) -> ShardInfo | None:
    """Returns the content of a shard's sidecar; None unless the shard is complete."""
    path, sidecar = directory / file, sidecar_path(directory, file)
    if not (path.is_file() and sidecar.is_file()):
        return None
    try:
        shard = json_text.convert(sidecar.read_json(), ShardInfo, sidecar)
        _expect_shard(shard, sidecar)
    except InputError:
        # The sidecar is damaged, so the shard must be made again.
        return None
    return shard if path.stat().st_size == shard.bytes else None


def measure_record(
    measured: collections.Counter[str], features: Mapping[str, bytes], truncation_factor: int
) -> None:
    """Adds a record's sizes to the content of `ShardInfo.measured`.

    Args:
        measured: the sums, which are updated.
        features: the features that a teacher cache adds to the record.
        truncation_factor: K, the number of ids at a position if the record does not count them.
    """
    num_positions = len(features[records.LABEL_LOG_PROBS]) // 2
    num_ids = num_positions * truncation_factor
    if records.TOPK_COUNTS in features:
        counts = arrays.decode(records.TOPK_COUNTS_FEATURE, features[records.TOPK_COUNTS], 0)
        num_ids = int(counts.sum())
    measured.update({name: len(content) for name, content in features.items()})
    measured.update({NUM_POSITIONS: num_positions, NUM_IDS: num_ids})


def measured_means(shards: Sequence[ShardInfo], names: Sequence[str]) -> dict[str, float] | None:
    """Returns the mean per masked position of each number in `ShardInfo.measured`, by name.

    Returns None if a shard was not measured, as its records of equal shape have equal size.
    """
    measured = [shard.measured for shard in shards]
    if not measured or None in measured:
        return None
    positions = max(1, sum(sums[NUM_POSITIONS] for sums in measured))
    return {name: sum(sums.get(name, 0) for sums in measured) / positions for name in names}


def describe_difference(
    recorded: Mapping[str, Any],
    current: Mapping[str, Any],
    sides: tuple[str, str] = ("recorded", "now"),
) -> str:
    """Returns, in one line, the first settings in which two run configurations differ.

    If the kinds differ, only they are named, because other settings depend on them. `HUB` may
    differ. A nested setting is named by its path, for example `teacher.config.hidden_size` or
    `corpora[0].input_dir`. The line is empty if there is no difference.

    Args:
        recorded: the first run configuration.
        current: the second run configuration.
        sides: the words before the values of the two run configurations.

    Example: `seed (recorded 1, now 2), dupe_factor (recorded 5, now 3)`
    """
    differences = []
    for key in sorted((set(recorded) | set(current)) - {HUB}, key=_kind_first):
        old, new = recorded.get(key), current.get(key)
        if old != new:
            setting, old, new = _innermost_difference(_setting_name(key), old, new)
            first, second = sides
            text = f"{setting} ({first} {format_value(old)}, {second} {format_value(new)})"
            if key == "kind":
                return text
            differences.append(text)
    more = len(differences) - _MAX_DIFFERENCES
    listed = ", ".join(differences[:_MAX_DIFFERENCES])
    return f"{listed}, and {more} more differ" if more > 0 else listed


def _kind_first(key: str) -> tuple[bool, str]:
    return key != "kind", key


def _setting_name(key: str) -> str:
    return key if key.isidentifier() else format_value(key)


def _innermost_difference(path: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """Returns the path and the values of the first difference within two unequal values."""
    inner = []
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted(set(old) | set(new), key=_kind_first)
        inner = [(f"{path}.{_setting_name(key)}", old.get(key), new.get(key)) for key in keys]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        # Lists of settings, such as those of several corpora. Other lists are shown whole.
        pairs = enumerate(zip(old, new, strict=True))
        inner = [(f"{path}[{i}]", *pair) for i, pair in pairs if isinstance(pair[0], Mapping)]
    different = (item for item in inner if item[1] != item[2])
    first = next(different, None)
    return (path, old, new) if first is None else _innermost_difference(*first)


def check_output_dir(directory: Location, run_config: Mapping[str, Any]) -> bool:
    """Checks that a directory may hold the output of a run configuration; changes nothing.

    Args:
        directory: the output directory; it need not exist.
        run_config: the run configuration, as JSON values.

    Returns:
        whether the directory is new; False if it is reserved for this run configuration.

    Raises:
        InputError: the directory is reserved for another run configuration, or has files and no
            run configuration.
    """
    path = directory / RUN_CONFIG_FILE
    # The files are listed before the check for `request.json`, which another task may be writing.
    names = [item.name for item in directory.iterdir()] if directory.is_dir() else []
    present = sorted(name for name in names if not name.endswith(".tmp"))
    if path.is_file():
        difference = describe_difference(path.read_json(), run_config)
        if difference:
            received = f"it holds the output of another run configuration: {difference}"
            hint = "choose another directory, or delete this one"
            raise InputError(directory, received=received, hint=hint)
        return False
    if present:
        received = f"one with {present[0]!r} and without {RUN_CONFIG_FILE}"
        expected = "an empty directory, or that of an interrupted run of the same settings"
        raise InputError(directory, expected, received, "choose another directory")
    return True


def reserve_output_dir(directory: Location, run_config: Mapping[str, Any]) -> bool:
    """Reserves a directory for a run configuration, unless it is reserved for it already.

    Arguments, result and errors are those of `check_output_dir`. Call it after all other checks of
    the user's input, so that a corrected command may still use the directory.
    """
    is_new = check_output_dir(directory, run_config)
    if is_new:
        directory = directory.make_directory()
        if not (directory / RUN_CONFIG_FILE).write_new(json_text.dump(run_config)):
            # Another process has just reserved the directory.
            return check_output_dir(directory, run_config)
    return is_new


def publish(directory: Location, manifest: Manifest) -> None:
    """Writes the manifest, which completes the directory."""
    # Temporary files are no longer needed, as all shards are complete.
    directory.remove_temporaries({shard.file for shard in manifest.shards})
    # The manifest holds the checksums of all other files. This file, in the format of
    # `sha256sum`, holds the manifest's.
    checksum = f"{manifest.sha256()}  {MANIFEST_FILE}\n"
    (directory / CHECKSUM_FILE).write_whole(checksum.encode("ascii"))
    (directory / MANIFEST_FILE).write_json(manifest.to_json())


def load(directory: Location, file: str = MANIFEST_FILE) -> Manifest:
    """Reads and checks the manifest of a shard directory.

    Args:
        directory: the shard directory.
        file: the manifest's name in it.

    Raises:
        InputError: the manifest is missing, or a field is missing or invalid.
    """
    path = directory / file
    if not path.is_file():
        received, hint = "a directory without it", None
        if not directory.is_dir():
            received = "a file" if directory.is_file() else "no such directory"
        elif (directory / RUN_CONFIG_FILE).is_file():
            received = "an unfinished directory"
            hint = "re-run the command that writes it to resume"
            if _is_student(directory):
                received = "the directory of a student"
                hint = "give the directory of masked examples or of a teacher cache instead"
        contents = "masked examples of create_pretraining_data, or a teacher cache"
        expected = f"a complete shard directory with {MANIFEST_FILE} ({contents})"
        raise InputError(directory, expected, received, hint)
    value = path.read_json()
    if (version := value.get("format_version")) != FORMAT_VERSION:
        hint = "make the directory again with this version, or use the version that wrote it"
        raise InputError(path, f"format_version {FORMAT_VERSION}", format_value(version), hint)
    try:
        json_text.dump(value)
    except UnicodeEncodeError as error:
        # JSON escapes can encode unpaired surrogates, which UTF-8 cannot.
        raise InputError(path, "text", f"an unpaired surrogate ({error.reason})") from error
    return _parse(value, path)


def _is_student(directory: Location) -> bool:
    try:
        return (directory / RUN_CONFIG_FILE).read_json().get("kind") == "student"
    except InputError:
        return False


def _parse(value: Mapping[str, Any], path: Location) -> Manifest:
    if "tokenizer_files" not in value:
        raise InputError(path, received="no field tokenizer_files")
    info = _parse_teacher_info(value, path) if value.get("kind") == records.TEACHER_CACHE else None
    needs_counts = value.get("kind") == records.UNMASKED_WINDOWS or (
        info is not None and ENCODINGS[info.logit_encoding].needs_token_counts
    )
    has_table = info is not None and info.holds_states
    ignored = {"teacher_info"}
    ignored |= set() if needs_counts else {"token_counts"}
    ignored |= set() if has_table else {"output_table"}
    fields = {name: field for name, field in value.items() if name not in ignored}
    manifest = json_text.convert(fields, Manifest, path)
    manifest = dataclasses.replace(manifest, teacher_info=info)
    if needs_counts and manifest.token_counts is None:
        raise InputError(path, received="no field token_counts")
    if has_table and manifest.output_table is None:
        raise InputError(path, received="no field output_table")
    size = manifest.vocab.size
    for name, special in manifest.special_ids.items():
        if special >= size:
            received = f"{format_value(name)} {special}"
            raise InputError(f"{path}: special_ids", f"ids below {size}", received)
    if info is not None and info.truncation_factor > size:
        raise InputError(f"{path}: truncation_factor", f"at most {size}", info.truncation_factor)
    _expect_splits(manifest, path)
    return manifest


def _parse_teacher_info(value: Mapping[str, Any], path: Location) -> TeacherInfo:
    # Fields of options that are not used are missing or null.
    fields = {name: field for name, field in value.items() if field is not None}
    info = json_text.convert(fields, TeacherInfo, path)
    _expect_encoding(f"{path}: logit_encoding", info.logit_encoding, ENCODINGS)
    temperatures = info.temperatures
    if info.holds_states:
        _expect_states(info, path)
    elif temperatures[:1] != (1.0,) or list(temperatures) != sorted(set(temperatures)):
        received = format_value(list(temperatures))
        raise InputError(f"{path}: temperatures", "ascending numbers from 1", received)
    # The teacher of a cache has the fields of a merged cache's teacher, except the weight.
    json_text.convert({**info.teacher, "weight": 1.0}, _MergedTeacher, f"{path}: teacher")
    if info.hidden_groups:
        _expect_encoding(f"{path}: hidden_encoding", info.hidden_encoding, HIDDEN_CODECS)
    # The size is used only with groups or an embedding.
    if info.hidden_groups or info.embedding:
        max_size, size = _MAX_HIDDEN_SIZE // max(1, len(info.hidden_groups)), info.hidden_size
        if not 1 <= (size or 0) <= max_size:
            raise InputError(
                f"{path}: hidden_size", f"a number from 1 to {max_size}", format_value(size)
            )
    return info


def _expect_states(info: TeacherInfo, path: Location) -> None:
    """Raises InputError unless the sizes of head states are valid and nothing is truncated."""
    if info.state_bits not in STATE_PACKINGS:
        expected = f"one of {', '.join(map(str, STATE_PACKINGS))}"
        raise InputError(f"{path}: state_bits", expected, format_value(info.state_bits))
    if not 1 <= (info.state_size or 0) <= _MAX_STATE_SIZE:
        expected = f"a number from 1 to {_MAX_STATE_SIZE}"
        raise InputError(f"{path}: state_size", expected, format_value(info.state_size))
    if info.temperatures or info.variable:
        expected = "no temperatures and the truncation topk, because head states have no tail"
        received = format_value([*info.temperatures, info.truncation])
        raise InputError(f"{path}: temperatures, truncation", expected, received)


def _expect_encoding(subject: str, encoding: str | None, table: Mapping[str, Any]) -> None:
    if encoding not in table:
        commit = _REMOVED_ENCODINGS.get(encoding)
        hint = f"commit {commit} is the last that reads and writes it" if commit else None
        raise InputError(subject, f"one of {', '.join(table)}", format_value(encoding), hint=hint)


def _expect_splits(manifest: Manifest, path: Location) -> None:
    info, seen = manifest.teacher_info, set()
    is_measured = info is not None and varies_in_size(info)
    for split, shards in manifest.splits.items():
        for shard in shards:
            _expect_shard(shard, path)
            if not shard.file.startswith(f"{split}-"):
                raise InputError(path, f"a shard of the split {split}", shard.file)
            if shard.file in seen:
                raise InputError(path, "each shard once", f"{shard.file} twice")
            if is_measured and shard.measured is None:
                raise InputError(path, f"the measured sizes of {shard.file}", "none")
            seen.add(shard.file)


def _expect_shard(shard: ShardInfo, path: Location) -> None:
    index, count = parse_shard_file(shard.file)
    if index >= count:
        raise InputError(path, "the name of a shard", shard.file)
    if shard.measured is not None and NUM_POSITIONS not in shard.measured:
        expected = f"{NUM_POSITIONS} and other counts of {shard.file}"
        raise InputError(path, expected, format_value(shard.measured))


def varies_in_size(info: TeacherInfo) -> bool:
    """Returns whether records of equal shape may differ in size, which are then measured."""
    return info.variable or ENCODINGS[info.logit_encoding].compresses


def copy_tokenizer(source: Location, manifest: Manifest, target: Location) -> None:
    """Copies the tokenizer's files from one directory to another.

    Raises:
        InputError: a file is missing.
    """
    for name in manifest.tokenizer_files:
        path = source / name
        if not path.is_file():
            raise InputError(path, received="this tokenizer file is missing")
        (target / name).write_whole(path.read_limited(MAX_TOKENIZER_BYTES))


def verify(directory: Location, manifest: Manifest, *, full: bool) -> None:
    """Checks a directory's shards and other files against its manifest.

    Args:
        directory: the shard directory.
        manifest: its manifest, which may be reduced to some of the shards.
        full: whether to check every byte (SHA-256); otherwise only sizes are checked.

    Raises:
        InputError: a file is missing, has another size, or has other bytes.
    """
    with adding_remedy(manifest):
        for shard in manifest.shards:
            _verify_file(directory / shard.file, shard, "shard", full=full)
        if (info := manifest.token_counts) is not None:
            _verify_file(directory / info.file, info, "file of token counts", full=full)
        if (info := manifest.output_table) is not None:
            _verify_file(directory / info.file, info, "file of the output table", full=full)


def describe_remaking(manifest: Manifest) -> str:
    """Returns a hint on how to make all files of a directory again."""
    same = "with the same settings and an empty directory: the bytes are the same"
    return f"re-run {manifest.maker()} {same}"


@contextlib.contextmanager
def adding_remedy(manifest: Manifest) -> Iterator[None]:
    """Adds a hint to an `InputError` about a damaged file of a directory, unless it has one."""
    try:
        yield
    except InputError as error:
        if error.hint is None and manifest.maker() == MAKERS[records.TEACHER_CACHE]:
            error.hint = f"repair it with {_REPAIR}"
        elif error.hint is None:
            error.hint = describe_remaking(manifest)
        raise


def _verify_file(
    path: Location, info: ShardInfo | FileInfo, description: str, *, full: bool
) -> None:
    if not path.is_file():
        raise InputError(path, received=f"this {description} is missing")
    if (size := path.stat().st_size) != info.bytes:
        sizes = f"expected {info.bytes} bytes, received {size}"
        raise InputError(path, received=f"this {description} is truncated or damaged: {sizes}")
    if full and (digest := path.sha256()) != info.sha256:
        digests = f"expected SHA-256 {info.sha256}, received {digest}"
        raise InputError(path, received=f"this {description} is damaged: {digests}")
