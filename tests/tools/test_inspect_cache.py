"""Readable examples: every codec, kind of directory and tokenizer, and errors."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from data_specs import records
from pipeline.masking.masked_examples import create_masked_examples
from pipeline.storage import manifest as manifests
from pipeline.storage.cache_input import open_cache
from tests.conftest import SENTENCES, make_cache
from tests.tools.conftest import read_rows, rewrite_cache
from tests.tools.page_reading import parse
from tools import inspect_cache as tool
from tools.report import examples_page, examples_text
from tools.report.shown_examples import (
    KEPT,
    MASKED,
    REPLACED,
    ExampleReader,
    Guess,
    MaskedPosition,
    Piece,
    Selection,
    ShownExample,
    TeacherPrediction,
)
from tools.report.text_width import display_width


def _fails(capsys, *flags: str) -> str:
    assert tool.main(["inspect_cache", *flags]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def _read(directory, *, count: int = 1000, num_guesses: int = 5, **selection) -> list[ShownExample]:
    reader = ExampleReader(open_cache(directory, None), num_guesses=num_guesses)
    return reader.read(Selection(selection.pop("split", "eval"), count=count, **selection))


def test_shown_values_equal_the_stored_record(cache_dir, vocab) -> None:
    """The reference decodes the cache in plain Python, in float64."""
    examples, stored = _read(cache_dir), read_rows(cache_dir, "eval")
    assert len(examples) == len(stored) == manifests.load(cache_dir).num_examples("eval")
    treatments = set()
    for example, features in zip(examples, stored, strict=True):
        assert example.example_id == features[records.EXAMPLE_ID].hex()
        inputs = np.frombuffer(features[records.INPUT_IDS], "<u2")
        masked = np.frombuffer(features[records.MASKED_LM_POSITIONS], "<u2")
        labels = np.frombuffer(features[records.MASKED_LM_IDS], "<u2")
        ids = np.frombuffer(features[records.TOPK_IDS], "<u2").reshape(-1, 16)
        logits = np.frombuffer(features[records.TOPK_LOGITS], "<f2").reshape(-1, 16).astype(float)
        tails = np.exp(np.frombuffer(features[records.LOG_TAIL_MASSES], "<f4").reshape(-1, 2)[:, 0])
        p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True) * (1.0 - tails[:, None])
        assert example.num_tokens == len(inputs) and len(example.positions) == len(masked)
        for row, position in enumerate(example.positions):
            prediction = position.teacher
            assert position.label == vocab[labels[row]]
            assert position.shown == vocab[inputs[masked[row]]]
            assert [guess.text for guess in prediction.guesses] == [vocab[i] for i in ids[row, :5]]
            expected = pytest.approx(p[row, :5].tolist(), rel=1e-6)
            assert [guess.probability for guess in prediction.guesses] == expected
            assert prediction.tail == pytest.approx(tails[row])
            total = (
                sum(guess.probability for guess in prediction.guesses)
                + prediction.rest
                + prediction.tail
            )
            assert total == pytest.approx(1.0)
            assert prediction.right == (ids[row, 0] == labels[row])
            ranks = np.flatnonzero(ids[row] == labels[row])
            assert prediction.label_rank == (ranks[0] + 1 if len(ranks) else None)
            if prediction.label_rank is not None:
                share = p[row, prediction.label_rank - 1]
                assert prediction.label_probability == pytest.approx(share, rel=5e-3, abs=1e-6)
            treatments.add(position.treatment)
            same = position.shown == position.label
            expected = MASKED if position.shown == "[MASK]" else KEPT if same else REPLACED
            assert position.treatment == expected
    assert treatments == {MASKED, KEPT, REPLACED}


@pytest.mark.parametrize(
    "settings",
    [
        {"logit_encoding": "compact"},
        {"logit_encoding": "compact", "truncation_mass": 0.9},
        {"logit_encoding": "float16", "truncation_mass": 0.9},
        {"temperatures": (1.0,)},
        {"truncation": "sampled", "truncation_factor": 64, "temperatures": (1.0,)},
    ],
    ids=str,
)
def test_caches_of_every_codec_show_equal_examples(
    settings, examples_dir, teacher_dir, cache_dir, tmp_path, capsys
) -> None:
    folder = make_cache(tmp_path / "cache", examples_dir, teacher_dir, **settings)
    page = tmp_path / "page.html"
    assert tool.main(["x", f"--input_dir={folder}", f"--html={page}", "--examples=50"]) == 0
    printed = capsys.readouterr().out
    assert all(display_width(line) <= 100 for line in printed.splitlines()[:-1])
    parse(page.read_text(encoding="utf-8"))
    is_sampled = "truncation" in settings
    assert ("Predictions are sampled" in printed) == is_sampled
    for example, reference in zip(_read(folder), _read(cache_dir), strict=True):
        assert example.example_id == reference.example_id and example.segments == reference.segments
        for position, expected in zip(example.positions, reference.positions, strict=True):
            prediction = position.teacher
            assert position.label == expected.label
            assert prediction.label_probability == expected.teacher.label_probability
            total = (
                sum(guess.probability for guess in prediction.guesses)
                + prediction.rest
                + prediction.tail
            )
            assert total == pytest.approx(1.0)
            if not is_sampled:
                first, second = expected.teacher.guesses[:2]
                assert prediction.guesses[0].probability == pytest.approx(
                    first.probability, abs=0.01
                )
                # A coarser codec may give two predictions equal probabilities.
                if first.probability > 1.1 * second.probability:
                    assert prediction.guesses[0].text == first.text
            if "truncation_mass" in settings:
                assert 1 <= prediction.num_ids <= 16
                assert len(prediction.guesses) == min(5, prediction.num_ids)


def test_masked_examples_and_windows_are_shown(examples_dir, windows_dir, tmp_path, capsys) -> None:
    page = tmp_path / "examples.html"
    assert tool.main(["x", f"--input_dir={examples_dir}", f"--html={page}", "--examples=50"]) == 0
    printed = capsys.readouterr().out
    assert "masked examples: " in printed and "  labels:  1 " in printed
    assert "[n:MASK] masked" in printed and "top predictions" not in printed
    # Kept and replaced tokens have their own marks, in the terminal and on the page.
    assert re.search(r"\[\d+:MASK\]", printed) and re.search(r"\[\d+=\S+\]", printed)
    assert re.search(r"\[\d+~\S+\]", printed)
    treatments = {
        attributes.get("class") for tag, attributes in parse(page.read_text()).tags if tag == "mark"
    }
    assert treatments == {MASKED, KEPT, REPLACED}
    assert tool.main(["x", f"--input_dir={windows_dir}", "--examples=1"]) == 0
    printed = capsys.readouterr().out
    assert "Each word starts at a bar." in printed and "MASK" not in printed


def test_words_of_windows_begin_at_word_starts(windows_dir, vocab) -> None:
    (window, *_), (features, *_) = _read(windows_dir), read_rows(windows_dir, "eval")
    inputs = np.frombuffer(features[records.INPUT_IDS], "<u2")
    starts = np.frombuffer(features[records.WORD_STARTS], "<u2").tolist()
    pieces = [piece for segment in window.segments for piece in segment]
    text_positions = [
        position for position, token in enumerate(inputs) if vocab[token] not in ("[CLS]", "[SEP]")
    ]
    assert [piece.new_word for piece in pieces] == [
        position in starts for position in text_positions
    ]
    text = "".join(piece.text for piece in pieces)
    assert text == "".join(
        vocab[inputs[position]].removeprefix("##") for position in text_positions
    )


@pytest.mark.parametrize("kind", ["spiece_file", "bpe_file"])
def test_text_of_other_tokenizers_is_readable(
    kind, request, examples_config, tmp_path, capsys
) -> None:
    vocab_file = request.getfixturevalue(kind)
    folder = tmp_path / "examples"
    config = dataclasses.replace(
        examples_config, output_dir=str(folder), vocab_file=str(vocab_file), do_lower_case=None
    )
    create_masked_examples(config)
    assert tool.main(["x", f"--input_dir={folder}", "--examples=20"]) == 0
    printed = capsys.readouterr().out
    assert "▁" not in printed and "Ġ" not in printed
    # Text without masks reads as in the corpus.
    assert any(sentence[:3] in printed for sentence in SENTENCES)


def test_examples_are_selected_by_index_and_by_id(cache_dir, examples_dir, tmp_path) -> None:
    all_examples = _read(cache_dir, split="train", count=1000)
    shards = manifests.load(cache_dir).splits["train"]
    assert len(shards) == 3 and len({example.file for example in all_examples}) == 3
    first = shards[0].num_examples
    assert (
        _read(cache_dir, split="train", first=first - 1, count=2) == all_examples[first - 1 :][:2]
    )
    chosen = all_examples[first]
    assert (chosen.file, chosen.index) == (shards[1].file, 0)
    (by_id,) = _read(cache_dir, split="train", example_id=chosen.example_id[:12])
    assert by_id == chosen
    # Shards that are not read may be missing.
    incomplete_dir = tmp_path / "part"
    shutil.copytree(cache_dir, incomplete_dir)
    (incomplete_dir / shards[0].file).unlink()
    (incomplete_dir / shards[2].file).unlink()
    assert (
        _read(incomplete_dir, split="train", first=first, count=3)
        == all_examples[first : first + 3]
    )
    one_shard = open_cache(None, incomplete_dir / "train-00001-*")
    reader = ExampleReader(one_shard, num_guesses=5)
    assert reader.read(Selection("train", count=1)) == [chosen]


def _position(number: int, treatment: str, token: str, label: str, *guesses, **prediction_fields):
    teacher = None
    if guesses:
        settings = {
            "rest": 0.0,
            "tail": 0.1,
            "num_ids": 128,
            "label_rank": None,
            **prediction_fields,
        }
        teacher = TeacherPrediction(guesses, label_probability=0.25, **settings)
    return MaskedPosition(number, treatment, token, label, teacher)


def test_example_is_printed_line_by_line() -> None:
    pieces = (
        Piece("春", False),
        Piece("[MASK]", False, 1),
        Piece("，", False),
        Piece("the", False),
        Piece("##el", False, 2),
        Piece("cat", True, 3),
    )
    example = ShownExample(
        "00ff",
        "e.tfrecord",
        3,
        8,
        (pieces,),
        (
            _position(1, MASKED, "[MASK]", "天", Guess("天", 0.5, True), label_rank=1),
            _position(2, KEPT, "##el", "##el", Guess("a", 0.0001, False), Guess("b", 0.0, False)),
            _position(3, REPLACED, "cat", "dog", Guess("b", 0.3, False)),
        ),
    )
    assert list(examples_text.example_lines(example)) == [
        "example 00ff",
        "  e.tfrecord, record 3: 8 tokens, 3 masked (1 [MASK], 1 kept, 1 replaced)",
        "",
        "  春[1:MASK]，the[2=##el] [3~cat]",
        "",
        "    n  label  p(label)   rank    tail     top predictions (* the label)",
        "    1  天        25.0%      1   10.0%  ✓  *天 50.0%",
        "    2  ##el      25.0%  > 128   10.0%  ✗  a <0.1%   b 0.0%",
        "    3  dog       25.0%  > 128   10.0%  ✗  b 30.0%",
    ]
    assert examples_text.summarize([example]) == (
        "The teacher's prediction is correct at 1 of 3 masked positions (33%). "
        "Mean probability: 25.0% for the label and 10.0% for the tail."
    )


def test_segments_of_a_pair_are_marked() -> None:
    segments = (Piece("word", True),) * 30, (Piece("end", False),)
    example = ShownExample("00", "e.tfrecord", 0, 8, segments)
    first, second, last = list(examples_text.example_lines(example))[-3:]
    assert first.startswith("  A:  word")
    assert second.startswith("     word") and last == "  B: end"
    pair = examples_page.examples_page("title", "lead", "notes", [example])
    single = dataclasses.replace(example, segments=segments[:1])
    alone = examples_page.examples_page("title", "lead", "notes", [single])
    assert pair.count("<b>A</b>") == pair.count("<b>B</b>") == 1 and "<b>A</b>" not in alone
    notes = [
        examples_text.PAIRS in examples_text.report_lines("", [], [it]) for it in (example, single)
    ]
    assert notes == [True, False]


def test_tokens_are_escaped_in_the_page() -> None:
    nasty = '<script>alert("x")</script>'
    example = ShownExample(
        "00",
        nasty,
        0,
        3,
        ((Piece(nasty, True), Piece(nasty, True, 1)),),
        (_position(1, REPLACED, nasty, nasty, Guess(nasty, 0.9, True), label_rank=1),),
    )
    page = examples_page.examples_page(nasty, nasty, nasty, [example])
    parsed = parse(page)
    assert page.count("&lt;script&gt;") >= 8
    assert nasty in "".join(parsed.text)
    (policy,) = [
        attributes["content"] for tag, attributes in parsed.tags if "http-equiv" in attributes
    ]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert ("html", {"lang": "en"}) in parsed.tags


def test_page_has_the_same_values_as_the_terminal(cache_dir, tmp_path, capsys) -> None:
    page = tmp_path / "page.html"
    assert tool.main(["x", f"--input_dir={cache_dir}", f"--html={page}", "--examples=3"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"page: {page}"
    parsed = parse(page.read_text(encoding="utf-8"))
    examples = _read(cache_dir, count=3)
    assert len(parsed.tables) == 3
    for example, rows in zip(examples, parsed.tables, strict=True):
        assert len(rows) == 1 + len(example.positions)
        for position, row in zip(example.positions, rows[1:], strict=True):
            assert row[:2] == [str(position.number), position.label]
            assert row[2] == examples_text.percent(position.teacher.label_probability)
            assert row[4] == ("✓ correct" if position.teacher.right else "✗ wrong")
    summary = examples_text.summarize(examples)
    assert summary in "".join(parsed.text)
    assert summary in " ".join(printed.split())


def test_invalid_flags_are_named(cache_dir, tmp_path, capsys) -> None:
    assert _fails(capsys).startswith("error: --input_dir: ")
    page = tmp_path / "page.html"
    page.write_text("mine")
    input_flag = f"--input_dir={cache_dir}"
    num_examples = manifests.load(cache_dir).num_examples("eval")
    shard = f"--input_file={cache_dir}/train-00000-of-00003.tfrecord"
    for flags, setting, value in (
        ((input_flag, "--example_id=xyz"), "example_id", "'xyz'"),
        ((input_flag, "--example_id=00", "--first=3"), "first", "3"),
        ((input_flag, "--first=9999"), "first", f"a number below {num_examples}"),
        ((input_flag, f"--example_id={'0' * 32}"), "example_id", "0" * 32),
        ((shard, "--split=eval"), "split", "one of train"),
        ((input_flag, f"--html={page}"), "html", "a new file"),
    ):
        line = _fails(capsys, *flags)
        assert line.startswith(f"error: --{setting}: ") and value in line
    assert page.read_text() == "mine"


DAMAGE = {
    records.LABEL_LOG_PROBS: (b"\0\0", "label_log_probs"),
    records.TOPK_IDS: (b"\0\0", "expected a top-k of 96 ids, 16 at each position, received 1"),
    records.INPUT_IDS: (b"\xff\xff" * 48, "expected segment lengths that sum to "),
    records.SEGMENT_LENGTHS: (b"\1\0", "expected segment lengths that sum to "),
    records.LOG_TAIL_MASSES: (np.full(12, np.nan, "<f4").tobytes(), "received NaN"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_malformed_records_are_named(cache_dir, tmp_path, capsys, name: str) -> None:
    """The records have valid checksums but malformed values."""
    content, message = DAMAGE[name]

    def change(rows):
        return [{**row, name: content} for row in rows if len(row[records.MASKED_LM_IDS]) == 12]

    folder = rewrite_cache(cache_dir, tmp_path / "cache", change)
    line = _fails(capsys, f"--input_dir={folder}", "--split=train")
    assert f"{folder}/train-00000-of-00003.tfrecord: broken record 0" in line
    assert message in line


def test_truncated_shard_is_named(cache_dir, tmp_path, capsys) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(cache_dir, folder)
    (path,) = folder.glob("eval-*.tfrecord")
    path.write_bytes(path.read_bytes()[:-1])
    line = _fails(capsys, f"--input_dir={folder}")
    assert f"{path}: this shard is truncated or damaged: expected " in line


def test_shard_with_fewer_records_than_its_manifest_is_named(cache_dir, tmp_path, capsys) -> None:
    """A selected record is missing, and the error names the shard instead of the flag."""
    folder = rewrite_cache(cache_dir, tmp_path / "cache", lambda rows: rows)
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    shard = value["splits"]["train"][0]
    shard["num_examples"] += 5
    path.write_text(json.dumps(value))
    index = shard["num_examples"] - 1
    line = _fails(capsys, f"--input_dir={folder}", "--split=train", f"--first={index}")
    message = f"expected {index + 1} records, received {index - 4}"
    assert line.endswith(f"{folder}/{shard['file']}: {message}")
