"""Tests of SentencePiece and byte-level BPE tokenizers, which are trained by fixtures."""

import json
import pathlib
import re
import unicodedata

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import pre_tokenizers

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.tokenizers import segmenters, tokens
from pipeline.tokenizers.loading import load_tokenizer, read_vocab_info, tokenizer_files
from tests.conftest import ENGLISH, LINES, train_fairseq

SHARED = Location.parse(pathlib.Path(__file__).parents[3] / "shared")
TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("今天天气很好，。Hello unbelievable, мир привет\n\t  ㍿ﬁéİ𝕏▁Ġ[]<>"),
    ),
    max_size=60,
)


_FILES = ["spiece_file", "bpe_file", "xlm_roberta_file", "gemma_file", "olmo_file"]
_FILES += ["camembert_file"]


@pytest.fixture(scope="module", params=_FILES)
def tokenizer(request) -> tokens.Tokenizer:
    """Each tokenizer in turn."""
    path = request.getfixturevalue(request.param)
    return load_tokenizer(path, do_lower_case=None)


def _write(tokenizer: tokens.Tokenizer, folder: pathlib.Path) -> None:
    """Writes the files of a tokenizer and the settings of a model that may use it."""
    files = tokenizer.files()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    model_type = "xlm-roberta" if "sentencepiece.bpe.model" in files else "bert"
    model_type = "camembert" if "<s>NOTUSED" in tokenizer.vocab else model_type
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))


def _spaceless(text: str) -> str:
    return "".join(text.split())


@given(TEXT)
@example("▁")
@example("a▁▁ b▁")
def test_every_token_has_the_span_of_its_text(tokenizer, text: str) -> None:
    result = tokenizer.tokenize(text)
    assert len(result.ids) == len(result.starts) == len(result.ends) == len(result.word_ids)
    assert (result.starts <= result.ends).all() and (result.ends <= len(text)).all()
    assert (np.diff(result.starts) >= 0).all() and (np.diff(result.word_ids) >= 0).all()
    covered = np.zeros(len(text), bool)
    for index, start, end in zip(result.ids, result.starts, result.ends, strict=True):
        covered[start:end] = True
        assert start == end or not text[start].isspace()
        _expect_same_text(tokenizer.vocab[index], text[start:end])
    left_out = {char for char, is_covered in zip(text, covered, strict=True) if not is_covered}
    # Spaces, including SentencePiece's ▁, and invisible characters, which a normalizer drops.
    assert all(
        char in "▁" or char.isspace() or unicodedata.category(char) in ("Cc", "Cf", "Mn")
        for char in left_out
    )


def _expect_same_text(token: str, span: str) -> None:
    """Checks that a token is the text of its span, or a part of a character in it."""
    if token in ("[UNK]", "<unk>"):
        return
    if byte := re.fullmatch("<0x([0-9A-F]{2})>", token):
        # The span of a space is empty.
        assert not span or bytes.fromhex(byte[1]) in span.encode("utf-8")
        return
    if set(token) <= set(pre_tokenizers.ByteLevel.alphabet()):
        decoded = _bytes_of(token).strip()
        whole = span.encode("utf-8")
        if decoded in whole:
            return
    plain = token.replace("▁", "")
    normal = _spaceless(unicodedata.normalize("NFKC", span))
    assert plain in normal or normal in plain, (token, span)


