"""Tests of prepare on a corpus with duplicates: only one document of each text has examples."""

import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections import Counter
from unittest import mock

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs import records
from data_specs.corpora import CorpusSource
from pipeline import create_pretraining_data
from pipeline.base.errors import InputError
from pipeline.corpora import corpus
from pipeline.corpora.readers import text
from pipeline.masking import document_masker, duplicates, masked_examples
from pipeline.masking.masked_examples import create_masked_examples
from pipeline.storage import manifest, spill
from tests.conftest import SENTENCES, make_text, read_folder
from tests.masking.running import make, read, restored

DOCUMENTS = make_text(seed=5, num_documents=12)
# Statistics that change with the number of duplicates.
COPIED = ("documents", "skipped", "corpus_files", "corpus_bytes")


def _write(folder: pathlib.Path, files: list[list[str]]) -> CorpusSource:
    """Writes documents to files, alternately as text and as JSON lines."""
    folder.mkdir()
    for number, documents in enumerate(files):
        path = folder / f"{number}.{('txt', 'jsonl')[number % 2]}"
        rows = (json.dumps({"title": "", "content": document}) for document in documents)
        content = "\n".join(rows) if number % 2 else "\n\n".join(documents)
        path.write_text(content + "\n", encoding="utf-8")
    return CorpusSource(input_dir=str(folder))


def _shards(folder: pathlib.Path) -> dict[str, bytes]:
    """Returns the data files of a directory."""
    return {name: content for name, content in read_folder(folder).items() if "json" not in name}


def _statistics(folder: pathlib.Path) -> tuple[dict, int]:
    """Returns the statistics that do not depend on duplicates, and the number of duplicates."""
    statistics = manifest.load(folder).statistics
    skipped = dict(statistics["skipped"])
    number = skipped.pop(duplicates.DUPLICATES, 0)
    others = {name: value for name, value in statistics.items() if name not in COPIED}
    return others | {"skipped": skipped, "kept": statistics["documents"] - number}, number


@pytest.fixture(scope="module")
def plain(tmp_path_factory, examples_config, windows_config) -> dict[str, pathlib.Path]:
    """Directories made from the documents without duplicates, by the kind of masking."""
    folder = tmp_path_factory.mktemp("plain")
    source = _write(folder / "corpus", [DOCUMENTS])
    configs = {"static": examples_config, "dynamic": windows_config}
    return {
        name: make(config, folder / name, corpora=(source,)) for name, config in configs.items()
    }


@given(data=st.data(), masking=st.sampled_from(["static", "dynamic"]))
@settings(max_examples=30)
def test_any_placement_of_duplicates_gives_the_shards_of_the_documents_once(
    tmp_path_factory, plain, examples_config, windows_config, data, masking: str
) -> None:
    folder = tmp_path_factory.mktemp("duplicates")
    copies = data.draw(st.lists(st.sampled_from(DOCUMENTS), max_size=8))
    documents = data.draw(st.permutations(DOCUMENTS + copies))
    cuts = sorted(data.draw(st.lists(st.integers(1, len(documents) - 1), max_size=2)))
    bounds = [0, *cuts, len(documents)]
    files = [documents[begin:end] for begin, end in itertools.pairwise(bounds)]
    source = _write(folder / "corpus", [file for file in files if file])
    block_bytes = data.draw(st.sampled_from([1, 300, 10**6]))
    config = {"static": examples_config, "dynamic": windows_config}[masking]
    with mock.patch.multiple(corpus, _MIN_BLOCK_BYTES=1, _MAX_BLOCK_BYTES=block_bytes):
        make(config, folder / "made", corpora=(source,))
    assert _shards(folder / "made") == _shards(plain[masking])
    statistics, number = _statistics(folder / "made")
    assert (statistics, 0) == _statistics(plain[masking])
    assert number == len(copies)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_command_leaves_out_planted_duplicates(
    tmp_path, capfd, vocab_file, workers: int
) -> None:
    documents = make_text(seed=6, num_documents=70)
    assert len(set(documents)) == 70
    # Three in ten are copies, in three files.
    planted = [documents[:30], documents[30:60] + documents[:15], documents[45:]]
    for name, files in (("once", [documents]), ("planted", planted)):
        source = _write(tmp_path / f"{name}_corpus", files)
        flags = {
            "input_dir": source.input_dir,
            "vocab_file": vocab_file,
            "output_dir": tmp_path / name,
            "max_seq_length": 48,
            "num_shards": 2,
            "max_workers": workers,
            "eval_fraction": 0.2,
        }
        arguments = [f"--{flag}={value}" for flag, value in flags.items()]
        assert create_pretraining_data.main(["create_pretraining_data", *arguments]) == 0
    assert _shards(tmp_path / "planted") == _shards(tmp_path / "once")
    statistics, number = _statistics(tmp_path / "planted")
    assert (statistics, 0) == _statistics(tmp_path / "once")
    assert number == 30
    lines = capfd.readouterr().out.splitlines()
    assert "documents  100 read, 30 of them skipped" in lines
    assert f"             30 {duplicates.DUPLICATES}" in lines


