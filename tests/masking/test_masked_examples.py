"""Tests of prepare, from corpus files to shards."""

import dataclasses
import json
import re
import shutil
from collections import defaultdict

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs import records
from data_specs.corpora import CorpusSource
from pipeline.base import seeding
from pipeline.base.errors import InputError, InterruptedRunError, Setting
from pipeline.corpora.readers import text as text_reader
from pipeline.masking import document_masker, masked_examples
from pipeline.masking.document_masker import divide_text
from pipeline.storage import manifest, serialization, spill
from tests.conftest import make_text, read_folder
from tests.corpora import written
from tests.masking.running import counts, examples, make, passage, read, restored


def test_examples_agree_with_the_manifest(examples_dir, examples_config, vocab) -> None:
    loaded = manifest.load(examples_dir)
    special = {vocab.index(token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")}
    mask_id = vocab.index("[MASK]")
    ids = set()
    totals = defaultdict(int)
    for split in ("train", "eval"):
        examples = read(examples_dir, split)
        assert len(examples) == loaded.num_examples(split) > 0
        for example in examples:
            inputs = example[records.INPUT_IDS]
            positions = example[records.MASKED_LM_POSITIONS]
            labels = example[records.MASKED_LM_IDS]
            lengths = example[records.SEGMENT_LENGTHS]
            assert len(inputs) == lengths.sum() <= 48
            assert 1 <= len(lengths) <= 2
            assert 0 < len(positions) == len(labels) <= 8
            assert (np.diff(positions.astype(int)) > 0).all()
            # No label is a special token, and no special token was masked.
            assert not special & set(labels.tolist())
            original = restored(example)
            ends = [0, *(np.cumsum(lengths) - 1)]
            assert [original[end] for end in ends] == [vocab.index("[CLS]")] + [
                vocab.index("[SEP]")
            ] * len(lengths)
            assert mask_id not in original
            totals["masked"] += len(positions)
            totals["mask"] += int((inputs[positions] == mask_id).sum())
            totals["kept"] += int((inputs[positions] == labels).sum())
            ids.add(example[records.EXAMPLE_ID].tobytes())
    assert len(ids) == loaded.num_examples("train") + loaded.num_examples("eval")
    assert totals["masked"] == loaded.statistics["masked_positions"]
    assert abs(totals["mask"] / totals["masked"] - 0.8) < 0.04
    assert abs(totals["kept"] / totals["masked"] - 0.1) < 0.03


def test_masks_keep_whole_words_and_copies_differ(examples_dir, vocab) -> None:
    by_window = defaultdict(list)
    for example in read(examples_dir, "train"):
        positions = example[records.MASKED_LM_POSITIONS].tolist()
        by_window[restored(example)].append(positions)
        tokens = [vocab[index] for index in restored(example)]
        for position, token in enumerate(tokens):
            # A window may begin inside a word.
            if token.startswith("##") and position > 1:
                assert (position in positions) == (position - 1 in positions)
        # 院子 is one of jieba's words.
        for position in range(len(tokens) - 1):
            if tokens[position : position + 2] == ["院", "子"]:
                assert (position in positions) == (position + 1 in positions)
    # A short window has one word to mask, and few choices.
    repeated = [
        copies for window, copies in by_window.items() if len(copies) > 1 and len(window) > 30
    ]
    different = [copies for copies in repeated if copies[0] != copies[1]]
    assert len(repeated) > 20 and len(different) > 0.98 * len(repeated)


@pytest.mark.parametrize("kind", ["examples", "windows"])
@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_does_not_change_the_bytes(
    request, tmp_path, kind: str, workers: int
) -> None:
    config = request.getfixturevalue(f"{kind}_config")
    folder = make(config, tmp_path / "made", max_workers=workers)
    assert read_folder(folder) == read_folder(request.getfixturevalue(f"{kind}_dir"))


def test_another_seed_gives_another_eval_split(examples_dir, examples_config, tmp_path) -> None:
    other = make(examples_config, tmp_path / "other", random_seed=1)
    assert read_folder(other).keys() == read_folder(examples_dir).keys()
    restored_windows = [
        {restored(example) for example in read(folder, "eval")} for folder in (other, examples_dir)
    ]
    assert restored_windows[0] != restored_windows[1]


def test_no_document_is_in_both_splits(tmp_path, examples_config) -> None:
    corpus = tmp_path / "corpus.txt"
    # Each document occurs twice, and no two different documents share their characters.
    documents = [chr(0x4E00 + 10 * n) + "一" + chr(0x4E01 + 10 * n) * 25 for n in range(50)]
    corpus.write_text("\n\n".join(documents + documents), encoding="utf-8")
    vocabulary = tmp_path / "vocab.txt"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set("".join(documents)))]
    vocabulary.write_text("\n".join(tokens), encoding="utf-8")
    folder = make(
        examples_config,
        tmp_path / "out",
        corpora=(CorpusSource(input_dir=str(corpus), segmenter="none"),),
        vocab_file=str(vocabulary),
    )
    train, evaluation = (
        {token for example in read(folder, split) for token in restored(example)[1:-1]}
        for split in ("train", "eval")
    )
    assert train & evaluation <= {tokens.index("一"), tokens.index("[SEP]")}
    assert len(train) > 50 < 2 * len(evaluation) + 50


