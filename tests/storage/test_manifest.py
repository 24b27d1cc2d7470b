"""Tests of output directories, sidecars and manifests, also malformed ones."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from data_specs import records
from data_specs.records import MASKED_EXAMPLES, UNMASKED_WINDOWS
from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.storage import cache_input, cache_tokenizer, manifest, serialization, token_counts
from pipeline.tokenizers import vocabulary
from tests.fuzz.storage_readers import SHARD, write_examples, write_teacher_cache, write_windows

_SHARD = {"file": SHARD, "num_examples": 1, "bytes": 1, "sha256": "0" * 64}
_COUNTS = {"file": token_counts.TOKEN_COUNTS_FILE, "bytes": 1, "sha256": "0" * 64}


def _manifest(shards: tuple[manifest.ShardInfo, ...]) -> manifest.Manifest:
    return manifest.Manifest(
        kind=MASKED_EXAMPLES,
        vocab=vocabulary.vocab_info(["[PAD]", "一"]),
        special_ids={"pad": 0},
        max_seq_length=8,
        max_predictions_per_seq=2,
        dupe_factor=1,
        seed=0,
        flags={"segments": "pair"},
        splits={"train": shards},
        tokenizer_files=("vocab.txt",),
    )


@pytest.fixture
def complete(tmp_path: pathlib.Path) -> pathlib.Path:
    """A complete shard directory with one shard."""
    manifest.reserve_output_dir(tmp_path, {"seed": 0})
    file = manifest.shard_file("train", 0, 1)
    shard = serialization.write_shard(tmp_path, file, [b"one", b"two"])
    manifest.publish(tmp_path, _manifest((shard,)))
    return tmp_path


def test_loaded_manifest_equals_the_published_one(complete: pathlib.Path) -> None:
    loaded = manifest.load(complete)
    assert json.loads(json.dumps(loaded.to_json())) == json.loads(
        (complete / "manifest.json").read_text()
    )
    assert loaded.num_examples("train") == 2
    assert loaded.num_examples("eval") == 0
    # The digest was computed by sha256sum from "[PAD]\n一" in UTF-8.
    digest = "89fff3169c1ac6cf8a7a7f5fe25f9402f5645830b98c5acad7a93200558061b7"
    assert loaded.vocab == vocabulary.VocabInfo(2, digest)


def test_a_reserved_directory_refuses_another_run_configuration(
    tmp_path: pathlib.Path,
) -> None:
    run_config = {"dupe_factor": 5, "seed": 1}
    assert manifest.reserve_output_dir(tmp_path, run_config)
    assert not manifest.reserve_output_dir(tmp_path, run_config)
    with pytest.raises(InputError, match=r"dupe_factor \(recorded 5, now 3\)"):
        manifest.reserve_output_dir(tmp_path, {"dupe_factor": 3, "seed": 1})


@pytest.mark.parametrize(
    ("recorded", "current", "difference"),
    [
        ({"seed": 1}, {"seed": 1}, ""),
        ({"seed": 1, "kind": "a"}, {"seed": 2, "kind": "b"}, "kind (recorded 'a', now 'b')"),
        ({"seed": 1}, {}, "seed (recorded 1, now None)"),
        ({"hub": {"teacher": 1}}, {"hub": {"teacher": 2}}, ""),
        (
            {"teacher": {"config": {"layers": 4, "size": 8}, "sha256": "f7"}},
            {"teacher": {"config": {"layers": 4, "size": 8}, "sha256": "e9"}},
            "teacher.sha256 (recorded 'f7', now 'e9')",
        ),
        (
            {"teacher": {"config": {"layers": 4, "size": 8}, "sha256": "f7"}},
            {"teacher": {"config": {"layers": 4, "size": 9}, "sha256": "e9"}},
            "teacher.config.size (recorded 8, now 9)",
        ),
        ({"teacher": {"a": None}}, {"teacher": {}}, "teacher (recorded {'a': None}, now {})"),
        ({"teacher": {"a": 1}}, {"teacher": None}, "teacher (recorded {'a': 1}, now None)"),
        (
            {"corpora": [{"weight": 1}, {"weight": 2}]},
            {"corpora": [{"weight": 1}, {"weight": 3}]},
            "corpora[1].weight (recorded 2, now 3)",
        ),
        ({"layers": [0, 2]}, {"layers": [0, 3]}, "layers (recorded [0, 2], now [0, 3])"),
        ({"layers": [{}]}, {"layers": []}, "layers (recorded [{}], now [])"),
    ],
)
def test_difference_of_run_configurations_names_the_innermost_setting(
    recorded: dict, current: dict, difference: str
) -> None:
    assert manifest.describe_difference(recorded, current) == difference


def test_a_directory_with_other_files_is_refused_unchanged(tmp_path: pathlib.Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="'thesis.txt'") as caught:
        manifest.reserve_output_dir(tmp_path, {})
    assert caught.value.hint == "choose another directory"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failed_shard_leaves_no_file(tmp_path: pathlib.Path) -> None:
    def records():
        yield b"one"
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        serialization.write_shard(tmp_path, "train-00000-of-00001.tfrecord", records())
    assert not list(tmp_path.iterdir())


def test_second_writer_of_a_shard_is_refused(tmp_path: pathlib.Path) -> None:
    file = "train-00000-of-00001.tfrecord"

    def interrupted():
        yield b"one"
        with pytest.raises(InputError, match="another process is writing this file"):
            serialization.write_shard(tmp_path, file, [b"two"])
        yield b"three"

    shard = serialization.write_shard(tmp_path, file, interrupted())
    assert shard.sha256 == (tmp_path / file).sha256()
    assert list(serialization.read_records(tmp_path / file)) == [b"one", b"three"]
    # A temporary file of a killed process does not block the next writer.
    (tmp_path / file).temporary().write_bytes(b"left" * 100)
    serialization.write_shard(tmp_path, file, [b"four"])
    assert list(serialization.read_records(tmp_path / file)) == [b"four"]


def test_a_shard_with_a_damaged_sidecar_is_incomplete(complete: pathlib.Path) -> None:
    file = "train-00000-of-00001.tfrecord"
    manifest.sidecar_path(complete, file).write_text("{")
    assert manifest.completed_shard(complete, file) is None


def test_a_truncated_or_missing_shard_is_incomplete(complete: pathlib.Path) -> None:
    file = "train-00000-of-00001.tfrecord"
    assert manifest.completed_shard(complete, file).num_examples == 2
    (complete / file).write_bytes((complete / file).read_bytes()[:-1])
    assert manifest.completed_shard(complete, file) is None
    (complete / file).unlink()
    assert manifest.completed_shard(complete, file) is None


@pytest.mark.parametrize("position", [0, 9, 15, 30])
def test_full_verification_finds_one_flipped_bit(complete: pathlib.Path, position: int) -> None:
    path = complete / "train-00000-of-00001.tfrecord"
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(bytes(content))
    loaded = manifest.load(complete)
    manifest.verify(complete, loaded, full=False)
    with pytest.raises(InputError, match=f"{path}: this shard is damaged: .*SHA-256"):
        manifest.verify(complete, loaded, full=True)


def test_missing_manifest_error_tells_missing_from_existing_directories(tmp_path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "request.json").touch()
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "request.json").write_text('{"kind": "student"}')
    for name, received in (
        ("nothing", "no such directory"),
        ("file", "a file"),
        ("other", "a directory without it"),
        ("unfinished", "an unfinished directory"),
        ("student", "the directory of a student"),
    ):
        with pytest.raises(InputError) as caught:
            manifest.load(tmp_path / name)
        assert caught.value.received == received


@pytest.mark.parametrize(
    ("changes", "commands"),
    [
        ({"kind": records.MASKED_EXAMPLES}, ["create_pretraining_data"]),
        ({"kind": records.UNMASKED_WINDOWS}, ["create_pretraining_data"]),
        ({"kind": records.TASK_LOGITS}, ["offline_distill finetune"]),
        ({"teacher": {"sha256": "0"}}, ["offline_distill verify_cache", "`repair`"]),
        ({"teacher": {"merged": []}}, ["offline_distill merge_caches"]),
    ],
)
def test_damage_error_names_the_command_that_repairs_the_directory(
    complete: pathlib.Path, changes: dict, commands: list[str]
) -> None:
    loaded = dataclasses.replace(manifest.load(complete), kind=records.TEACHER_CACHE)
    if "teacher" in changes:
        info = manifest.TeacherInfo(8, "float16", (1.0,), parent={}, **changes)
        loaded = dataclasses.replace(loaded, teacher_info=info)
    else:
        loaded = dataclasses.replace(loaded, **changes)
    (complete / loaded.shards[0].file).write_bytes(b"")
    with pytest.raises(InputError) as caught:
        manifest.verify(complete, loaded, full=False)
    assert all(command in caught.value.hint for command in commands)


def test_verification_names_truncated_and_missing_shards(complete: pathlib.Path) -> None:
    path = complete / "train-00000-of-00001.tfrecord"
    loaded = manifest.load(complete)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match=f"{path}: this shard is truncated .* 35"):
        manifest.verify(complete, loaded, full=False)
    path.unlink()
    with pytest.raises(InputError, match=f"{path}: this shard is missing"):
        manifest.verify(complete, loaded, full=False)


def _refusal(folder: pathlib.Path, **changes: object) -> InputError:
    """Returns the error of a changed manifest; checks that it is one short line with its path."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))
    with pytest.raises(InputError) as error:
        manifest.load(folder)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and len(message) < 800 and "\n" not in message
    return error.value


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("format_version", 2, "format_version 1"),
        ("format_version", "two\n" * 10_000, "format_version 1"),
        ("kind", "parquet", "parquet"),
        ("max_seq_length", "512", "int"),
        ("max_seq_length", 10**18, "65536"),
        ("max_predictions_per_seq", 2**31, "65536"),
        ("dupe_factor", 10**30, "int <="),
        ("seed", -1, "int >= 0"),
        ("seed", True, "int"),
        ("vocab", {"size": 2**40, "sha256": "0" * 64}, "size"),
        ("vocab", {"size": 0, "sha256": "0" * 64}, "size"),
        ("vocab", {"size": 9, "sha256": 3}, "sha256"),
        ("vocab", {"size": 9, "sha256": "0" * 64 + "\n"}, "a SHA-256"),
        ("vocab", {"size": 9}, "sha256"),
        ("vocab", {"size": 9, "two\nlines" * 1_000: 3}, "unknown field"),
        ("vocab", [], "object"),
        ("special_ids", {"mask": 99}, "ids below 18"),
        ("special_ids", {"two\nlines" * 1_000: 99}, "ids below 18"),
        ("special_ids", {"two\nlines": None}, "int"),
        ("flags", {"segments": "\ud800"}, "unpaired surrogate"),
        ("flags", None, "object"),
        ("statistics", [["a", 1]], "object"),
        ("tokenizer_files", "vocab.txt", "array"),
        # These names would overwrite other files of the directory, or files outside it.
        ("tokenizer_files", ["../vocab.txt"], "a tokenizer's file"),
        ("tokenizer_files", ["manifest.json"], "a tokenizer's file"),
        ("tokenizer_files", ["request.json"], "a tokenizer's file"),
        ("tokenizer_files", ["model.safetensors"], "a tokenizer's file"),
        ("tokenizer_files", ["vocab.txt\n"], "a tokenizer's file"),
        ("tokenizer_files", ["x" * 300 + ".model"], "a tokenizer's file"),
        ("splits", {"other": []}, "other"),
        ("splits", {"eval": [_SHARD]}, "a shard of the split eval"),
        ("splits", {"train": [_SHARD, _SHARD]}, "each shard once"),
        ("splits", {"train": [{"file": SHARD}]}, "num_examples"),
        ("splits", {"train": [{**_SHARD, "bytes": 2**70}]}, "bytes"),
        ("splits", {"train": [{**_SHARD, "sha256": "g" * 64}]}, "a SHA-256"),
        ("splits", {"train": [{**_SHARD, "two\nlines": 1}]}, "unknown field"),
        ("splits", {"train": [{**_SHARD, "measured": {"num_ids": 1}}]}, "num_positions"),
        ("splits", {"train": [{**_SHARD, "file": "/etc/passwd"}]}, "the name of a shard"),
        ("splits", {"train": [{**_SHARD, "file": "s3://other/a"}]}, "the name of a shard"),
        ("splits", {"train": [{**_SHARD, "file": f"../{SHARD}"}]}, "the name of a shard"),
        ("splits", {"train": [{**_SHARD, "file": SHARD.replace("0", "٠")}]}, "the name of a shard"),
        (
            "splits",
            {"train": [{**_SHARD, "file": "train-00002-of-00002.tfrecord"}]},
            "the name of a shard",
        ),
    ],
)
def test_an_invalid_value_of_a_manifest_is_refused(
    tmp_path: pathlib.Path, field: str, value: object, words: str
) -> None:
    write_examples(tmp_path)
    error = _refusal(tmp_path, **{field: value})
    assert words in str(error)
    unnamed = {"format_version", "flags", "splits"}
    assert field in unnamed or field in f"{error.subject} {error.received}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("truncation_factor", 0),
        ("truncation_factor", 10**12),
        ("truncation_factor", 19),
        ("temperatures", [0.0]),
        ("temperatures", [float("nan")]),
        ("temperatures", [1, float("inf")]),
        ("temperatures", []),
        ("temperatures", [2.0]),
        ("temperatures", [1, 3, 2]),
        ("temperatures", [1, 2, 2]),
        ("temperatures", list(range(1, 66))),
        ("temperatures", 1),
        ("teacher", [["sha256", "0" * 64]]),
        ("teacher", {"config": {}}),
        ("teacher", {"merged": [{"weight": 2.0, "sha256": "0" * 64}]}),
        ("teacher", {"merged": [{"weight": 0.5}]}),
        ("hidden_groups", [3]),
        ("hidden_encoding", "int4"),
        ("hidden_size", 10**12),
        # The limit is for both groups together.
        ("hidden_size", 2**19 + 1),
        ("logit_encoding", "text"),
        ("truncation", "all"),
        ("truncation_mass", "x"),
        ("truncation_mass", 2),
        ("token_counts", None),
        ("token_counts", {**_COUNTS, "sha256": "0"}),
        ("token_counts", {**_COUNTS, "bytes": -1}),
        ("token_counts", {**_COUNTS, "file": "../x.npy"}),
        ("token_counts", {**_COUNTS, "file": 3}),
    ],
)
def test_an_invalid_value_of_a_teacher_cache_is_refused(
    tmp_path: pathlib.Path, field: str, value: object
) -> None:
    write_teacher_cache(tmp_path, "compact", hidden="int8")
    error = _refusal(tmp_path, **{field: value})
    assert field in f"{error.subject} {error.received}"


