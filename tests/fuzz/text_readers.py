"""Readers of corpora, of tokenizer files and of declarations that are fuzzed."""

import functools
import gzip
import io
import json
import pathlib
import re
from typing import Any

import numpy as np

from data_specs import corpora as corpus_specs
from data_specs.corpora import CorpusSource, CorpusSpec
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.corpora import cleaning, corpus
from pipeline.corpora.documents import Corpus
from pipeline.corpora.readers import FILES, READERS
from pipeline.corpora.readers.base import find_files
from pipeline.tokenizers import loading
from tests.conftest import BERT_PIECES
from tests.corpora import written
from tests.fuzz.checking import Reader
from tests.fuzz.mutation import (
    Below,
    Mutate,
    mutate_bytes,
    mutate_gzip,
    mutate_json,
    mutate_json_lines,
)
from tests.fuzz.storage_readers import TOKENS

_TEXT = "第一行，第二行。\n<b>Some</b> &amp; text {x} [id1|Имя] = = T = =\n\n一二三四五。\n  三\n"
_SAMPLE = "一二三, the small model [MASK] <mask> a\u0301 \U0001f600 ab"


def _write(folder: pathlib.Path, name: str, content: bytes | str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def _rows(*, lines: bool) -> str:
    rows = [{"title": f"题{n}", "content": f"内容 {n} <br> b", "n": n} for n in range(4)]
    if lines:
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return json.dumps(rows)


def _read_corpus(folder: pathlib.Path, file: str, spec: CorpusSpec) -> object:
    path = Location.parse(str(folder / file), "input_dir")
    files = FILES.select(find_files(path, corpus=Corpus(spec=spec)))
    return [
        corpus.document_text(document)
        for block in corpus.read_blocks(files)
        for document in block.documents
    ]


def _corpus_readers() -> list[Reader]:
    specs = {
        "plain": CorpusSpec(),
        "cleaned": CorpusSpec(cleaning=tuple(cleaning.STEPS)),
        "lines": CorpusSpec(documents="lines", lines_per_document=2),
        "starts": CorpusSpec(documents="starts", document_start="第|= ="),
        "files": CorpusSpec(documents="files"),
    }
    contents: list[tuple[str, str, bytes, Any]] = [
        (name, "a.txt", _TEXT.encode(), mutate_bytes) for name in specs
    ]
    zipped = gzip.compress(_rows(lines=True).encode(), mtime=0)
    contents += [
        ("rows", "a.jsonl", _rows(lines=True).encode(), mutate_json_lines),
        ("array", "a.json", _rows(lines=False).encode(), mutate_json),
        ("gzip", "a.jsonl.gz", zipped, mutate_gzip),
        ("utf-16", "a.txt", _TEXT.encode("utf-16"), mutate_bytes),
        ("tar", "a.tar", written.tar({"a.txt": _TEXT.encode(), "b.gz": zipped}), mutate_bytes),
    ]
    specs |= {name: CorpusSpec(text_fields=("text",)) for name in written.FORMATS}
    contents += [
        (name, f"a.{name}", make(["one", "二", 'three "3"\n, x']), mutate_bytes)
        for name, make in written.FORMATS.items()
        if name not in ("txt", "json", "jsonl")
    ]
    contents += [
        (suffix, f"a.txt{suffix}", pack(_TEXT.encode()), mutate_bytes)
        for suffix, pack in written.COMPRESSORS.items()
        if suffix not in ("", ".gz")
    ]
    return [
        *(
            Reader(
                f"corpus, {name}",
                file,
                mutate,
                functools.partial(_read_corpus, file=file, spec=specs.get(name, CorpusSpec())),
                functools.partial(_write, name=file, content=content),
                ("--input_dir",),
            )
            for name, file, content, mutate in contents
        ),
        *(
            Reader(
                f"corpus, dataset's {pathlib.Path(file).name}",
                f"set/{file}",
                mutate_json,
                functools.partial(_read_corpus, file="set", spec=specs["arrow"]),
                _write_dataset,
                ("--input_dir", "data-"),
            )
            for file in ("train/state.json", "dataset_dict.json")
        ),
    ]


def _write_dataset(folder: pathlib.Path) -> None:
    written.save_to_disk(folder / "set" / "train", ["one", "二"])
    _write(folder, "set/dataset_dict.json", json.dumps({"splits": ["train", "test"]}))


def _sentencepiece(**settings: Any) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    text = "一二三四五六七八九十 the small model learns step by step"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text, "learns the model, 三四五"] * 8),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return model.getvalue()


