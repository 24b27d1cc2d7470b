"""Tests of the settings next to a `vocab.txt` that change tokens: they are applied or errors."""

import itertools
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, normalizers, pre_tokenizers

from pipeline.base.errors import InputError
from pipeline.tokenizers import segmenters
from pipeline.tokenizers.loading import load_tokenizer, read_vocab_info
from pipeline.tokenizers.tokens import Tokenizer
from tests.conftest import SPECIAL

# Tokens that depend on the settings of lower-casing, accents and Chinese characters.
_TOKENS = [
    *("й", "и", "##й", "##и", "ё", "е", "##е", "мо", "##мо"),
    *("é", "e", "##e", "caf", "##é", "A", "a", "B", "b", "##b", "##B"),
    *("한", "ᄒ", "##ᅡ", "##ᆫ", "か", "が", "##が", "##か"),
    *("河", "##河", "边", "##边", "河边", "##河边"),
    *("[", "]", ",", ".", "abstract", "[abstract]", "lol", "##lol", "x", "##x", "##lips"),
]
_VOCAB = [*SPECIAL, *_TOKENS]
# Texts with these letters and a few others.
_TEXT = st.lists(
    st.one_of(
        st.sampled_from([*"йиЙёЁеéEeAaBb한か가が河边x ,.[]\t\u3000\x85\u200b\ufffd\x00İßﬁ㍿"]),
        st.sampled_from([" [abstract] ", "[abstract]", " lol ", "LOL", "и\u0306", "e\u0301", "\n"]),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=24,
).map("".join)


def _folder(path: pathlib.Path, vocab: list[str] = _VOCAB, **settings: Any) -> pathlib.Path:
    path.mkdir(exist_ok=True)
    (path / "vocab.txt").write_bytes(("\n".join(vocab) + "\n").encode())
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


def _load(path: pathlib.Path, vocab: list[str] = _VOCAB, **settings: Any) -> Tokenizer:
    return load_tokenizer(_folder(path, vocab, **settings), do_lower_case=None)


def _pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.vocab[index] for index in tokenizer.tokenize(text).ids]


def _again(tokenizer: Tokenizer, path: pathlib.Path) -> Tokenizer:
    """Returns the tokenizer loaded from the files that a student gets."""
    path.mkdir()
    for name, content in tokenizer.files().items():
        (path / name).write_bytes(content)
    return load_tokenizer(path, do_lower_case=None)


@pytest.mark.parametrize(
    ("settings", "text", "pieces"),
    [
        ({"do_lower_case": True}, "Й café 한 が", "и caf ##e ᄒ ##ᅡ ##ᆫ か"),
        ({"do_lower_case": True, "strip_accents": False}, "Й café 한 が", "й caf ##é 한 が"),
        ({"do_lower_case": "true", "strip_accents": "False"}, "Й café", "й caf ##é"),
        ({"do_lower_case": "false"}, "A é Й", "A é [UNK]"),
        ({"do_lower_case": False, "strip_accents": True}, "й A", "и A"),
        ({"do_lower_case": False, "tokenize_chinese_chars": False}, "河边b", "河边 ##b"),
        ({"do_lower_case": False}, "河边b", "河 边 b"),
        ({"do_lower_case": False, "never_split": ["[abstract]"]}, "[abstract] a", "[abstract] a"),
        ({"do_lower_case": False}, "[abstract] a", "[ abstract ] a"),
        ({"do_lower_case": True, "never_split": ["lol"]}, "lol, lollips", "lol , lol ##lips"),
        ({"do_lower_case": False, "do_basic_tokenize": False}, "河边 A,b a", "河边 [UNK] a"),
    ],
)
def test_settings_change_tokens_as_documented(
    settings: dict, text: str, pieces: str, tmp_path
) -> None:
    tokenizer = _load(tmp_path / "given", **settings)
    assert _pieces(tokenizer, text) == pieces.split()
    again = _again(tokenizer, tmp_path / "student")
    assert _pieces(again, text) == pieces.split()
    assert again.info == tokenizer.info == read_vocab_info(tmp_path / "given" / "vocab.txt")
    assert (again.special_ids, again.options) == (tokenizer.special_ids, tokenizer.options)


def test_a_token_that_is_not_split_is_a_word_that_may_be_masked(tmp_path) -> None:
    tokenizer = _load(tmp_path, never_split=["[abstract]", "[MASK]", "[UNK]"])
    text = "ab [abstract]x[MASK]"
    result = tokenizer.tokenize(text)
    index = _VOCAB.index("[abstract]")
    position = result.ids.tolist().index(index)
    assert (result.starts[position], result.ends[position]) == (3, 13)
    starts = segmenters.word_starts(text, result, segmenters.SEGMENTERS["whitespace"])
    assert starts[position] and starts[position + 1] and not tokenizer.is_special()[index]
    assert tokenizer.special_ids["mask"] not in result.ids