def test_a_cache_without_measured_sizes_is_refused(tmp_path: pathlib.Path) -> None:
    write_teacher_cache(tmp_path, "compact")
    error = _refusal(tmp_path, splits={"train": [_SHARD]})
    assert error.expected == f"the measured sizes of {SHARD}"


def test_error_about_a_removed_encoding_names_the_last_commit_that_reads_it(
    tmp_path: pathlib.Path,
) -> None:
    write_teacher_cache(tmp_path, "float16")
    error = _refusal(tmp_path, logit_encoding="uint8")
    assert error.received == "'uint8'" and "ef818ef" in error.hint


@pytest.mark.parametrize("write", [write_examples, write_windows])
def test_a_loaded_manifest_of_each_kind_dumps_to_the_same_bytes(tmp_path, write) -> None:
    write(tmp_path)
    assert (
        json_text.dump(manifest.load(tmp_path).to_json())
        == (tmp_path / "manifest.json").read_bytes()
    )


def test_deep_nesting_and_long_numbers_are_refused(tmp_path: pathlib.Path) -> None:
    write_examples(tmp_path)
    path = tmp_path / "manifest.json"
    valid = path.read_text()
    for value in ("[" * 500 + "]" * 500, "9" * 5000, "[" * 100_000):
        path.write_text(valid.replace('"documents": 3', f'"documents": {value}'))
        with pytest.raises(InputError) as error:
            manifest.load(tmp_path)
        assert error.value.subject == str(path) and "not JSON" in error.value.received