@pytest.mark.parametrize(("documents", "splits"), [(1, ["train"]), (2, ["eval", "train"])])
def test_two_documents_give_an_eval_split(
    tmp_path, examples_config, documents: int, splits: list[str]
) -> None:
    corpus = tmp_path / "corpus.txt"
    sentence = "工程师检查了机器，发现是一颗螺丝松了，还有第"
    text = "\n\n".join(f"{sentence}{'一二'[n]}颗。" for n in range(documents))
    corpus.write_text(text, encoding="utf-8")
    for fraction in (0.01, 0.5):
        folder = tmp_path / str(fraction)
        make(
            examples_config,
            folder,
            corpora=(CorpusSource(input_dir=str(corpus)),),
            eval_fraction=fraction,
        )
        loaded = manifest.load(folder)
        assert sorted(loaded.splits) == splits
        assert all(loaded.num_examples(split) for split in splits)


def _one_document(tmp_path, examples_config, **changes) -> dict[str, object]:
    """Returns the settings of a corpus without a blank line, whose lines all differ."""
    corpus = tmp_path / "corpus.txt"
    lines = [chr(0x4E00 + 10 * n) + chr(0x4E01 + 10 * n) * 25 for n in range(60)]
    corpus.write_text("\n".join(lines), encoding="utf-8")
    vocabulary = tmp_path / "vocab.txt"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set("".join(lines)))]
    vocabulary.write_text("\n".join(tokens), encoding="utf-8")
    source = CorpusSource(input_dir=str(corpus), segmenter="none", **changes)
    return {"corpora": (source,), "vocab_file": str(vocabulary), "eval_fraction": 0.1}


@pytest.mark.parametrize("piece_bytes", [2**22, 1024])
def test_the_end_of_the_only_document_is_the_eval_split(
    tmp_path, examples_config, monkeypatch, piece_bytes: int
) -> None:
    monkeypatch.setattr(text_reader, "MAX_DOCUMENT_BYTES", piece_bytes)
    folder = make(examples_config, tmp_path / "out", **_one_document(tmp_path, examples_config))
    loaded = manifest.load(folder)
    assert loaded.statistics[manifest.HELD_OUT_TEXT] == 0.1
    train, evaluation = (
        {token for example in read(folder, split) for token in restored(example)}
        for split in ("train", "eval")
    )
    special = set(loaded.special_ids.values())
    # No two lines share a token, so no token is in both splits.
    assert train & evaluation <= special
    assert len(train | evaluation) > 110 and 12 <= len(evaluation - special) <= 40


def test_a_corpus_of_line_documents_is_not_divided(tmp_path, examples_config) -> None:
    changes = _one_document(tmp_path, examples_config, documents="lines")
    loaded = manifest.load(make(examples_config, tmp_path / "out", **changes))
    assert loaded.statistics["documents"] == 60
    assert manifest.HELD_OUT_TEXT not in loaded.statistics and loaded.num_examples("eval")
    assert not list(loaded.evaluation_notes())


def test_the_summary_notes_an_unusual_eval_split(tmp_path, examples_config) -> None:
    changes = _one_document(tmp_path, examples_config)
    for name, fraction, word in (("a", 0.1, "10.0%"), ("b", 0.0, "no eval split")):
        folder = make(examples_config, tmp_path / name, **{**changes, "eval_fraction": fraction})
        loaded = manifest.load(folder)
        assert word in next(loaded.evaluation_notes())
        assert any(word in line for line in masked_examples.describe(loaded))
        assert any("--documents=lines" in line for line in masked_examples.describe(loaded))