def test_ordinary_settings_change_nothing(vocab_file, tmp_path) -> None:
    """These are the settings that transformers writes for every BERT."""
    content = vocab_file.read_text(encoding="utf-8").split("\n")[:-1]
    listed = {
        str(index): {"content": token, "lstrip": False, "special": True}
        for index, token in enumerate(SPECIAL)
    }
    full = {
        **{f"{token[1:-1].lower()}_token": token for token in SPECIAL},
        "unk_token": {"content": "[UNK]", "__type": "AddedToken"},
        "added_tokens_decoder": listed,
        "clean_up_tokenization_spaces": True,
        "do_basic_tokenize": True,
        "model_max_length": 10**30,
        "never_split": None,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "tokenizer_class": "DistilBertTokenizerFast",
        "clean_text": True,
        "wordpieces_prefix": "##",
        "max_input_chars_per_word": 100,
    }
    tokenizer = _load(tmp_path / "full", content, do_lower_case=True, **full)
    plain = _load(tmp_path / "plain", content, do_lower_case=True)
    assert tokenizer.files() == plain.files() and not tokenizer.notes
    assert plain.options == {}


@pytest.mark.parametrize(
    ("settings", "received"),
    [
        ({"do_lower_case": 1}, "1"),
        ({"do_lower_case": "yes"}, "'yes'"),
        ({"strip_accents": []}, "[]"),
        ({"tokenize_chinese_chars": 0}, "0"),
        ({"do_basic_tokenize": "no"}, "'no'"),
        ({"clean_text": False}, "False"),
        ({"max_input_chars_per_word": 50}, "50"),
        ({"word_tokenizer_type": "mecab"}, "'mecab'"),
        ({"subword_tokenizer_type": "character"}, "'character'"),
        ({"mecab_kwargs": {"mecab_dic": "ipadic"}}, "{'mecab_dic': 'ipadic'}"),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "'BertJapaneseTokenizer'"),
        ({"tokenizer_class": "RoFormerTokenizer"}, "'RoFormerTokenizer'"),
        ({"never_split": "[abstract]"}, "'[abstract]'"),
        ({"never_split": ["[abstract]", "[claim]"]}, "'[claim]'"),
        ({"mask_token": "<mask>"}, "'<mask>'"),
        ({"cls_token": {"content": "<s>"}}, "'<s>'"),
        ({"sep_token": 3}, "3"),
        ({"added_tokens_decoder": [1]}, "[1]"),
        ({"added_tokens_decoder": {"x": {"content": "a"}}}, "'x'"),
        ({"added_tokens_decoder": {"-1": {"content": "a"}}}, "'-1'"),
        ({"added_tokens_decoder": {"7": {"content": 1}}}, "1"),
        ({"added_tokens_decoder": {"7": {"content": "y"}}}, "'##й'"),
    ],
)
def test_settings_that_are_not_supported_are_refused(
    settings: dict, received: str, tmp_path
) -> None:
    with pytest.raises(InputError) as error:
        _load(tmp_path, **settings)
    assert str(tmp_path) in error.value.subject
    assert error.value.received == received
    key = next(iter(settings))
    assert key in error.value.subject or "added" in key


def test_the_tokenizer_class_is_read_from_the_models_settings(tmp_path) -> None:
    _folder(tmp_path)
    (tmp_path / "config.json").write_text('{"tokenizer_class": "BertJapaneseTokenizer"}')
    with pytest.raises(InputError) as error:
        load_tokenizer(tmp_path, do_lower_case=None)
    assert error.value.subject == f"{tmp_path / 'config.json'}: tokenizer_class"
    # A tokenizer.json needs no dictionary.
    _write_fast(tmp_path, lowercase=False)
    load_tokenizer(tmp_path / "tokenizer.json", do_lower_case=None)