@pytest.fixture
def windows(complete: pathlib.Path) -> pathlib.Path:
    """A complete directory of unmasked windows with one shard and the counts of two tokens."""
    info = token_counts.write_counts(complete / "token_counts.npy", np.array([3, 4]))
    loaded = manifest.load(complete)
    described = dataclasses.replace(loaded, kind=UNMASKED_WINDOWS, token_counts=info)
    manifest.publish(complete, described)
    return complete


def test_token_counts_of_windows_are_read(windows: pathlib.Path) -> None:
    loaded = manifest.load(windows)
    manifest.verify(windows, loaded, full=True)
    assert token_counts.load_counts(windows, loaded).tolist() == [3, 4]
    assert np.load(windows / "token_counts.npy").dtype == np.int64
    examples = dataclasses.replace(loaded, token_counts=None)
    with pytest.raises(InputError, match="unmasked_windows with token counts"):
        token_counts.load_counts(windows, examples)


def test_damaged_token_counts_are_refused(windows: pathlib.Path) -> None:
    path = windows / "token_counts.npy"
    loaded = manifest.load(windows)
    content = path.read_bytes()
    path.write_bytes(content[:-8] + b"12345678")
    manifest.verify(windows, loaded, full=False)
    with pytest.raises(InputError, match=f"{path}: this file of token counts is damaged"):
        manifest.verify(windows, loaded, full=True)
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"{path}: this file of token counts is truncated"):
        manifest.verify(windows, loaded, full=False)
    with pytest.raises(
        InputError, match="the counts of 2 tokens, int64 in 16 bytes, .* in 15 bytes"
    ):
        token_counts.load_counts(windows, loaded)
    token_counts.write_counts(path, np.array([1, 2, 3]))
    with pytest.raises(InputError, match=r"shape \(3,\), int64 in 17 bytes"):
        token_counts.load_counts(windows, loaded)
    for other in (np.array([1.0, 2.0]), np.array([{}, {}], object)):
        np.save(path, other, allow_pickle=True)
        with pytest.raises(InputError, match="the counts of 2 tokens"):
            token_counts.load_counts(windows, loaded)
    path.write_bytes(b"no array")
    with pytest.raises(InputError, match=f"{path}: .*an array of counts"):
        token_counts.load_counts(windows, loaded)
    path.unlink()
    for read in (
        lambda: token_counts.load_counts(windows, loaded),
        lambda: manifest.verify(windows, loaded, full=False),
    ):
        with pytest.raises(InputError, match=f"{path}: this file of token counts is missing"):
            read()