def _unigram(**settings: Any) -> bytes:
    return _sentencepiece(**BERT_PIECES, user_defined_symbols=["[MASK]"], **settings)


def _plain_unigram() -> bytes:
    # Otherwise most of the file would be the normalizer's table.
    return _unigram(normalization_rule_name="identity")


def _byte_level() -> bytes:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()[:40],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the small model", "一二三"], trainer)
    return tokenizer.to_str().encode()


def _converted() -> bytes:
    """Returns a unigram `tokenizer.json` with the table of a normalizer."""
    import sentencepiece

    from pipeline.tokenizers import sentencepiece_model

    model = _unigram()
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocab = tuple(pieces.id_to_piece(i) for i in range(pieces.get_piece_size()))
    special = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    special = {name: vocab.index(f"[{name.upper()}]") for name in special}
    tokenizer = sentencepiece_model.SentencePieceTokenizer(vocab, special, True, model)
    return tokenizer.files()["tokenizer.json"]


def _read_tokenizer(folder: pathlib.Path) -> object:
    tokenizer = loading.load_tokenizer(folder, do_lower_case=None)
    tokens = tokenizer.tokenize(_SAMPLE)
    if len(tokens.ids) and not 0 <= tokens.ids.min() <= tokens.ids.max() < len(tokenizer.vocab):
        raise RuntimeError("an id outside the vocabulary")
    if len(tokenizer.is_special()) != len(tokenizer.vocab):
        raise RuntimeError("the numbers of tokens and of ids differ")
    return tokenizer.info, tokenizer.files(), np.diff(tokens.word_ids)


def _read_json_tokenizer(folder: pathlib.Path) -> object:
    from tools.report.token_text import TokenText

    result = _read_tokenizer(folder)
    tokenizer = loading.load_tokenizer(folder, do_lower_case=None)
    text = TokenText(tokenizer)
    text.spaced(list(range(len(tokenizer.vocab))))
    return result


# Settings next to a vocab.txt; they add a token to the vocabulary.
_SETTINGS: dict[str, Any] = {
    "tokenizer_config.json": {
        "do_lower_case": False,
        "strip_accents": None,
        "never_split": ["[MASK]", TOKENS[-1]],
        "tokenizer_class": "BertTokenizer",
        "mask_token": {"content": "[MASK]"},
        "additional_special_tokens": ["<new>"],
        "added_tokens_decoder": {"0": {"content": TOKENS[0], "special": True, "lstrip": False}},
    },
    "special_tokens_map.json": {"mask_token": "[MASK]", "unk_token": {"content": "[UNK]"}},
    "added_tokens.json": {"<new>": len(TOKENS)},
}


def _write_tokenizer(folder: pathlib.Path, name: str, content: Any) -> None:
    _write(folder, name, content())
    if name == "vocab.txt":
        for file, settings in _SETTINGS.items():
            _write(folder, file, json.dumps(settings))
    if name.startswith("sentencepiece"):
        _write(folder, "config.json", json.dumps({"model_type": "xlm-roberta"}))


def _vocab() -> str:
    return "\n".join(TOKENS) + "\n"


_XLM_ROBERTA = "sentencepiece.bpe.model"
_TOKENIZERS: tuple[tuple[str, str, str, Mutate, Any, Any], ...] = (
    # Name, corrupted file, tokenizer file, mutation, reader, and the function for the content.
    ("vocab", "vocab.txt", "vocab.txt", mutate_bytes, _read_tokenizer, _vocab),
    *((file, file, "vocab.txt", mutate_json, _read_tokenizer, _vocab) for file in _SETTINGS),
    ("byte-level", *["tokenizer.json"] * 2, mutate_json, _read_json_tokenizer, _byte_level),
    ("unigram json", *["tokenizer.json"] * 2, mutate_json, _read_json_tokenizer, _converted),
    ("unigram", *["spiece.model"] * 2, mutate_bytes, _read_tokenizer, _plain_unigram),
    ("xlm-roberta", *[_XLM_ROBERTA] * 2, mutate_bytes, _read_tokenizer, _sentencepiece),
    (
        "xlm-roberta's settings",
        "config.json",
        _XLM_ROBERTA,
        mutate_json,
        _read_tokenizer,
        _sentencepiece,
    ),
)