def _bytes_of(token: str) -> bytes:
    """Returns the bytes of a token of byte-level BPE.

    Its alphabet has printable bytes as they are, and the others as characters from U+0100.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    table.update({chr(256 + number): byte for number, byte in enumerate(others)})
    return bytes(table[char] for char in token)


@given(TEXT)
def test_no_text_becomes_a_special_token_but_unk(tokenizer, text: str) -> None:
    special = set(tokenizer.special_ids.values()) - {tokenizer.special_ids["unk"]}
    text += "[MASK] [CLS] <mask> <s> </s>"
    assert not special & set(tokenizer.tokenize(text).ids.tolist())


@given(TEXT)
def test_no_word_begins_within_a_character(tokenizer, text: str) -> None:
    result = tokenizer.tokenize(text)
    starts = segmenters.word_starts(text, result, segmenters.SEGMENTERS["jieba"])
    assert starts.shape == result.ids.shape
    if len(starts):
        assert starts[0]
        same_word = result.word_ids[1:] == result.word_ids[:-1]
        within_character = (result.starts[1:] < result.ends[:-1]) & same_word
        assert not (starts[1:] & within_character).any()


def _words(tokenizer: tokens.Tokenizer, text: str) -> list[str]:
    result = tokenizer.tokenize(text)
    starts = segmenters.word_starts(text, result, segmenters.SEGMENTERS["jieba"])
    groups = np.split(np.arange(len(starts)), np.flatnonzero(starts)[1:])
    return [text[result.starts[group].min() : result.ends[group].max()] for group in groups]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("今天天气很好，我们读书。", ["今天天气", "很", "好", "，", "我们", "读书", "。"]),
        (
            "Hello, unbelievable weather!",
            ["Hello", ",", "unbelievable", "weather", "!"],
        ),
        ("Привет, неописуемая погода.", ["Привет", ",", "неописуемая", "погода", "."]),
    ],
)
def test_whole_words_are_found_in_three_languages(tokenizer, text: str, words: list[str]) -> None:
    assert _words(tokenizer, text) == words


def test_all_pieces_of_a_character_have_its_span(spiece_file) -> None:
    tokenizer = load_tokenizer(spiece_file, do_lower_case=None)
    text = "the ﬁ…"
    result = tokenizer.tokenize(text)
    spans = [text[start:end] for start, end in zip(result.starts, result.ends, strict=True)]
    # A … becomes three dots, and an ﬁ becomes two letters.
    assert spans.count("…") + spans.count("ﬁ") >= 3 and set(spans) <= {"", "the", "ﬁ", "…"}
    starts = segmenters.word_starts(text, result, segmenters.SEGMENTERS["jieba"])
    dots = [start for start, span in zip(starts, spans, strict=True) if span == "…"]
    assert not any(dots[1:])


def test_special_ids_are_those_of_the_vocabulary(spiece_file, bpe_file) -> None:
    spiece = load_tokenizer(spiece_file, do_lower_case=None)
    names = {name: spiece.vocab[index] for name, index in spiece.special_ids.items()}
    assert names == {name: f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    bpe = load_tokenizer(bpe_file, do_lower_case=None)
    assert bpe.special_ids == {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 4}
    for tokenizer in (spiece, bpe):
        assert np.flatnonzero(tokenizer.is_special()).tolist() == sorted(
            tokenizer.special_ids.values()
        )


def test_special_tokens_of_gemma_and_olmo(gemma_file, olmo_file) -> None:
    """In Gemma, <s> and </s> are HTML tags, and are not split in a text, as in the library."""
    gemma = load_tokenizer(gemma_file, do_lower_case=None)
    assert gemma.special_ids == {"pad": 0, "sep": 1, "cls": 2, "unk": 3, "mask": 4}
    assert np.flatnonzero(gemma.is_special()).tolist() == [0, 1, 2, 3, 4]
    html = [gemma.vocab.index("<s>"), gemma.vocab.index("</s>")]
    assert set(html) <= set(gemma.tokenize("a <s>b</s>").ids.tolist())
    olmo = load_tokenizer(olmo_file.parent, do_lower_case=None)
    size = len(olmo.vocab)
    ids = {name: size - 6 + at for at, name in enumerate(("unk", "cls", "sep", "pad", "mask"))}
    assert olmo.special_ids == ids and olmo.vocab[-1] == "[unused0]"
    special = [0, *sorted(ids.values())]
    assert np.flatnonzero(olmo.is_special()).tolist() == special


@pytest.mark.parametrize("name", ["gemma_file", "olmo_file", "bpe_file"])
def test_tokens_of_a_tokenizer_json_equal_those_of_the_library(request, name: str) -> None:
    path = request.getfixturevalue(name)
    ours, theirs = load_tokenizer(path, do_lower_case=None), FastTokenizer.from_file(str(path))
    theirs.no_truncation()
    theirs.no_padding()
    for line in [*LINES, "雨   停 𝕏 é <i>", "two  spaces   three"]:
        expected = theirs.encode(line, add_special_tokens=False).ids
        assert ours.tokenize(line).ids.tolist() == expected, line


def test_a_long_text_is_not_cut(bpe_file) -> None:
    tokenizer = load_tokenizer(bpe_file, do_lower_case=None)
    assert tokenizer.tokenize(ENGLISH[0]).ends[-1] == len(ENGLISH[0])


def test_lower_casing_keeps_positions(spiece_file) -> None:
    lower = load_tokenizer(spiece_file, do_lower_case=True)
    assert lower.tokenize("THE weather").ids.tolist() == lower.tokenize("the weather").ids.tolist()
    # The lower case of İ has two characters. İ is not changed, so that positions stay the same.
    assert lower.tokenize("İThe").ends[-1] == 4


def test_a_directory_is_self_contained(tokenizer, tmp_path) -> None:
    _write(tokenizer, tmp_path)
    again = load_tokenizer(tmp_path, do_lower_case=None)
    for line in LINES:
        assert again.tokenize(line).ids.tolist() == tokenizer.tokenize(line).ids.tolist()
    for path in tokenizer_files(tmp_path):
        assert read_vocab_info(path) == tokenizer.info


@pytest.mark.parametrize("name", ["spiece_file", "xlm_roberta_file"])
def test_a_unigram_model_becomes_a_tokenizer_json(request, name: str) -> None:
    path = request.getfixturevalue(name)
    tokenizer = load_tokenizer(path, do_lower_case=None)
    converted = FastTokenizer.from_buffer(tokenizer.files()["tokenizer.json"])
    for line in LINES:
        expected = tokenizer.tokenize(line).ids.tolist()
        assert converted.encode(line, add_special_tokens=False).ids == expected, line
    cls, sep = tokenizer.special_ids["cls"], tokenizer.special_ids["sep"]
    pair = converted.encode("a", "b")
    # RoBERTa has two marks between the texts, and no segments.
    is_bert = name == "spiece_file"
    assert pair.ids.count(sep) == (2 if is_bert else 3)
    assert set(pair.type_ids) == ({0, 1} if is_bert else {0})
    assert converted.encode("a").ids[0] == cls


def test_xlm_roberta_numbers_tokens_as_fairseq(xlm_roberta_file) -> None:
    """Ids 0 to 3 are fairseq's, later pieces have their index plus 1, and the mask is last."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(xlm_roberta_file))
    size = pieces.get_piece_size()
    for path in (xlm_roberta_file, xlm_roberta_file.parent):
        loaded = load_tokenizer(path, do_lower_case=None)
        assert len(loaded.vocab) == size + 2
        assert loaded.vocab[:5] == ("<s>", "<pad>", "</s>", "<unk>", pieces.id_to_piece(3))
        assert loaded.vocab[-2:] == (pieces.id_to_piece(size - 1), "<mask>")
        assert loaded.special_ids == {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": size + 1}
        assert np.flatnonzero(loaded.is_special()).tolist() == [0, 1, 2, 3, size + 1]
        for line in [*LINES, "螺丝 Ω ≠ <s> <mask>"]:
            indices = pieces.encode(line)
            expected = [index + 1 if index >= 3 else (3, 0, 2)[index] for index in indices]
            assert loaded.tokenize(line).ids.tolist() == expected, line
    assert 3 in expected
    assert read_vocab_info(xlm_roberta_file) == loaded.info


def test_camembert_has_the_token_ids_of_fairseq(camembert_file) -> None:
    """Each piece after the first has its index plus 4, and the mask is last."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(camembert_file))
    size = pieces.get_piece_size()
    loaded = load_tokenizer(camembert_file, do_lower_case=None)
    first = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>")
    assert loaded.vocab[:7] == first and loaded.vocab[7] == pieces.id_to_piece(3)
    assert loaded.vocab[-2:] == (pieces.id_to_piece(size - 1), "<mask>")
    assert loaded.special_ids == {"pad": 1, "unk": 3, "cls": 5, "sep": 6, "mask": size + 4}
    assert np.flatnonzero(loaded.is_special()).tolist() == [*range(7), size + 4]
    for line in [*LINES, "螺丝 Ω ≠ <s> <mask> <s>NOTUSED"]:
        expected = [index + 4 if index else 3 for index in pieces.encode(line)]
        assert loaded.tokenize(line).ids.tolist() == expected, line
    assert 3 in expected and read_vocab_info(camembert_file) == loaded.info


@pytest.mark.parametrize("model_type", ["bert", "roberta", None])
def test_other_models_number_tokens_as_the_file_does(
    xlm_roberta_file, spiece_file, tmp_path, model_type: str | None
) -> None:
    for source in (xlm_roberta_file, spiece_file):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    if model_type is not None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(InputError) as error:
        load_tokenizer(tmp_path / xlm_roberta_file.name, do_lower_case=None)
    assert "240 tokens" in error.value.received
    assert "<pad>" in error.value.received and "<mask>" in error.value.received
    plain = load_tokenizer(spiece_file, do_lower_case=None)
    again = load_tokenizer(tmp_path, do_lower_case=None)
    assert again.info == plain.info and "spiece.model" in again.files()


def test_a_model_with_its_own_mask_keeps_its_ids(spiece_file, tmp_path) -> None:
    """This holds for any configuration, as an XLM-RoBERTa student may have such a tokenizer."""
    own = {"user_defined_symbols": ["<pad>", "<mask>"]}
    for path in (spiece_file, train_fairseq(tmp_path, **own)):
        copy = tmp_path / "spiece.model"
        copy.write_bytes(path.read_bytes())
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(copy))
        loaded = load_tokenizer(copy, do_lower_case=None)
        assert loaded.vocab == tuple(map(pieces.id_to_piece, range(len(pieces))))
        assert loaded.tokenize(LINES[0]).ids.tolist() == pieces.encode(LINES[0])


def test_an_xlm_roberta_must_be_a_unigram_model(tmp_path) -> None:
    path = train_fairseq(tmp_path, model_type="char")
    with pytest.raises(InputError) as error:
        load_tokenizer(tmp_path, do_lower_case=None)
    assert error.value.subject == str(path)
    assert "unigram" in error.value.expected and "xlm-roberta" in error.value.expected


def test_tokenizer_json_and_xlm_roberta_model_have_the_same_vocabulary(
    xlm_roberta_file, tmp_path
) -> None:
    """If both are in a directory, both files give its vocabulary."""
    ours = load_tokenizer(xlm_roberta_file, do_lower_case=None)
    _write(ours, tmp_path)
    assert load_tokenizer(tmp_path, do_lower_case=None).files().keys() == {
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert [read_vocab_info(path) for path in tokenizer_files(tmp_path)] == [ours.info] * 2


@given(TEXT)
def test_no_text_becomes_a_special_token_of_a_tokenizer_json(converted, text: str) -> None:
    """The pieces of a unigram model include special tokens, which a text may contain literally."""
    special = set(converted.special_ids.values()) - {converted.special_ids["unk"]}
    for spelled in ("<s>NOTUSED", "<mask>", "[MASK]", "<s>", "</s>", "<pad>", "[SEP]"):
        assert not special & set(converted.tokenize(text + spelled + text).ids.tolist())


@pytest.fixture(scope="module", params=["spiece_file", "xlm_roberta_file", "camembert_file"])
def converted(request, tmp_path_factory) -> tokens.Tokenizer:
    """The `tokenizer.json` that a student gets for a SentencePiece model."""
    path = request.getfixturevalue(request.param)
    loaded = load_tokenizer(path, do_lower_case=None)
    file = tmp_path_factory.mktemp("converted") / "tokenizer.json"
    file.write_bytes(loaded.files()["tokenizer.json"])
    return load_tokenizer(file, do_lower_case=None)


def test_case_is_read_from_the_models_own_settings(vocab_file, tmp_path) -> None:
    (tmp_path / "vocab.txt").write_bytes(vocab_file.read_bytes())
    for value in (True, False):
        settings = tmp_path / "tokenizer_config.json"
        settings.write_text(json.dumps({"do_lower_case": value}), encoding="utf-8")
        loaded = load_tokenizer(tmp_path, do_lower_case=None)
        assert loaded.do_lower_case is value
    settings.unlink()
    assert load_tokenizer(tmp_path, do_lower_case=None).do_lower_case


def test_settings_of_a_sentencepiece_model_are_applied_or_noted(spiece_file, tmp_path) -> None:
    (tmp_path / "spiece.model").write_bytes(spiece_file.read_bytes())

    def load(**settings) -> tokens.Tokenizer:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return load_tokenizer(tmp_path, do_lower_case=None)

    plain = load(keep_accents=True, remove_space=True, split_by_punct=False, mask_token="[MASK]")
    assert not plain.notes and plain.do_lower_case is False
    assert load(do_lower_case="true").do_lower_case is True
    for change in ({"keep_accents": False}, {"remove_space": "false"}, {"split_by_punct": True}):
        (note,) = load(**change).notes
        assert next(iter(change)) in note
    refused = (
        {"mask_token": "<mask>"},
        {"do_lower_case": "no"},
        {"added_tokens_decoder": {"3": {"content": "other"}}},
        {"added_tokens_decoder": {str(len(plain.vocab)): {"content": "other"}}},
        {"tokenizer_class": "BertJapaneseTokenizer"},
    )
    for settings in refused:
        with pytest.raises(InputError) as error:
            load(**settings)
        assert str(tmp_path) in error.value.subject


def test_invalid_tokenizers_are_refused(tmp_path, bpe_file) -> None:
    def refusal(path: Location, *, do_lower_case: bool | None = None) -> InputError:
        with pytest.raises(InputError) as error:
            load_tokenizer(path, do_lower_case=do_lower_case)
        if do_lower_case is None:
            assert error.value.subject == str(path)
        return error.value

    assert "vocab.txt" in refusal(tmp_path).expected
    model = tmp_path / "x.model"
    missing = refusal(model)
    assert (missing.expected, missing.received) == ("a SentencePiece model", "no such file")
    missing = refusal(tmp_path / "x.json")
    assert (missing.expected, missing.received) == ("a tokenizer.json", "no such file")
    model.write_text("no model")
    assert "cannot be read" in refusal(model).received
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    assert "merges" in refusal(tmp_path / "vocab.json").hint
    assert refusal(bpe_file, do_lower_case=True).subject == "do_lower_case"
    content = bpe_file.read_text(encoding="utf-8").replace("<mask>", "<blank>")
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    assert "[MASK] or <mask>" in refusal(tmp_path / "tokenizer.json").received


def test_a_huge_id_is_refused(tmp_path, bpe_file) -> None:
    content = json.loads(bpe_file.read_text(encoding="utf-8"))
    content["model"]["vocab"]["zzz"] = 2**31 - 2
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match="1 to 16777216 tokens"):
        load_tokenizer(path, do_lower_case=None)


@pytest.mark.peers
def test_transformers_reads_the_same_tokens(tokenizer, tmp_path) -> None:
    from transformers import AutoTokenizer

    _write(tokenizer, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.mask_token_id == tokenizer.special_ids["mask"]
    assert theirs.pad_token_id == tokenizer.special_ids["pad"]
    for line in LINES:
        expected = tokenizer.tokenize(line).ids.tolist()
        assert theirs.encode(line, add_special_tokens=False) == expected, line


@pytest.mark.peers
@pytest.mark.parametrize("do_lower_case", [False, True])
@pytest.mark.parametrize("family", ["xlm_roberta", "camembert"])
def test_fairseq_token_ids_equal_those_of_transformers(
    request, tmp_path, family: str, do_lower_case: bool
) -> None:
    """The tokenizer of the family is made from the same file, and from the written files."""
    import transformers
    from transformers import AutoTokenizer

    path = request.getfixturevalue(f"{family}_file")
    names = {"xlm_roberta": "XLMRobertaTokenizer", "camembert": "CamembertTokenizer"}
    tokenizer_class = getattr(transformers, names[family])
    ours = load_tokenizer(path, do_lower_case=do_lower_case)
    _write(ours, tmp_path)
    written = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(written, tokenizer_class) is not do_lower_case
    theirs = tokenizer_class.from_pretrained(path.parent)
    for peer in (theirs, written):
        assert len(peer) == len(ours.vocab)
        assert peer.convert_ids_to_tokens(list(range(len(peer)))) == list(ours.vocab)
        for name, index in ours.special_ids.items():
            assert getattr(peer, f"{name}_token_id") == index
    for line in LINES:
        expected = ours.tokenize(line).ids.tolist()
        assert written.encode(line, add_special_tokens=False) == expected, line
        lowered = line.lower() if do_lower_case else line
        assert theirs.encode(lowered, add_special_tokens=False) == expected, line
    assert written.encode("a", "b") == theirs.encode("a", "b")


@pytest.mark.peers
@pytest.mark.shared
@pytest.mark.parametrize("name", ["xlnet_en_spiece", "xlnet_zh_spiece", "cluecorpussmall_spm"])
def test_tokens_of_public_models_equal_those_of_transformers(name: str, tmp_path) -> None:
    """Ties between sequences of equal score may be broken differently, as in two lines of CLUE."""
    from transformers import AutoTokenizer

    path = SHARED / "data" / "vocab" / f"{name}.model"
    ours = load_tokenizer(path, do_lower_case=None)
    for file, content in ours.files().items():
        (tmp_path / file).write_bytes(content)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = ("en/mlm/classic_books.txt", "zh/mlm/reviews.txt", "ru/mlm/dialogues_anekdots.txt")
    lines = [
        line
        for text in texts
        for line in (SHARED / "data" / text).read_text(encoding="utf-8")[:100_000].splitlines()
        if line.strip()
    ]
    differing = [
        line
        for line in lines
        if theirs.encode(line, add_special_tokens=False) != ours.tokenize(line).ids.tolist()
    ]
    assert len(differing) <= len(lines) // 200