def test_special_tokens_are_named_by_either_file(tmp_path) -> None:
    vocab = ["<pad>", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<mask>", "a"]
    _folder(tmp_path, vocab)
    named = {"mask_token": "<mask>", "pad_token": {"content": "<pad>"}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    tokenizer = load_tokenizer(tmp_path, do_lower_case=None)
    assert (tokenizer.special_ids["mask"], tokenizer.special_ids["pad"]) == (6, 0)
    # The settings of the tokenizer take precedence over the older file.
    _folder(tmp_path, vocab, mask_token="[MASK]")
    assert load_tokenizer(tmp_path, do_lower_case=None).special_ids["mask"] == 5


def _write_added(path: pathlib.Path, tokens: dict[str, int]) -> None:
    (path / "added_tokens.json").write_text(json.dumps(tokens), encoding="utf-8")


def test_added_tokens_follow_the_vocabulary(tmp_path) -> None:
    size = len(_VOCAB)
    given = _folder(tmp_path / "given", do_lower_case=False, additional_special_tokens=["<ent>"])
    _write_added(
        given, {"covid": size + 1, "<ent>": size, "[abstract]": _VOCAB.index("[abstract]")}
    )
    tokenizer = load_tokenizer(given, do_lower_case=None)
    assert tokenizer.vocab == (*_VOCAB, "<ent>", "covid")
    # Added tokens are never split, even inside longer words.
    text = "a covid[abstract] <ent> xcovid19"
    assert _pieces(tokenizer, text) == ["a", "covid", "[abstract]", "<ent>", "x", "covid", "[UNK]"]
    assert np.flatnonzero(tokenizer.is_special()).tolist() == [0, 1, 2, 3, 4, size]
    assert read_vocab_info(given / "vocab.txt") == tokenizer.info
    assert _again(tokenizer, tmp_path / "student") == tokenizer
    assert "covid" not in (tmp_path / "student" / "vocab.txt").read_text()


@pytest.mark.parametrize(
    "added",
    [
        {"new": len(_VOCAB) + 1},
        {"new": len(_VOCAB), "other": len(_VOCAB)},
        {"abstract": len(_VOCAB)},
        {"new": 7},
        {"new": True},
        {"new": 1.5},
        {"": len(_VOCAB)},
        {"\ud800": len(_VOCAB)},
    ],
)
def test_added_tokens_with_gaps_or_twice_are_refused(added: dict, tmp_path) -> None:
    _folder(tmp_path)
    _write_added(tmp_path, added)
    with pytest.raises(InputError) as error:
        load_tokenizer(tmp_path, do_lower_case=None)
    assert str(tmp_path) in error.value.subject
    with pytest.raises(InputError):
        read_vocab_info(tmp_path / "vocab.txt")


def test_added_tokens_require_a_vocabulary_without_duplicates(tmp_path) -> None:
    vocab = [*_VOCAB, "x"]
    _folder(tmp_path, vocab)
    load_tokenizer(tmp_path, do_lower_case=None)
    _write_added(tmp_path, {"new": len(vocab)})
    with pytest.raises(InputError) as error:
        load_tokenizer(tmp_path, do_lower_case=None)
    assert error.value.subject == str(tmp_path / "vocab.txt")


def test_a_tokenizer_json_must_have_all_added_tokens(olmo_file, tmp_path) -> None:
    content = olmo_file.read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(content)
    size = len(load_tokenizer(olmo_file, do_lower_case=None).vocab)
    _write_added(tmp_path, {"[unused0]": size - 1})
    load_tokenizer(tmp_path, do_lower_case=None)
    _write_added(tmp_path, {"[unused1]": size})
    with pytest.raises(InputError) as error:
        load_tokenizer(tmp_path, do_lower_case=None)
    assert str(size) in error.value.expected and error.value.hint is not None


def _write_fast(path: pathlib.Path, **normalizer: Any) -> None:
    """Writes a `tokenizer.json` of BERT with settings of its normalizer."""
    ids = {token: index for index, token in enumerate(_VOCAB)}
    fast = FastTokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(**normalizer)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.add_special_tokens(list(SPECIAL))
    fast.save(str(path / "tokenizer.json"))


@pytest.mark.parametrize(
    ("settings", "pieces"),
    [
        ({}, "é 河 边 A"),
        ({"do_lower_case": True}, "e 河 边 a"),
        ({"do_lower_case": "true", "strip_accents": False}, "é 河 边 a"),
        ({"tokenize_chinese_chars": False}, "é 河边 A"),
        # For the general class, the settings in the file apply.
        ({"do_lower_case": True, "tokenizer_class": "PreTrainedTokenizerFast"}, "é 河 边 A"),
    ],
)
def test_settings_change_a_tokenizer_json_of_bert(settings: dict, pieces: str, tmp_path) -> None:
    """The result is that of transformers; without settings the file does not change."""
    _write_fast(_folder(tmp_path, **settings), lowercase=False)
    given = tmp_path / "tokenizer.json"
    tokenizer = load_tokenizer(given, do_lower_case=None)
    assert _pieces(tokenizer, "é 河边 A") == pieces.split()
    is_same = tokenizer.files()["tokenizer.json"] == given.read_bytes()
    assert is_same is (pieces == "é 河 边 A")
    assert _pieces(_again(tokenizer, tmp_path / "student"), "é 河边 A") == pieces.split()


_WORDS = [f"{letter}{number}" for letter in "abc" for number in range(30)]


@pytest.mark.parametrize(
    ("words", "flag", "lower", "strip", "num_notes"),
    [
        # Nothing indicates case or accents.
        (_WORDS, None, True, None, 0),
        (_WORDS, False, False, None, 0),
        # A vocabulary with capital letters is cased.
        ([*_WORDS, "Abc", "##Й"], None, False, None, 1),
        ([*_WORDS, "Abc"], True, True, None, 1),
        ([*_WORDS, "Abc"], False, False, None, 0),
        # If the vocabulary has accents, lower-casing does not strip them.
        ([*_WORDS, "чай"], None, True, False, 1),
        ([*_WORDS, "чай"], True, True, False, 1),
        ([*_WORDS, "чай"], False, False, None, 0),
        ([*_WORDS, "한"], None, True, False, 1),
        # Special tokens and single exceptions do not count.
        ([*_WORDS, "[NEW]", "<S>", "[unused9]"], None, True, None, 0),
        ([*_WORDS, *(f"d{n}" for n in range(120)), "A"], None, True, None, 0),
    ],
)
def test_a_cased_vocabulary_without_settings_is_recognized(
    words: list[str], flag: bool | None, lower: bool, strip: bool | None, num_notes: int, tmp_path
) -> None:
    (tmp_path / "vocab.txt").write_bytes("\n".join([*SPECIAL, *words]).encode())
    tokenizer = load_tokenizer(tmp_path, do_lower_case=flag)
    assert tokenizer.do_lower_case is lower
    assert tokenizer.options == ({} if strip is None else {"strip_accents": strip})
    assert len(tokenizer.notes) == num_notes
    again = _again(tokenizer, tmp_path / "student")
    assert (again.do_lower_case, again.options) == (lower, tokenizer.options)


@pytest.mark.parametrize("word", ["Abc", "чай"])
def test_a_note_names_settings_that_leave_tokens_unused(word: str, tmp_path) -> None:
    tokenizer = _load(tmp_path, [*SPECIAL, *_WORDS, word], do_lower_case=True)
    assert tokenizer.do_lower_case and tokenizer.options == {}
    assert len(tokenizer.notes) == 1


def test_do_lower_case_contradicts_do_basic_tokenize_false(tmp_path) -> None:
    _folder(tmp_path, do_basic_tokenize=False)
    assert load_tokenizer(tmp_path, do_lower_case=False).do_lower_case is None
    with pytest.raises(InputError) as error:
        load_tokenizer(tmp_path, do_lower_case=True)
    assert error.value.subject == "do_lower_case"
    _folder(tmp_path, [*_VOCAB, "x"], do_basic_tokenize=False)
    with pytest.raises(InputError) as error:
        load_tokenizer(tmp_path, do_lower_case=None)
    assert error.value.subject.endswith("do_basic_tokenize")


_COMBINATIONS = list(itertools.product((True, False), (None, True, False), (True, False)))


@pytest.fixture(scope="module", params=_COMBINATIONS, ids=str)
def peers(request, tmp_path_factory):
    """For some settings: our tokenizer, that of transformers, and that of a student's files."""
    from transformers import AutoTokenizer, BertTokenizer

    lower, strip, chinese = request.param
    settings = {"strip_accents": strip, "tokenize_chinese_chars": chinese}
    folder = _folder(tmp_path_factory.mktemp("peers"), do_lower_case=lower, **settings)
    ours = load_tokenizer(folder, do_lower_case=None)
    student = tmp_path_factory.mktemp("student")
    for name, content in ours.files().items():
        (student / name).write_bytes(content)
    return ours, BertTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(student)


# MPNet's tokens: BERT's vocabulary with MPNet's special tokens; both have the same [UNK].
_MPNET_VOCAB = ["<s>", "<pad>", "</s>", "<unk>", *_VOCAB, "<mask>"]
_MPNET_IDS = {"pad": 1, "unk": 5, "cls": 0, "sep": 2, "mask": len(_MPNET_VOCAB) - 1}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("config.json", {"model_type": "mpnet"}),
        ("tokenizer_config.json", {"tokenizer_class": "MPNetTokenizer"}),
        ("special_tokens_map.json", {"cls_token": "<s>", "sep_token": "</s>"}),
    ],
)
def test_mpnet_has_its_own_special_tokens(tmp_path, name: str, settings: dict) -> None:
    folder = _folder(tmp_path / "model", _MPNET_VOCAB)
    if name == "special_tokens_map.json":
        settings = settings | {"pad_token": "<pad>", "mask_token": "<mask>"}
    (folder / name).write_text(json.dumps(settings))
    loaded = load_tokenizer(folder, do_lower_case=None)
    assert loaded.special_ids == _MPNET_IDS
    assert _again(loaded, tmp_path / "student").special_ids == _MPNET_IDS