def _tokenizer_readers() -> list[Reader]:
    return [
        Reader(
            f"tokenizer, {name}",
            file,
            mutate,
            read,
            functools.partial(_write_tokenizer, name=right, content=content),
            (right, "--vocab_file"),
        )
        for name, file, right, mutate, read, content in _TOKENIZERS
    ]


_LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(f'*{chr(97 + n)}' for _ in range(9))}]\n"
    for n in range(9)
)
_YAML_VALUES = (
    *("null", "true", "[]", "{}", "[[a]]", "-1", "1e999", ".nan", "9" * 5000, "9" * 400),
    *("2024-99-99", "2024-01-01", "1:2:3", '"\\ud800"', '"a\\nb"', "!!binary aGk=", "!!set {a}"),
    *("!!python/object/apply:os.getcwd []", "!!python/name:os.system", "[" * 2000, "- " * 1000),
    *("&a [*a]", "*a", "'../../x'", "/etc/passwd", "~nobody_there/x", "'**x'", "(", "'(' "),
    *(
        "'a{99999999999}'",
        "'" + "(" * 3000 + "'",
        "'[一-龥]'",
        "'\\N{DASH}'",
        "'(?u)x'",
        "x" * 3000,
    ),
    "\n" + "\n".join("  " + line for line in _LAUGHS.split("\n")),
)
_YAML_LINE = re.compile(rb"^( *[\w-]+:).*$", re.MULTILINE)


def mutate_yaml(below: Below, content: bytes) -> bytes:
    """Replaces the values of keys, or changes bytes."""
    if below(3) == 0:
        return mutate_bytes(below, content)
    for _ in range(1 + below(2)):
        lines = list(_YAML_LINE.finditer(content))
        if not lines:
            break
        match = lines[below(len(lines))]
        value = _YAML_VALUES[below(len(_YAML_VALUES))].encode()
        content = content[: match.start()] + match[1] + b" " + value + content[match.end() :]
    return content


_SPEC = """title: A corpus
url: https://example.org
files: ["*.txt"]
reader: text
documents: starts
document_start: "^= "
cleaning: [html, spaces]
language: zh
segmenter: none
"""
_MIXTURE = """corpora:
  - input_dir: text
    corpus_spec: spec.yaml
    weight: 0.5
    name: one
  - input_dir: text/a.txt
    text_fields: [a, b]
    name: two
"""


def _write_mixture(folder: pathlib.Path) -> None:
    _write(folder, "text/a.txt", _TEXT)
    _write(folder, "spec.yaml", _SPEC)
    _write(folder, "mixture.yaml", _MIXTURE)


def _read_spec(folder: pathlib.Path) -> object:
    path = str(folder / "spec.yaml")
    source = CorpusSource(input_dir=str(folder / "text"), corpus_spec=path)
    return _use_sources((source,))


def _use_sources(sources: tuple[CorpusSource, ...]) -> object:
    corpora = corpus.resolve(sources)
    texts = []
    for file in corpus.open_corpora(sources, corpora):
        documents = READERS[file.corpus.reader].read(file)
        texts += [corpus.document_text(document) for document, _ in documents]
    return texts, [json.dumps(resolved.spec.reading()) for resolved in corpora]


def _read_mixture(folder: pathlib.Path) -> object:
    path = str(folder / "mixture.yaml")
    try:
        sources = corpus_specs.load_mixture(path)
    except ValueError as error:
        # The command that has the flag raises the same error.
        raise InputError(f"--corpora: {error}") from error
    # A TFDS data set is not among the fuzzed files.
    sources = tuple(source for source in sources if source.tfds_name is None)
    return _use_sources(sources)


def readers_of_text() -> list[Reader]:
    """Returns all readers of text."""
    flags = ("--corpus_spec", "--input_dir", "--corpora")
    return [
        *_corpus_readers(),
        *_tokenizer_readers(),
        Reader("declaration, corpus", "spec.yaml", mutate_yaml, _read_spec, _write_mixture, flags),
        Reader(
            "declaration, mixture",
            "mixture.yaml",
            mutate_yaml,
            _read_mixture,
            _write_mixture,
            (*flags, "a.txt"),
        ),
    ]