def test_a_vocabulary_of_too_many_lines_is_refused(tmp_path: pathlib.Path, monkeypatch) -> None:
    monkeypatch.setattr(vocabulary, "MAX_VOCAB_SIZE", 3)
    path = tmp_path / "vocab.txt"
    path.write_text("a\nb\nc\n")
    assert vocabulary.read_tokens(path) == ("a", "b", "c")
    path.write_text("a\nb\nc\nd\n")
    with pytest.raises(InputError) as error:
        vocabulary.read_tokens(path)
    assert (error.value.subject, error.value.received) == (str(path), 4)


def test_errors_distinguish_unfinished_and_empty_directories(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError) as empty:
        manifest.load(tmp_path)
    manifest.reserve_output_dir(tmp_path, {})
    with pytest.raises(InputError) as unfinished:
        manifest.load(tmp_path)
    assert empty.value.subject == unfinished.value.subject == str(tmp_path)
    assert "without it" in empty.value.received and "unfinished" in unfinished.value.received


def test_a_glob_selects_shards_of_a_directory(complete: pathlib.Path) -> None:
    all_shards = cache_input.open_cache(None, complete)
    assert all_shards.manifest == manifest.load(complete)
    selected = cache_input.open_cache(None, complete / "train-*")
    assert selected.manifest.num_examples("train") == 2
    with pytest.raises(InputError) as error:
        cache_input.open_cache(None, complete / "eval-*")
    assert error.value.subject == str(complete / "eval-*")
    with pytest.raises(InputError) as error:
        cache_input.open_cache(None, None)
    assert (error.value.subject, error.value.received) == ("input_dir", "neither")


