"""Tests of WordPiece: BERT's tokens, with their spans in the text."""

import json
import pathlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.tokenizers.loading import load_tokenizer
from pipeline.tokenizers.wordpiece import WordPieceTokenizer

SHARED = Location.parse(pathlib.Path(__file__).parents[3] / "shared")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@pytest.fixture(scope="module")
def tokenizer(vocab_file) -> WordPieceTokenizer:
    """The tests' vocabulary, lower-casing."""
    return load_tokenizer(vocab_file, do_lower_case=True)


def test_wordpiece_tokens_of_mixed_text(tokenizer) -> None:
    text = "我们用BERT，The Learns"
    tokens = tokenizer.tokenize(text)
    expected = ["我", "们", "用", "be", "##rt", "，", "the", "learn", "##s"]
    assert [tokenizer.vocab[index] for index in tokens.ids] == expected
    assert [text[start] for start in tokens.starts] == list("我们用BR，TLs")
    word_ids = tokens.word_ids.tolist()
    assert word_ids[3] == word_ids[4] and word_ids[7] == word_ids[8]
    assert len(set(word_ids)) == 7


@given(TEXT)
def test_spans_are_in_the_text_and_ascend(tokenizer, text: str) -> None:
    tokens = tokenizer.tokenize(text)
    assert len(tokens.ids) == len(tokens.starts) == len(tokens.word_ids)
    assert (tokens.starts[1:] >= tokens.starts[:-1]).all()
    for index, start, end in zip(tokens.ids, tokens.starts, tokens.ends, strict=True):
        assert 0 <= start < end <= len(text)
        token = tokenizer.vocab[index].removeprefix("##")
        # BERT's normalizer lower-cases text and removes accents.
        plain = unicodedata.normalize("NFD", text[start:end]).lower()
        seen = "".join(char for char in plain if unicodedata.category(char)[0] not in "MC")
        assert token in ("[UNK]", seen)


@given(TEXT)
def test_no_text_becomes_a_special_token_but_unk(tokenizer, text: str) -> None:
    special = set(tokenizer.special_ids.values()) - {tokenizer.special_ids["unk"]}
    assert not special & set(tokenizer.tokenize(text + "[MASK][SEP]").ids.tolist())


def test_case_is_kept_without_lower_casing(vocab_file) -> None:
    cased = load_tokenizer(vocab_file, do_lower_case=False)
    unknown = cased.special_ids["unk"]
    assert cased.tokenize("THE").ids.tolist() == [unknown]
    assert cased.tokenize("the").ids.tolist() != [unknown]
    assert json.loads(cased.files()["tokenizer_config.json"])["do_lower_case"] is False


def test_vocabularies_may_have_windows_lines_but_must_be_utf8(tmp_path) -> None:
    path = tmp_path / "vocab.txt"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "一"]
    path.write_bytes("\r\n".join([*tokens, "", ""]).encode())
    loaded = load_tokenizer(path, do_lower_case=True)
    assert loaded.vocab == tuple(tokens)
    path.write_bytes("\n".join([*tokens, "好"]).encode("gb18030"))
    with pytest.raises(InputError, match="vocab.txt: .*UTF-8 text"):
        load_tokenizer(path, do_lower_case=True)


@pytest.mark.peers
@pytest.mark.shared
def test_real_text_becomes_the_tokens_of_transformers(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    vocab_file = SHARED / "data" / "vocab" / "bert_chinese_21128.txt"
    ours = load_tokenizer(vocab_file, do_lower_case=True)
    for name, content in ours.files().items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    compared = 0
    for file in sorted((SHARED / "data" / "zh" / "mlm").glob("*.txt")):
        lines = file.read_text(encoding="utf-8").splitlines()
        for line in lines[:: max(1, len(lines) // 300)]:
            if "[" in line:
                continue
            expected = theirs(line, add_special_tokens=False)["input_ids"]
            assert ours.tokenize(line).ids.tolist() == expected, line
            compared += 1
    assert compared > 1500


def test_only_line_feeds_end_the_lines_of_a_vocabulary(tmp_path) -> None:
    odd = ["\u2028", "\u2029", "\x85", "\u3000", "\x0b", "\x0c", "\x1c"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *odd, "木"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8", newline="")
    tokenizer = load_tokenizer(tmp_path / "vocab.txt", do_lower_case=True)
    assert tokenizer.vocab == tuple(tokens)
    assert tokenizer.tokenize("木").ids.tolist() == [len(tokens) - 1]


def test_each_ideograph_of_berts_range_is_a_word(tmp_path) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path / "vocab.txt", do_lower_case=True)
    for first, last in (
        (0x4E00, 0x9FFF),
        (0x3400, 0x4DBF),
        (0x20000, 0x2A6DF),
        (0x2A700, 0x2B73F),
        (0x2B740, 0x2B81F),
        (0x2B820, 0x2CEAF),
        (0xF900, 0xFAFF),
        (0x2F800, 0x2FA1F),
    ):
        for code in (first, (first + last) // 2, last):
            assert tokenizer.tokenize(f"a{chr(code)}b").ids.tolist() == [5, 1, 6], hex(code)
    assert tokenizer.tokenize("a\U0003106cb").ids.tolist() == [1]
