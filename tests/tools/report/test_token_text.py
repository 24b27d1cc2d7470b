"""Readable text from tokens, for each kind of tokenizer."""

import json
import unicodedata

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models

from pipeline.tokenizers.loading import load_tokenizer
from tests.conftest import ENGLISH, RUSSIAN, SENTENCES
from tools.report import token_text
from tools.report.token_text import Marks, TokenText, Word, space_between


def _load(path):
    return load_tokenizer(path, do_lower_case=None)


def _joined(words: list[Word]) -> str:
    return "".join(" " * word.space + word.text for word in words).strip()


@pytest.fixture
def wordpiece(tmp_path):
    """A WordPiece tokenizer with the cased tokens of these tests."""
    tokens = (
        "[PAD] [UNK] [CLS] [SEP] [MASK] 用 B ##ER ##T 模 型 。 The weather , isn ' t un ##believ "
    )
    tokens += "##able ! ( see ) 3 . 5 кто - то ## \x1b"
    path = tmp_path / "vocab.txt"
    path.write_text(tokens.replace(" ", "\n") + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    return _load(path)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("用 B ##ER ##T 模 型 。", "用BERT模型。"),
        ("The weather , isn ' t un ##believ ##able !", "The weather, isn't unbelievable!"),
        ("The ( weather ) .", "The (weather)."),
        ("кто - то", "кто-то"),
        ("weather 用 weather", "weather用weather"),
        ("The ## 3", "The ##3"),
    ],
)
def test_wordpieces_are_joined_with_natural_spaces(wordpiece, tokens: str, text: str) -> None:
    ids = [wordpiece.vocab.index(token) for token in tokens.split()]
    assert _joined(TokenText(wordpiece).spaced(ids)) == text


def test_single_wordpiece_keeps_its_mark(wordpiece) -> None:
    texts = TokenText(wordpiece)
    assert texts.alone(wordpiece.vocab.index("##able")) == "##able"
    assert texts.alone(wordpiece.vocab.index("\x1b")) == "\\x1b"
    assert texts.alone(4) == "[MASK]"


def test_spaces_are_only_between_latin_words() -> None:
    assert space_between("small", "model")
    assert not space_between("", "model") and not space_between("small", "")
    assert not space_between("春", "model") and not space_between("ok", "。")
    assert not space_between("(", "see") and not space_between("see", ")")


@pytest.mark.parametrize("text", [*SENTENCES[:3], *ENGLISH, *RUSSIAN])
def test_sentencepiece_tokens_give_the_original_text(spiece_file, text: str) -> None:
    tokenizer = _load(spiece_file)
    texts = TokenText(tokenizer)
    words = texts.spaced(tokenizer.tokenize(text).ids.tolist())
    assert _joined(words) == unicodedata.normalize("NFKC", text)


@pytest.mark.parametrize("text", [*SENTENCES, *ENGLISH, *RUSSIAN])
def test_byte_level_tokens_give_the_original_text(bpe_file, text: str) -> None:
    tokenizer = _load(bpe_file)
    words = TokenText(tokenizer).spaced(tokenizer.tokenize(text).ids.tolist())
    assert _joined(words) == text


def test_character_bytes_are_not_joined_across_a_masked_position(bpe_file) -> None:
    tokenizer = _load(bpe_file)
    texts = TokenText(tokenizer)
    # 龘 has three bytes, which no merge joins.
    ids = tokenizer.tokenize("a龘b").ids.tolist()
    assert len(ids) == 5
    assert _joined(texts.spaced(ids)) == "a龘b"
    assert [texts.alone(token) for token in ids] == ["a", "\\xe9", "\\xbe", "\\x98", "b"]
    apart = [word.text for word in texts.spaced(ids, {2})]
    assert apart == ["a", "\\xe9", "\\xbe", "\\x98", "b"]


def test_byte_letters_cover_all_bytes() -> None:
    letters = token_text.byte_letters()
    assert sorted(letters.values()) == list(range(256))
    assert letters["a"] == ord("a") and letters["Ġ"] == ord(" ") and letters["Ċ"] == 10


def test_wordpiece_in_a_tokenizer_json_is_joined(tmp_path) -> None:
    vocab = {token: index for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])}
    vocab |= {"[MASK]": 4, "un": 5, "##able": 6}
    path = tmp_path / "tokenizer.json"
    FastTokenizer(models.WordPiece(vocab, unk_token="[UNK]")).save(str(path))
    assert json.loads(path.read_text())["model"]["type"] == "WordPiece"
    tokenizer = _load(path)
    assert token_text.find_marks(tokenizer) is Marks.PIECE
    assert _joined(TokenText(tokenizer).spaced([5, 6])) == "unable"


def test_marks_are_detected_for_each_kind_of_tokenizer(wordpiece, spiece_file, bpe_file) -> None:
    assert token_text.find_marks(wordpiece) is Marks.PIECE
    assert token_text.find_marks(_load(spiece_file)) is Marks.SPACE
    assert token_text.find_marks(_load(bpe_file)) is Marks.BYTES
