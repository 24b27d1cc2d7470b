"""Readers of shard directories that are fuzzed: records, manifests, counts and spill files."""

import collections
import contextlib
import functools
import io
import json
import pathlib
import shutil
from typing import Any

import numpy as np

from data_specs import records
from pipeline.base import json_text
from pipeline.storage import (
    cache_input,
    output_table,
    serialization,
    shuffling,
    spill,
    token_counts,
)
from pipeline.storage import manifest as manifests
from pipeline.storage.cache_input import CacheInput, open_cache
from pipeline.storage.codecs import CODECS, ENCODINGS, HIDDEN_CODECS, STATES
from pipeline.storage.codecs.states import STATE_PACKINGS
from pipeline.storage.manifest import TeacherInfo
from pipeline.storage.records import read_examples as read_masked_examples
from pipeline.tokenizers import vocabulary
from tests.fuzz.checking import Reader
from tests.fuzz.mutation import Below, mutate_bytes, mutate_json, mutate_records
from tools.vocabulary import cache_tokens

TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"一二三四五六七八九十abc")
SHARD = "train-00000-of-00001.tfrecord"
_K = 4
_NUM_POSITIONS = 3
_SIZE = len(TOKENS)
_STATE_SIZE = 5
_HIDDEN = {"num_groups": 2, "hidden_size": 4}
_SHA256 = "0" * 64


def _masked_example(number: int) -> dict[str, bytes]:
    ids = np.array([2, 5, 4, 7, 4, 9, 10, 3], "<u2")
    return {
        records.EXAMPLE_ID: bytes([number]) * 16,
        records.INPUT_IDS: ids.tobytes(),
        records.SEGMENT_LENGTHS: np.array([5, 3], "<u2").tobytes(),
        records.MASKED_LM_POSITIONS: np.array([2, 4, 6], "<u2").tobytes(),
        records.MASKED_LM_IDS: np.array([6, 8, 10], "<u2").tobytes(),
    }


def _window(number: int) -> dict[str, bytes]:
    features = _masked_example(number)
    del features[records.MASKED_LM_POSITIONS], features[records.MASKED_LM_IDS]
    return {**features, records.WORD_STARTS: np.array([1, 3, 5], "<u2").tobytes()}


def _teacher_info(encoding: str, *, variable: bool, hidden: str | None) -> TeacherInfo:
    states = {"hidden_groups": ("0", "1-2"), "hidden_encoding": hidden, "hidden_size": 4}
    states["embedding"] = "cls"
    return TeacherInfo(
        truncation_factor=_K,
        logit_encoding=encoding,
        temperatures=(1.0, 2.0),
        teacher={"config": {"hidden_size": 4}, "sha256": _SHA256},
        parent={"sha256": _SHA256},
        truncation_mass=0.9 if variable else None,
        **(states if hidden else {}),
    )


def _counts() -> np.ndarray:
    return np.arange(_SIZE)[::-1].copy()


def _teacher_example(number: int, info: TeacherInfo) -> dict[str, bytes]:
    codec = CODECS[info.logit_encoding](_SIZE, _K, info.variable, _counts())
    random = np.random.default_rng(number)
    ids = np.stack([random.permutation(_SIZE)[:_K] for _ in range(_NUM_POSITIONS)])
    logits = np.sort(random.normal(size=ids.shape).astype(np.float32))[:, ::-1].copy()
    if info.variable:
        ids[1, 2:] = -1
    (features,) = codec.encode(ids, logits, np.array([0, _NUM_POSITIONS]))
    features[records.LOG_TAIL_MASSES] = np.full((3, 2), -2.0, "<f4").tobytes()
    features[records.LABEL_LOG_PROBS] = np.full(3, -1.0, "<f2").tobytes()
    if info.hidden_groups:
        hidden = HIDDEN_CODECS[info.hidden_encoding](**_HIDDEN)
        states = random.normal(size=(3, 2, 4)).astype(np.float32)
        features.update(hidden.encode(states, np.array([0, 3]))[0])
    if info.embedding is not None:
        features[records.EMBEDDING] = np.ones(info.hidden_size, "<f2").tobytes()
    return {**_masked_example(number), **features}