@pytest.mark.peers
def test_mpnets_tokens_equal_those_of_transformers(tmp_path) -> None:
    from transformers import AutoTokenizer, MPNetTokenizer

    folder = _folder(tmp_path / "model", _MPNET_VOCAB, do_lower_case=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "mpnet"}))
    ours = load_tokenizer(folder, do_lower_case=None)
    student = tmp_path / "student"
    _again(ours, student)
    (student / "config.json").write_text(json.dumps({"model_type": "mpnet"}))
    for path in (folder, student):
        peer = AutoTokenizer.from_pretrained(path)
        assert isinstance(peer, MPNetTokenizer)
        assert {name: getattr(peer, f"{name}_token_id") for name in _MPNET_IDS} == _MPNET_IDS
        text = "Café 河边 abx"
        assert peer.encode(text, add_special_tokens=False) == ours.tokenize(text).ids.tolist()
        ids = peer("a", "b")
        assert ids["input_ids"].count(_MPNET_IDS["sep"]) == 3
        assert "token_type_ids" not in ids


@pytest.mark.peers
@given(_TEXT)
def test_tokens_equal_those_of_transformers(peers, text: str) -> None:
    ours, *theirs = peers
    expected = ours.tokenize(text).ids.tolist()
    for peer in theirs:
        assert peer.encode(text, add_special_tokens=False) == expected