@pytest.mark.parametrize("fraction", [0.1, 0.0])
@pytest.mark.parametrize("name", ["parquet", "jsonl"])
def test_documents_lines_is_not_suggested_for_rows(
    tmp_path, examples_config, name: str, fraction: float
) -> None:
    changes = _one_document(tmp_path, examples_config, text_fields=("text",))
    text = (tmp_path / "corpus.txt").read_text(encoding="utf-8")
    path = tmp_path / f"corpus.{name}"
    path.write_bytes(written.FORMATS[name]([text]))
    source = msgspec.structs.replace(changes["corpora"][0], input_dir=str(path))
    changes |= {"corpora": (source,), "eval_fraction": fraction}
    loaded = manifest.load(make(examples_config, tmp_path / "out", **changes))
    notes = list(loaded.evaluation_notes())
    assert notes and bool(loaded.num_examples("eval")) == bool(fraction)
    assert not any("documents=lines" in line for line in notes)


def test_a_text_is_not_divided_once_there_is_a_second_document(
    tmp_path, examples_config, monkeypatch
) -> None:
    """A resumed run masks its blocks again if the corpus has grown."""
    changes = _one_document(tmp_path, examples_config)
    whole = manifest.load(make(examples_config, tmp_path / "whole", **changes))
    with monkeypatch.context() as patch:
        patch.setattr(masked_examples, "_write_shards", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make(examples_config, tmp_path / "out", **changes)
    (tmp_path / "corpus.txt").open("a", encoding="utf-8").write("\n\n" + "另一篇" * 20)
    grown = manifest.load(make(examples_config, tmp_path / "out", **changes))
    assert manifest.HELD_OUT_TEXT not in grown.statistics
    assert grown.splits["train"][0].sha256 != whole.splits["train"][0].sha256


@given(
    st.text(alphabet="甲乙。 .\nab", max_size=400),
    st.floats(0.01, 0.5),
    st.integers(1, 30),
)
def test_texts_are_divided_into_two_parts(text: str, fraction: float, min_chars: int) -> None:
    text = text.strip()
    halves = divide_text(text, fraction, min_chars)
    if halves is None:
        # Two parts, or the space between them, do not fit.
        assert len(text) < 2 * min_chars or re.search(r"\s", text)
        return
    begin, end = halves
    assert text.startswith(begin) and text.endswith(end)
    assert not text[len(begin) : len(text) - len(end)].strip()
    assert min(len(begin), len(end)) >= min_chars
    assert len(end) <= 2 * max(min_chars, fraction * len(text)) + 1


@pytest.mark.parametrize(
    ("text", "fraction", "end"),
    [
        ("一二三四五六七八\n九十", 0.2, "九十"),
        ("一二三四五六。七八九十", 0.2, "七八九十"),
        ("Ab cd. Ef ghijk", 0.35, "Ef ghijk"),
        ("ab cd ef gh ij", 0.15, "ij"),
        ("一二三四五六七八九十", 0.2, "九十"),
    ],
)
def test_texts_are_divided_at_lines_then_sentences_then_words(
    text: str, fraction: float, end: str
) -> None:
    assert divide_text(text, fraction, 1)[1] == end


def test_eval_threshold_leaves_documents_in_both_splits() -> None:
    half = 2**63
    assert masked_examples.eval_threshold(0.5, 10, 2**64 - 1) == half
    assert masked_examples.eval_threshold(0.0, 10, 20) == 0
    assert masked_examples.eval_threshold(0.5, half + 5, half + 9) == half + 6
    assert masked_examples.eval_threshold(0.5, 5, 9) == 9
    assert masked_examples.eval_threshold(0.5, 5, 5) == 0


def test_skipped_documents_are_counted(tmp_path, examples_config) -> None:
    corpus = tmp_path / "corpus.jsonl"
    good = '{"title": "工程师检查了机器", "content": "发现是一颗螺丝松了，学生们认真地听讲。"}\n'
    corpus.write_text(
        good
        + '{"title": "短", "content": ""}\nnot json\n'
        + f'{{"title": "{"螺" * 30}", "content": ""}}\n',
        encoding="utf-8",
    )
    folder = tmp_path / "out"
    with pytest.raises(InputError, match="line 3: not JSON"):
        make(examples_config, folder, corpora=(CorpusSource(input_dir=str(corpus)),))
    # The failed command leaves the directory as it was before.
    assert not list(folder.iterdir())
    make(
        examples_config, folder, corpora=(CorpusSource(input_dir=str(corpus)),), skip_bad_lines=True
    )
    statistics = manifest.load(folder).statistics
    assert statistics["documents"] == 4
    assert statistics["skipped"] == {
        "bad rows": 1,
        "shorter than --min_chars": 1,
        "without a word to mask": 1,
    }
    # 螺 is not in the vocabulary. It is once in the good row, and thirty times in the last row.
    assert statistics["unknown_tokens"] == 31


def test_a_killed_run_resumes_to_the_same_bytes(
    examples_dir, examples_config, tmp_path, monkeypatch
) -> None:
    wanted = read_folder(examples_dir)
    for calls in range(1, 8):
        folder = tmp_path / str(calls)
        made = 0

        def killed(*arguments, made_by=serialization.write_shard, limit=calls):
            nonlocal made
            made += 1
            if made == limit:
                raise KeyboardInterrupt
            return made_by(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(serialization, "write_shard", killed)
            if calls < 5:
                with pytest.raises(KeyboardInterrupt):
                    make(examples_config, folder)
                assert not (folder / "manifest.json").exists()
        make(examples_config, folder)
        assert read_folder(folder) == wanted


def test_an_error_leaves_complete_shards(
    examples_dir, examples_config, tmp_path, monkeypatch
) -> None:
    """Even an error for which a new directory would be restored."""
    folder, real = tmp_path / "made", serialization.write_shard
    number = 0

    def broken(*arguments):
        nonlocal number
        number += 1
        if number == 2:
            raise InputError(Setting("vocab_file"), "another")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(serialization, "write_shard", broken)
        with pytest.raises(InputError) as error:
            make(examples_config, folder)
        assert error.value.subject == "vocab_file"
    whole = {path.name: path.stat().st_ino for path in folder.glob("*.tfrecord")}
    assert len(whole) == 1
    make(examples_config, folder)
    assert {name: (folder / name).stat().st_ino for name in whole} == whole
    assert read_folder(folder) == read_folder(examples_dir)


def test_a_spill_file_of_another_text_is_not_read(examples_config, tmp_path, monkeypatch) -> None:
    """A node may have such a file if its folder is not shared with the other nodes."""
    real = masked_examples.make_plan

    def spoil(config, headers, *arguments):
        nothing = spill.Entries(b"", [], [], [])
        spill.write_spill(document_masker.spill_path(config, 0), nothing, {"fingerprint": "other"})
        return real(config, headers, *arguments)

    monkeypatch.setattr(masked_examples, "make_plan", spoil)
    with pytest.raises(InterruptedRunError, match="00000000.spill") as error:
        make(examples_config, tmp_path / "made")
    assert error.value.received == "that of another text"
    monkeypatch.undo()
    make(examples_config, tmp_path / "made")


def test_a_complete_directory_is_not_made_again(examples_dir, examples_config, monkeypatch) -> None:
    def never(*arguments):
        raise AssertionError("masked again")

    monkeypatch.setattr(document_masker.DocumentMasker, "examples", never)
    before = {path: path.stat().st_mtime_ns for path in examples_dir.iterdir()}
    make(examples_config, examples_dir)
    assert before == {path: path.stat().st_mtime_ns for path in examples_dir.iterdir()}
    with pytest.raises(InputError, match=r"dupe_factor \(recorded 2, now 3\)"):
        make(examples_config, examples_dir, dupe_factor=3)


def test_masks_have_the_golden_values(examples_config, vocab) -> None:
    """These bytes must not change without a new name in `seeding.STREAMS`."""
    masker = document_masker.DocumentMasker(examples_config)
    key = seeding.digest("golden")
    text = "春天来了，院子里的桃树开满了花。"
    made = list(examples(masker, [passage(text, key, copies=2)]))
    assert [example_id.hex() for _, example_id, _ in made] == GOLDEN_IDS
    features = [serialization.decode_example(record) for _, _, record in made]
    positions = [np.frombuffer(f[records.MASKED_LM_POSITIONS], "<u2").tolist() for f in features]
    assert positions == GOLDEN_POSITIONS
    labels = np.frombuffer(features[0][records.MASKED_LM_IDS], "<u2").tolist()
    assert [vocab[label] for label in labels] == GOLDEN_LABELS


def test_a_tenth_of_the_documents_has_windows_of_one_random_length(examples_config) -> None:
    masker = document_masker.DocumentMasker(
        dataclasses.replace(examples_config, short_seq_prob=0.1, doc_stride=48)
    )
    keys = seeding.key_words([seeding.digest(number) for number in range(4_000)])
    spans = masker._window_spans(keys, np.full(len(keys), 450))
    # The first window of a document has its length: 45 tokens, or a shorter one from 5.
    lengths = (spans.ends - spans.begins)[spans.numbers == 0]
    is_short = lengths < 45
    # Of the short lengths, one in 41 is the usual one.
    expected = 0.1 * 40 / 41
    assert is_short.mean() == pytest.approx(expected, abs=4 * np.sqrt(0.1 * 0.9 / len(keys)))
    assert set(lengths[is_short].tolist()) == set(range(5, 45))
    inner = spans.ends < 450
    of_document = lengths[spans.documents]
    assert (spans.ends - spans.begins == of_document)[inner].all()


def test_the_manifest_names_the_method_of_random_numbers(
    examples_dir, examples_config, tmp_path
) -> None:
    assert manifest.load(examples_dir).flags["random_numbers"] == seeding.STREAMS
    older = tmp_path / "older"
    shutil.copytree(examples_dir, older)
    path = older / manifest.RUN_CONFIG_FILE
    config = json.loads(path.read_text())
    del config["random_numbers"]
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="random_numbers"):
        make(examples_config, older)


@pytest.mark.parametrize("masking", ["static", "dynamic"])
@pytest.mark.parametrize("batch_tokens", [1, 200, 2**17])
def test_passages_together_have_the_examples_of_each_alone(
    examples_config, monkeypatch, masking: str, batch_tokens: int
) -> None:
    monkeypatch.setattr(document_masker, "_BATCH_TOKENS", batch_tokens)
    monkeypatch.setattr(document_masker, "_GROUP_CHARS", 300)
    copies = None if masking == "dynamic" else 2
    config = dataclasses.replace(examples_config, masking=masking, dupe_factor=copies)
    masker = document_masker.DocumentMasker(config)
    texts = [*make_text(seed=5, num_documents=12), "\u0301é 2024", "，。", "step\nby\nstep"]

    passages = [
        passage(text, seeding.digest(number), copies=1 + number // 9, group=number)
        for number, text in enumerate(texts)
    ]
    received = {
        example_id: (origin.group, record)
        for origin, example_id, record in examples(masker, passages)
    }
    expected = {
        example_id: (origin.group, record)
        for single in passages
        for origin, example_id, record in examples(masker, [single])
    }
    assert received == expected and len(received) > len(texts)
    alone = [counts(masker, [single]) for single in passages]
    assert counts(masker, passages) == {
        name: [by_name[name][0] for by_name in alone] for name in alone[0]
    }


GOLDEN_IDS = ["adab95f7b576d629e1e3d1451a11a284", "836d462d65fbfe0ccc3d3bb5287bc925"]
GOLDEN_POSITIONS = [[4, 15, 16], [5, 15, 17]]
GOLDEN_LABELS = ["了", "了", "花"]


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [("max_predictions_per_seq", 46, "45"), ("max_seq_length", 3, "3 special tokens")],
)
def test_inputs_without_room_for_a_window_or_its_masks_are_refused(
    examples_config, name: str, value: int, limit: str
) -> None:
    with pytest.raises(InputError) as error:
        dataclasses.replace(examples_config, **{name: value})
    assert (error.value.subject, error.value.received) == (name, value)
    assert limit in error.value.expected


def test_a_vocabulary_without_a_mask_token_is_refused(tmp_path, examples_config) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n一\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        make(examples_config, tmp_path / "out", vocab_file=str(path))
    assert (error.value.setting, error.value.subject) == ("vocab_file", str(path))
    assert "5 tokens" in error.value.received and "[MASK]" in error.value.received
    assert not (tmp_path / "out").exists()


def test_a_literal_mask_in_the_text_is_text(examples_config) -> None:
    tokenizer = document_masker.load_tokenizer(examples_config.vocab_file, do_lower_case=True)
    special = set(tokenizer.special_ids.values()) - {tokenizer.special_ids["unk"]}
    assert not special & set(tokenizer.tokenize("老师[MASK]写[CLS]字[SEP]").ids.tolist())