def write_cache(folder: pathlib.Path, rows: list[dict[str, bytes]], **fields: Any) -> None:
    """Writes a complete directory of one shard for each split."""
    values: dict[str, Any] = {
        "kind": records.MASKED_EXAMPLES,
        "vocab": vocabulary.vocab_info(TOKENS),
        "special_ids": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
        "max_seq_length": 16,
        "max_predictions_per_seq": 4,
        "dupe_factor": 1,
        "seed": 0,
        "flags": {"segments": "pair"},
        "tokenizer_files": ("vocab.txt",),
        "statistics": {"documents": 3},
    } | fields
    info = values.get("teacher_info")
    splits = {}
    for split in manifests.SPLITS:
        measured: collections.Counter[str] = collections.Counter()
        if info is not None:
            for features in rows:
                added = {name: part for name, part in features.items() if "input" not in name}
                manifests.measure_record(measured, added, _K)
        varies = info is not None and manifests.varies_in_size(info)
        shard_fields = functools.partial(dict, measured=dict(measured) if varies else None)
        serialized = map(serialization.encode_example, rows)
        file = manifests.shard_file(split, 0, 1)
        splits[split] = (serialization.write_shard(folder, file, serialized, shard_fields),)
    needs_counts = info is not None and ENCODINGS[info.logit_encoding].needs_token_counts
    if needs_counts or values["kind"] == records.UNMASKED_WINDOWS:
        path = folder / token_counts.TOKEN_COUNTS_FILE
        values["token_counts"] = token_counts.write_counts(path, _counts())
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    (folder / manifests.RUN_CONFIG_FILE).write_json({"kind": values["kind"], "seed": 0})
    manifests.publish(folder, manifests.Manifest(splits=splits, **values))


def write_examples(folder: pathlib.Path) -> None:
    """Writes masked examples."""
    write_cache(folder, [_masked_example(1), _masked_example(2)])


def write_windows(folder: pathlib.Path) -> None:
    """Writes unmasked windows."""
    write_cache(folder, [_window(1), _window(2)], kind=records.UNMASKED_WINDOWS)


def write_teacher_cache(
    folder: pathlib.Path, encoding: str, *, variable: bool = False, hidden: str | None = None
) -> None:
    """Writes a teacher cache."""
    info = _teacher_info(encoding, variable=variable, hidden=hidden)
    rows = [_teacher_example(number, info) for number in (1, 2)]
    write_cache(folder, rows, kind=records.TEACHER_CACHE, teacher_info=info)


def write_states_cache(folder: pathlib.Path, bits: int = 8) -> None:
    """Writes a cache of head states."""
    info = TeacherInfo(
        truncation_factor=_SIZE,
        logit_encoding=STATES,
        temperatures=(),
        teacher={"config": {"hidden_size": 4}, "sha256": _SHA256},
        parent={"sha256": _SHA256},
        state_bits=bits,
        state_size=_STATE_SIZE,
    )
    random = np.random.default_rng(bits)
    layer = random.normal(size=(_SIZE, _STATE_SIZE)).astype("<f4"), np.zeros(_SIZE, "<f4")
    sizes = (_SIZE, _STATE_SIZE)
    table = output_table.ensure_table(folder, *sizes, read_layer=lambda: layer)
    codec = cache_input.make_codec(folder, info, _SIZE)
    rows = []
    for number in (1, 2):
        states = random.normal(size=(_NUM_POSITIONS, _STATE_SIZE)).astype("<f4")
        (features,) = codec.encode(states, np.array([0, _NUM_POSITIONS]))
        features[records.LABEL_LOG_PROBS] = np.full(_NUM_POSITIONS, -1.0, "<f2").tobytes()
        rows.append({**_masked_example(number), **features})
    fields = {"teacher_info": info, "output_table": table}
    write_cache(folder, rows, kind=records.TEACHER_CACHE, **fields)


def _open(folder: pathlib.Path) -> CacheInput:
    return open_cache(folder, None)


def read_framing(folder: pathlib.Path) -> object:
    """Reads the records without decoding them."""
    return list(serialization.read_records(folder / SHARD))


def read_examples(folder: pathlib.Path) -> object:
    """Counts tokens in the two ways of the project."""
    cache = _open(folder)
    (folder / token_counts.TOKEN_COUNTS_FILE).unlink(missing_ok=True)
    counted = token_counts.ensure_counts(folder, [folder / SHARD], cache.manifest.vocab.size)
    return counted, cache_tokens.count_tokens(cache)