@pytest.mark.peers
@pytest.mark.parametrize(("lower", "strip", "chinese"), _COMBINATIONS)
def test_a_tokenizer_json_gives_the_tokens_of_transformers(
    lower: bool, strip: bool | None, chinese: bool, tmp_path
) -> None:
    from transformers import AutoTokenizer

    settings = {"do_lower_case": lower, "strip_accents": strip, "tokenize_chinese_chars": chinese}
    folder = _folder(tmp_path, tokenizer_class="BertTokenizerFast", **settings)
    _write_fast(folder, lowercase=False, strip_accents=strip, handle_chinese_chars=True)
    (folder / "vocab.txt").unlink()
    ours, theirs = load_tokenizer(folder, do_lower_case=None), AutoTokenizer.from_pretrained(folder)
    for text in ("Й café 한 が", "河边b A B é", "abstract [ x ] ЁЁ йи"):
        expected = theirs.encode(text, add_special_tokens=False)
        assert ours.tokenize(text).ids.tolist() == expected, text


@pytest.fixture(scope="module", params=["never_split", "do_basic_tokenize", "added"])
def slow_peers(request, tmp_path_factory):
    """The same tokenizers, for settings that only the older Python tokenizer supports."""
    from transformers import AutoTokenizer
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    settings = {
        "never_split": {"never_split": ["[abstract]", "lol"], "do_lower_case": True},
        "do_basic_tokenize": {"do_basic_tokenize": False, "do_lower_case": False},
        "added": {"do_lower_case": False},
    }[request.param]
    folder = _folder(tmp_path_factory.mktemp("peers"), **settings)
    if request.param == "added":
        _write_added(folder, {"covid": len(_VOCAB)})
    ours = load_tokenizer(folder, do_lower_case=None)
    student = tmp_path_factory.mktemp("student")
    for name, content in ours.files().items():
        (student / name).write_bytes(content)
    theirs = BertTokenizerLegacy.from_pretrained(folder)
    return ours, theirs, AutoTokenizer.from_pretrained(student)


@pytest.mark.peers
@given(
    st.lists(
        st.sampled_from(["[abstract]", "lol", "a", "B", "河边", "河", "covid", "x", "abstract"]),
        max_size=9,
    ).map(" ".join)
)
def test_tokens_equal_those_of_the_older_tokenizer(slow_peers, text: str) -> None:
    ours, *theirs = slow_peers
    expected = ours.tokenize(text).ids.tolist()
    for peer in theirs:
        assert peer.encode(text, add_special_tokens=False) == expected
