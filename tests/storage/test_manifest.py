"""Claims, sidecars, manifests: nothing complete is lost, nothing wrong is read."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from data_specs.records import MASKED_EXAMPLES, UNMASKED_WINDOWS
from pipeline.base.errors import InputError
from pipeline.storage import cache_input, cache_tokenizer, manifest, serialization, token_counts
from pipeline.tokenizers import vocabulary

_COUNTS = token_counts.TOKEN_COUNTS_FILE


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
    """A complete directory of one shard."""
    manifest.reserve_output_dir(tmp_path, {"seed": 0})
    file = manifest.shard_file("train", 0, 1)
    shard = serialization.write_shard(tmp_path, file, [b"one", b"two"])
    manifest.publish(tmp_path, _manifest((shard,)))
    return tmp_path


def test_a_manifest_comes_back(complete: pathlib.Path) -> None:
    loaded = manifest.load(complete)
    assert json.loads(json.dumps(loaded.to_json())) == json.loads(
        (complete / "manifest.json").read_text()
    )
    assert loaded.num_examples("train") == 2
    assert loaded.num_examples("eval") == 0
    # sha256 of "[PAD]\n一" in UTF-8, by sha256sum.
    digest = "89fff3169c1ac6cf8a7a7f5fe25f9402f5645830b98c5acad7a93200558061b7"
    assert loaded.vocab == vocabulary.VocabInfo(2, digest)


def test_a_claim_is_recognised_and_a_different_one_refused(tmp_path: pathlib.Path) -> None:
    request = {"dupe_factor": 5, "seed": 1}
    assert manifest.reserve_output_dir(tmp_path, request)
    assert not manifest.reserve_output_dir(tmp_path, request)
    with pytest.raises(InputError, match="dupe_factor is 5 there and 3 here; choose another"):
        manifest.reserve_output_dir(tmp_path, {"dupe_factor": 3, "seed": 1})


def test_a_directory_of_other_files_is_left_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match=r"output_dir: expected an empty .* 'thesis.txt'"):
        manifest.reserve_output_dir(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_shard_that_fails_leaves_nothing(tmp_path: pathlib.Path) -> None:
    def records():
        yield b"one"
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        serialization.write_shard(tmp_path, "train-00000-of-00001.tfrecord", records())
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_shard_do_not_mix(tmp_path: pathlib.Path) -> None:
    file = "train-00000-of-00001.tfrecord"

    def interrupted():
        yield b"one"
        with pytest.raises(InputError, match="another process is writing this file"):
            serialization.write_shard(tmp_path, file, [b"two"])
        yield b"three"

    shard = serialization.write_shard(tmp_path, file, interrupted())
    assert shard.sha256 == (tmp_path / file).sha256()
    assert list(serialization.read_records(tmp_path / file)) == [b"one", b"three"]
    # What a killed process leaves behind stops nobody.
    (tmp_path / file).temporary().write_bytes(b"left" * 100)
    serialization.write_shard(tmp_path, file, [b"four"])
    assert list(serialization.read_records(tmp_path / file)) == [b"four"]


def test_a_damaged_sidecar_is_made_again(complete: pathlib.Path) -> None:
    file = "train-00000-of-00001.tfrecord"
    manifest.sidecar_path(complete, file).write_text("{")
    assert manifest.completed_shard(complete, file) is None


def test_a_half_written_shard_is_not_complete(complete: pathlib.Path) -> None:
    file = "train-00000-of-00001.tfrecord"
    assert manifest.completed_shard(complete, file).num_examples == 2
    (complete / file).write_bytes((complete / file).read_bytes()[:-1])
    assert manifest.completed_shard(complete, file) is None
    (complete / file).unlink()
    assert manifest.completed_shard(complete, file) is None


@pytest.mark.parametrize("position", [0, 9, 15, 30])
def test_one_flipped_byte_is_refused(complete: pathlib.Path, position: int) -> None:
    path = complete / "train-00000-of-00001.tfrecord"
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(bytes(content))
    loaded = manifest.load(complete)
    manifest.verify(complete, loaded, full=False)
    with pytest.raises(InputError, match=f"{path}: this shard is damaged: expected SHA-256"):
        manifest.verify(complete, loaded, full=True)


def test_a_truncated_and_a_missing_shard_are_named(complete: pathlib.Path) -> None:
    path = complete / "train-00000-of-00001.tfrecord"
    loaded = manifest.load(complete)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match=f"{path}: this shard is truncated .* received 35"):
        manifest.verify(complete, loaded, full=False)
    path.unlink()
    with pytest.raises(InputError, match=f"{path}: this shard is missing"):
        manifest.verify(complete, loaded, full=False)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format_version", 2, "expected format_version 1, received 2"),
        ("kind", "parquet", "expected kind in"),
        ("max_seq_length", "512", "max_seq_length: expected a count, received '512'"),
        ("vocab", {"size": 3}, "missing or misshapen field"),
        (
            "tokenizer_files",
            ["../vocab.txt"],
            "expected a plain file name, received '../vocab.txt'",
        ),
        ("splits", {"train": [{"file": "../../x.tfrecord"}]}, "expected a shard's description"),
        (
            "splits",
            {"train": [{"file": "/etc/passwd", "num_examples": 1, "bytes": 1, "sha256": "0" * 64}]},
            "expected the name of a shard, received '/etc/passwd'",
        ),
        (
            "splits",
            {
                "train": [
                    {
                        "file": "train-00002-of-00002.tfrecord",
                        "num_examples": 1,
                        "bytes": 1,
                        "sha256": "0" * 64,
                    }
                ]
            },
            "expected the name of a shard, received 'train-00002-of-00002.tfrecord'",
        ),
    ],
)
def test_a_manifest_that_is_not_one_is_refused(
    complete: pathlib.Path, field: str, value: object, message: str
) -> None:
    path = complete / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(InputError, match=message):
        manifest.load(complete)


@pytest.fixture
def windows(complete: pathlib.Path) -> pathlib.Path:
    """A complete directory of unmasked windows: one shard and the counts of two tokens."""
    info = token_counts.write_counts(complete / "token_counts.npy", np.array([3, 4]))
    loaded = manifest.load(complete)
    described = dataclasses.replace(loaded, kind=UNMASKED_WINDOWS, token_counts=info)
    manifest.publish(complete, described)
    return complete


def test_token_counts_come_back(windows: pathlib.Path) -> None:
    loaded = manifest.load(windows)
    manifest.verify(windows, loaded, full=True)
    assert token_counts.load_counts(windows, loaded).tolist() == [3, 4]
    assert np.load(windows / "token_counts.npy").dtype == np.int64
    examples = dataclasses.replace(loaded, token_counts=None)
    with pytest.raises(InputError, match="expected unmasked_windows with token counts"):
        token_counts.load_counts(windows, examples)


def test_damaged_token_counts_are_named(windows: pathlib.Path) -> None:
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
        InputError, match="expected the counts of 2 tokens, int64 in 16 bytes, .* in 15 bytes"
    ):
        token_counts.load_counts(windows, loaded)
    token_counts.write_counts(path, np.array([1, 2, 3]))
    with pytest.raises(InputError, match=r"received shape \(3,\), int64 in 17 bytes"):
        token_counts.load_counts(windows, loaded)
    for other in (np.array([1.0, 2.0]), np.array([{}, {}], object)):
        np.save(path, other, allow_pickle=True)
        with pytest.raises(InputError, match="expected the counts of 2 tokens"):
            token_counts.load_counts(windows, loaded)
    path.write_bytes(b"no array")
    with pytest.raises(InputError, match=f"{path}: expected an array of counts"):
        token_counts.load_counts(windows, loaded)
    path.unlink()
    for read in (
        lambda: token_counts.load_counts(windows, loaded),
        lambda: manifest.verify(windows, loaded, full=False),
    ):
        with pytest.raises(InputError, match=f"{path}: this file of token counts is missing"):
            read()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "missing or misshapen field"),
        ({"file": _COUNTS, "bytes": 1, "sha256": "0"}, f"expected a SHA-256 for {_COUNTS}"),
        ({"file": _COUNTS, "bytes": -1, "sha256": "0" * 64}, f"bytes of {_COUNTS}: expected a "),
    ],
)
def test_a_manifest_of_wrong_token_counts_is_refused(
    windows: pathlib.Path, value: object, message: str
) -> None:
    path = windows / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "token_counts": value}))
    with pytest.raises(InputError, match=message):
        manifest.load(windows)


def test_a_long_format_version_is_shown_in_part(complete: pathlib.Path) -> None:
    path = complete / "manifest.json"
    value = {**json.loads(path.read_text()), "format_version": "two\n" * 10_000}
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match="expected format_version 1, received 'two") as error:
        manifest.load(complete)
    assert len(str(error.value)) < 1000 and len(str(error.value).splitlines()) == 1


def test_a_vocabulary_of_too_many_lines(tmp_path: pathlib.Path, monkeypatch) -> None:
    """Counted before there is a text for each."""
    monkeypatch.setattr(vocabulary, "MAX_VOCAB_SIZE", 3)
    path = tmp_path / "vocab.txt"
    path.write_text("a\nb\nc\n")
    assert vocabulary.read_tokens(path) == ("a", "b", "c")
    path.write_text("a\nb\nc\nd\n")
    with pytest.raises(InputError) as error:
        vocabulary.read_tokens(path)
    assert str(error.value) == f"--vocab_file: expected at most 3 tokens in {path}, received 4"


def test_an_unfinished_directory_is_told_from_none(tmp_path: pathlib.Path) -> None:
    with pytest.raises(
        InputError, match=r"input_dir: expected a complete cache .*, which is no cache"
    ):
        manifest.load(tmp_path)
    manifest.reserve_output_dir(tmp_path, {})
    with pytest.raises(InputError, match="an unfinished one: run the command that makes it again"):
        manifest.load(tmp_path)


def test_a_glob_narrows_a_cache(complete: pathlib.Path) -> None:
    whole = cache_input.open_cache(None, str(complete))
    assert whole.manifest == manifest.load(complete)
    some = cache_input.open_cache(None, str(complete / "train-*"))
    assert some.manifest.num_examples("train") == 2
    with pytest.raises(InputError, match="which matches none"):
        cache_input.open_cache(None, str(complete / "eval-*"))
    with pytest.raises(InputError, match="received neither"):
        cache_input.open_cache(None, None)


def test_a_flag_that_contradicts_the_manifest_prints_both(complete: pathlib.Path) -> None:
    cache = cache_input.open_cache(str(complete), None)
    cache_input.expect_settings(cache, max_seq_length=8, max_predictions_per_seq=None)
    with pytest.raises(InputError, match=r"max_seq_length: expected 8, .*, received 512"):
        cache_input.expect_settings(cache, max_seq_length=512)


def test_a_model_of_another_vocabulary_is_refused(
    complete: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = cache_input.open_cache(str(complete), None)
    folder = tmp_path_factory.mktemp("model")
    (folder / "vocab.txt").write_text("[PAD]\n一\n", encoding="utf-8")
    files = (folder / "vocab.txt",)
    cache_tokenizer.expect_vocab(cache, 2, files)
    with pytest.raises(InputError, match="teacher: expected a vocabulary of 2 tokens.* of 3"):
        cache_tokenizer.expect_vocab(cache, 3, ())
    (folder / "vocab.txt").write_text("[PAD]\n二\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"teacher: .*SHA-256 .* received .*SHA-256"):
        cache_tokenizer.expect_vocab(cache, 2, files)
    with pytest.raises(InputError, match="at least 8 positions .* received 4"):
        cache_input.expect_positions(cache, 4)


def test_copies_of_the_tokenizer(complete: pathlib.Path, tmp_path_factory) -> None:
    target = tmp_path_factory.mktemp("target")
    loaded = manifest.load(complete)
    with pytest.raises(InputError, match=r"vocab.txt: this tokenizer file is missing"):
        manifest.copy_tokenizer(complete, loaded, target)
    (complete / "vocab.txt").write_text("x")
    manifest.copy_tokenizer(complete, loaded, target)
    assert (target / "vocab.txt").read_text() == "x"