def read_teacher_examples(folder: pathlib.Path) -> object:
    """Captures the targets of a teacher whose output is constant."""
    from pipeline.teacher import capture
    from pipeline.teacher.forward import CompiledForward
    from pipeline.teacher.label_scores import ENTROPIES

    cache = _open(folder)

    def constant_output(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        shape = batch[records.MASKED_LM_IDS].shape
        return {
            records.TOPK_IDS: np.tile(np.arange(_K, dtype=np.int32), (*shape, 1)),
            records.TOPK_LOGITS: np.zeros((*shape, _K), np.float32),
            records.LOG_TAIL_MASSES: np.zeros((*shape, 2), np.float32),
            records.LABEL_LOG_PROBS: np.zeros(shape, np.float32),
            ENTROPIES: np.zeros(shape, np.float32),
        }

    pipeline = capture.Capture(
        manifest=cache.manifest,
        batch_size=2,
        codec=CODECS["float16"](_SIZE, _K),
        info=TeacherInfo(_K, "float16", (1.0, 2.0), teacher={}, parent={}),
        forward=CompiledForward(constant_output),
        on_examples=lambda count: None,
    )
    examples = read_masked_examples(folder / SHARD, cache.manifest)
    return list(pipeline.records(examples, capture.ShardTotals(_SIZE)))


def read_sample(folder: pathlib.Path) -> object:
    """Draws a sample, as reports on caches do."""
    from pipeline.teacher import forward
    from tools.cache_analysis import dense_sample

    cache = _open(folder)
    drawn = dense_sample.draw(cache, 100)
    return forward.build_batch(
        drawn,
        batch_size=len(drawn),
        max_seq_length=cache.manifest.max_seq_length,
        max_predictions_per_seq=cache.manifest.max_predictions_per_seq,
    )


def read_report(folder: pathlib.Path) -> object:
    """Reads a cache as `tools.report` does."""
    from tools.report import inputs

    return inputs.read_cache(folder, "cache")


def read_shown(folder: pathlib.Path) -> object:
    """Describes examples as `tools.inspect_cache` does."""
    from tools.inspect_cache import InspectConfig, inspect_cache

    # The tool compares sizes first, so the manifest gets the size of the corrupted file.
    path = folder / manifests.MANIFEST_FILE
    value = json.loads(path.read_bytes())
    value["splits"]["train"][0]["bytes"] = (folder / SHARD).stat().st_size
    path.write_text(json.dumps(value))
    return inspect_cache(InspectConfig(input_dir=folder, split="train"))


def read_merged(folder: pathlib.Path) -> object:
    """Merges a cache with another of the same examples."""
    from tools.cache_analysis import merging

    cache = _open(folder)
    other = folder / "other"
    if not other.is_dir():
        shutil.copytree(folder, other, dirs_exist_ok=False, ignore=shutil.ignore_patterns("other"))
    caches = [cache, _open(other)]
    merging.expect_same_examples(caches)
    merger = merging.CacheMerger(caches, (0.5, 0.5), CODECS["float16"](_SIZE, _K), lambda n: None)
    return list(merger.records(SHARD, collections.Counter()))


def read_cached_report(folder: pathlib.Path) -> object:
    """Decodes a cache's hidden states, as `tools.fidelity_report` does."""
    from tools.cache_analysis import dense_sample

    cache = _open(folder)
    codec = cache_input.open_codec(folder, cache.manifest)
    return dense_sample.decode_targets(cache, codec, dense_sample.draw(cache, 100))


def read_manifest(folder: pathlib.Path) -> object:
    """Reads a manifest and uses all of it."""
    cache = open_cache(None, folder / "*")
    loaded = cache.manifest
    whole = manifests.load(folder)
    manifests.verify(folder, loaded, full=True)
    if loaded.teacher_info is not None:
        cache_input.open_codec(folder, loaded)
        loaded.bytes_per_position()
        loaded.ids_per_position()
    elif loaded.token_counts is not None:
        token_counts.load_counts(folder, loaded)
    target = folder / "target"
    target.mkdir(exist_ok=True)
    manifests.copy_tokenizer(folder, loaded, target)
    if {path.name for path in target.iterdir()} - {"vocab.txt"}:
        raise RuntimeError(f"copied {sorted(path.name for path in target.iterdir())}")
    for split, shards in loaded.splits.items():
        if loaded.num_examples(split):
            next(shuffling.record_groups(shards, 0, start=1))
        for shard in shards:
            manifests.parse_shard_file(shard.file)
    np.zeros((2, loaded.max_seq_length + loaded.max_predictions_per_seq), np.int32)
    json_text.dump(loaded.to_json())
    return loaded.features, whole.sha256()


def read_verified(folder: pathlib.Path) -> object:
    """Checks a directory as `tools.verify_cache` does, which prints errors instead of raising."""
    from tools import verify_cache

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = verify_cache.main(["verify_cache", f"--input_dir={folder}"])
    if status not in (0, 1):
        raise RuntimeError(f"status {status}")
    return status


def read_sidecar(folder: pathlib.Path) -> object:
    """Checks whether a shard is complete."""
    return manifests.completed_shard(folder, SHARD)


def read_request(folder: pathlib.Path) -> object:
    """Checks whether a directory belongs to a run configuration."""
    return manifests.check_output_dir(folder, {"kind": records.MASKED_EXAMPLES, "seed": 0})


def read_counts(folder: pathlib.Path) -> object:
    """Reads token counts without verifying the directory."""
    loaded = manifests.load(folder)
    return token_counts.load_counts(folder, loaded)


def read_table(folder: pathlib.Path) -> object:
    """Reads an output table without verifying the directory."""
    return output_table.read_table(folder, _SIZE, _STATE_SIZE)


def _write_spill(folder: pathlib.Path) -> None:
    numbers = (1, 90, 200)
    entries = spill.Entries(
        b"".join(bytes([number]) * 16 for number in numbers),
        [2**63 + number for number in numbers],
        [serialization.encode_example(_masked_example(number)) for number in numbers],
        [0] * len(numbers),
    )
    header = {"fingerprint": "f", "statistics": {"documents": 1}, "bytes": 9, "groups": [1, 2]}
    spill.write_spill(folder / "chunk.spill", entries, header)


def read_spill(folder: pathlib.Path) -> object:
    """Reads a spill file's header and all its records."""
    path = folder / "chunk.spill"
    keys = spill.KeyRange(0, spill.KEY_SPACE, 0, spill.KEY_SPACE)
    header = spill.read_header(path)
    if header is not None and not isinstance(header, dict):
        raise TypeError(f"a header of {type(header).__name__}")
    return header, list(spill.read_sorted([path], keys, expected_bytes=100))


def _mutate_spill(below: Below, content: bytes) -> bytes:
    header, _, rest = content.partition(b"\n")
    if below(3) == 0:
        return mutate_json(below, header) + b"\n" + rest
    return mutate_bytes(below, content)


def _cache_readers() -> list[Reader]:
    """Returns the readers of records."""
    readers = [
        Reader("framing", SHARD, mutate_bytes, read_framing, write_examples),
        Reader("masked examples", SHARD, mutate_records, read_examples, write_examples),
        Reader("capture", SHARD, mutate_records, read_teacher_examples, write_examples),
        Reader("sample", SHARD, mutate_records, read_sample, write_examples),
        Reader("shown examples", SHARD, mutate_records, read_shown, write_examples),
        Reader("shown windows", SHARD, mutate_records, read_shown, write_windows),
    ]
    for encoding in CODECS:
        for variable in (False, True):
            name = f"{encoding}{', variable' * variable}"
            write = functools.partial(write_teacher_cache, encoding=encoding, variable=variable)
            eval_shard = SHARD.replace("train", "eval")
            readers += [
                Reader(f"report, {name}", eval_shard, mutate_records, read_report, write),
                Reader(f"shown cache, {name}", SHARD, mutate_records, read_shown, write),
            ]
    for bits in STATE_PACKINGS:
        name, write = f"states, {bits} bits", functools.partial(write_states_cache, bits=bits)
        readers += [
            Reader(f"shown cache, {name}", SHARD, mutate_records, read_shown, write),
            Reader(f"sample, {name}", SHARD, mutate_records, read_cached_report, write, ("/work",)),
            Reader(f"verify, {name}", SHARD, mutate_records, read_verified, write),
        ]
    compact = functools.partial(write_teacher_cache, encoding="compact")
    readers.append(Reader("merge", SHARD, mutate_records, read_merged, compact))
    for hidden in HIDDEN_CODECS:
        write = functools.partial(write_teacher_cache, encoding="compact", hidden=hidden)
        name = f"hidden {hidden}"
        readers.append(Reader(name, SHARD, mutate_records, read_cached_report, write, ("/work",)))
    return readers


def _other_readers() -> list[Reader]:
    compact = functools.partial(write_teacher_cache, encoding="compact", hidden="int8")
    manifest = manifests.MANIFEST_FILE
    # An error about a file in the manifest names this file.
    files = (token_counts.TOKEN_COUNTS_FILE, manifests.OUTPUT_TABLE_FILE)
    others = ("vocab.txt", ".tfrecord", *files, "--input", "/work/")
    writers = {"masked examples": write_examples, "windows": write_windows, "compact": compact}
    writers["states"] = write_states_cache
    counts, sidecar = token_counts.TOKEN_COUNTS_FILE, f".{SHARD}.json"
    return [
        Reader("verify, shard", SHARD, mutate_records, read_verified, compact),
        *(
            Reader(f"verify, manifest of {name}", manifest, mutate_json, read_verified, write)
            for name, write in writers.items()
        ),
        *(
            Reader(f"manifest, {name}", manifest, mutate_json, read_manifest, write, others)
            for name, write in writers.items()
        ),
        Reader("sidecar", sidecar, mutate_json, read_sidecar, write_examples),
        Reader(
            "request",
            manifests.RUN_CONFIG_FILE,
            mutate_json,
            read_request,
            write_examples,
            ("/work",),
        ),
        Reader("token counts", counts, mutate_bytes, read_counts, write_windows),
        Reader(
            "output table",
            manifests.OUTPUT_TABLE_FILE,
            mutate_bytes,
            read_table,
            write_states_cache,
        ),
        Reader("spill file", "chunk.spill", _mutate_spill, read_spill, _write_spill),
    ]


def readers() -> list[Reader]:
    """Returns all readers of shard directories."""
    return [*_cache_readers(), *_other_readers()]