def test_the_text_of_a_piece_is_not_in_both_splits(tmp_path, examples_config, monkeypatch) -> None:
    """The split of a piece is that of the long document to which it belongs."""
    # Pieces of two lines of 41 characters, each of 3 bytes, and their ends.
    monkeypatch.setattr(text, "MAX_DOCUMENT_BYTES", 250)
    characters = [c for c in 2 * "".join(SENTENCES) if len(c.encode("utf-8")) == 3]
    lines = ["".join(characters[start : start + 41]) for start in range(0, 8 * 41, 41)]
    pieces = ["\n".join(lines[start : start + 2]) for start in range(0, 8, 2)]
    source = _write(tmp_path / "corpus", [[*pieces, "\n".join(lines)]])
    shared = {}
    for keep in (True, False):
        changes = {"corpora": (source,), "eval_fraction": 0.5, "keep_duplicates": keep}
        made = make(examples_config, tmp_path / str(keep), **changes)
        assert manifest.load(made).statistics["documents"] == 8
        train, evaluation = (set(map(restored, read(made, name))) for name in ("train", "eval"))
        assert train and evaluation
        shared[keep] = bool(train & evaluation)
    assert shared == {True: True, False: False}


def test_the_corpus_of_the_greatest_weight_keeps_the_document(tmp_path, examples_config) -> None:
    light, heavy = (
        msgspec.structs.replace(_write(tmp_path / name, [DOCUMENTS]), name=name, weight=weight)
        for name, weight in (("light", 0.25), ("heavy", 2.0))
    )
    alone = create_masked_examples(
        dataclasses.replace(
            examples_config, corpora=(heavy,), output_dir=str(tmp_path / "alone"), num_shards=1
        )
    )
    for number, corpora in enumerate([(light, heavy), (heavy, light)]):
        folder = tmp_path / str(number)
        made = create_masked_examples(
            dataclasses.replace(
                examples_config, corpora=corpora, output_dir=str(folder), num_shards=1
            )
        )
        assert _shards(folder) == _shards(tmp_path / "alone")
        count = alone.statistics["examples"]
        assert made.statistics["examples_by_corpus"] == {"light": 0, "heavy": count}
        assert made.statistics["skipped"] == {duplicates.DUPLICATES: len(DOCUMENTS)}


def test_documents_that_differ_only_in_surrounding_spaces_are_duplicates(
    tmp_path, examples_config
) -> None:
    source = _write(tmp_path / "corpus", [DOCUMENTS, [f" {DOCUMENTS[3]}\n", f"{DOCUMENTS[4]}。"]])
    made = make(examples_config, tmp_path / "made", corpora=(source,))
    assert _statistics(made)[1] == 1


def test_kept_duplicates_have_different_masks(tmp_path, examples_config) -> None:
    source = _write(tmp_path / "corpus", [DOCUMENTS, DOCUMENTS[:4]])
    folder = make(examples_config, tmp_path / "made", corpora=(source,), keep_duplicates=True)
    loaded = manifest.load(folder)
    assert loaded.statistics["skipped"] == {} and loaded.statistics["documents"] == 16
    inputs = Counter(
        example[records.INPUT_IDS].tobytes()
        for split in ("train", "eval")
        for example in read(folder, split)
    )
    assert len(inputs) > 0.9 * loaded.statistics["examples"]
    # Run configurations of older directories do not contain this setting either.
    assert "keep_duplicates" not in loaded.flags


def test_shards_have_the_golden_digests(tmp_path, examples_config) -> None:
    """Random choices depend on a document's position in its file, or only on its text."""
    documents = ["\n".join(SENTENCES[start : start + 6]) for start in range(0, 12, 2)]
    source = _write(tmp_path / "corpus", [documents])
    digests = {}
    for keep in (True, False):
        folder = make(
            examples_config, tmp_path / str(keep), corpora=(source,), keep_duplicates=keep
        )
        content = b"".join(content for _, content in sorted(_shards(folder).items()))
        digests[keep] = hashlib.sha256(content).hexdigest()[:16]
    assert digests == GOLDEN


GOLDEN = {True: "403b394e10509d04", False: "7cca839645ee0879"}