def test_error_about_a_contradicting_setting_states_both_values(complete: pathlib.Path) -> None:
    cache = cache_input.open_cache(complete, None)
    cache_input.expect_settings(cache, max_seq_length=8, max_predictions_per_seq=None)
    with pytest.raises(InputError) as error:
        cache_input.expect_settings(cache, max_seq_length=512)
    assert (error.value.subject, error.value.received) == ("max_seq_length", 512)
    assert error.value.expected.startswith("8,")


def test_a_model_with_another_vocabulary_is_refused(
    complete: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = cache_input.open_cache(complete, None)
    folder = tmp_path_factory.mktemp("model")
    (folder / "vocab.txt").write_text("[PAD]\n一\n", encoding="utf-8")
    files = (folder / "vocab.txt",)
    cache_tokenizer.expect_vocab(cache, 2, files)
    with pytest.raises(InputError) as error:
        cache_tokenizer.expect_vocab(cache, 3, ())
    assert "2 tokens" in error.value.expected and "3" in str(error.value.received)
    (folder / "vocab.txt").write_text("[PAD]\n二\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        cache_tokenizer.expect_vocab(cache, 2, files)
    assert cache.manifest.vocab.sha256 in error.value.expected
    assert f"`vocab_file`={folder}" in error.value.hint
    # The cache's own tokens are needed to name the first one that differs.
    assert "token 1" not in error.value.received
    (complete / "vocab.txt").write_text("[PAD]\n一\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        cache_tokenizer.expect_vocab(cache, 2, files)
    assert "token 1 is '二' and not '一'" in error.value.received
    with pytest.raises(InputError) as error:
        cache_input.expect_positions(cache, 4)
    assert error.value.received == 4


def test_copying_a_missing_tokenizer_file_is_an_error(
    complete: pathlib.Path, tmp_path_factory
) -> None:
    target = tmp_path_factory.mktemp("target")
    loaded = manifest.load(complete)
    with pytest.raises(InputError, match=r"vocab.txt: this tokenizer file is missing"):
        manifest.copy_tokenizer(complete, loaded, target)
    (complete / "vocab.txt").write_text("x")
    manifest.copy_tokenizer(complete, loaded, target)
    assert (target / "vocab.txt").read_text() == "x"