@pytest.mark.parametrize("damage", ["end", "number", "corpus", "size"])
def test_a_damaged_table_is_named_in_the_error(
    tmp_path, examples_config, monkeypatch, damage: str
) -> None:
    config = dataclasses.replace(examples_config, output_dir=str(tmp_path / "made"))
    find = duplicates.find_duplicates

    def damaged(paths, left_out, labels):
        if damage == "end":
            paths[0].write_bytes(paths[0].read_bytes()[:-1])
        if damage == "number":
            left_out = dataclasses.replace(left_out, firsts=(0, 59))
        if damage == "corpus":
            labels = []
        if damage == "size":
            entries = spill.Entries(bytes(16), [0], [b"of another size"], [0])
            spill.write_spill(paths[0], entries, {})
        return find(paths, left_out, labels)

    monkeypatch.setattr(duplicates, "find_duplicates", damaged)
    with pytest.raises(InputError) as error:
        create_masked_examples(config)
    assert error.value.subject == str(document_masker.table_path(config, 0))


@pytest.fixture
def masked(monkeypatch) -> list[str]:
    """The texts that are masked, in order."""
    texts: list[str] = []
    examples = document_masker.DocumentMasker.examples

    def counted(self, passages):
        def seen():
            for passage in passages:
                texts.append(passage.text)
                yield passage

        return examples(self, seen())

    monkeypatch.setattr(document_masker.DocumentMasker, "examples", counted)
    return texts


def test_a_duplicate_is_not_masked(tmp_path, examples_config, masked, plain, monkeypatch) -> None:
    monkeypatch.setattr(corpus, "_MIN_BLOCK_BYTES", 1)
    source = _write(tmp_path / "corpus", [DOCUMENTS[:8], DOCUMENTS[4:] + DOCUMENTS[:2]])
    made = make(examples_config, tmp_path / "made", corpora=(source,))
    assert masked == DOCUMENTS
    assert _shards(made) == _shards(plain["static"])
    # A run into another directory, or into the emptied one, remembers nothing.
    for folder in (tmp_path / "other", made):
        for path in folder.iterdir() if folder.exists() else ():
            path.unlink()
        masked.clear()
        assert _shards(make(examples_config, folder, corpora=(source,))) == _shards(plain["static"])
        assert masked == DOCUMENTS


def test_a_text_is_masked_again_if_it_has_more_copies(tmp_path, examples_config, masked) -> None:
    sources = tuple(
        msgspec.structs.replace(_write(tmp_path / name, [DOCUMENTS]), name=name, weight=weight)
        for name, weight in (("once", 1.0), ("twice", 2.0), ("again", 1.0))
    )
    make(examples_config, tmp_path / "made", corpora=sources)
    assert masked == DOCUMENTS * 2


def test_a_forgotten_text_is_masked_again(
    tmp_path, examples_config, masked, plain, monkeypatch
) -> None:
    monkeypatch.setattr(duplicates, "_MEMORY_SLOTS", 1)
    documents = [*DOCUMENTS, DOCUMENTS[-1], DOCUMENTS[0]]
    source = _write(tmp_path / "corpus", [documents])
    made = make(examples_config, tmp_path / "made", corpora=(source,))
    assert masked == [*DOCUMENTS, DOCUMENTS[0]]
    assert _shards(made) == _shards(plain["static"])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_text_that_only_a_duplicate_still_has_is_masked_when_a_run_is_resumed(
    tmp_path, examples_config, masked, plain, monkeypatch, workers: int
) -> None:
    monkeypatch.setattr(corpus, "_MIN_BLOCK_BYTES", 1)
    config = dataclasses.replace(examples_config, output_dir=str(tmp_path / "made"))
    other = DOCUMENTS[1] * (1 + len(DOCUMENTS[0]) // len(DOCUMENTS[1]))
    texts = [*DOCUMENTS[:2], *DOCUMENTS]
    source = _write(tmp_path / "corpus", [texts])
    with monkeypatch.context() as patch:
        patch.setattr(masked_examples, "_write_shards", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make(config, tmp_path / "made", corpora=(source,))
    assert masked == DOCUMENTS
    # Of the first two texts, one changes and one becomes a duplicate.
    texts[:2] = [other[: len(DOCUMENTS[0])], DOCUMENTS[5]]
    (tmp_path / "corpus" / "0.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    made, anew = (
        make(config, tmp_path / name, corpora=(source,), max_workers=number)
        for name, number in (("made", workers), ("anew", 1))
    )
    assert _shards(made) == _shards(anew)
    assert _statistics(made) == _statistics(anew)
