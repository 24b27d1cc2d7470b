"""Tests of the declarations of corpora, each with a small file in the corpus's format."""

import gzip
import json
import pathlib

import pytest

from data_specs import corpora
from data_specs.corpora import CorpusSource
from pipeline.base.errors import InputError
from pipeline.corpora import corpus

BAIKE_ROW = {
    "qid": "qid_1",
    "category": "生活",
    "title": "冬天进补好吗？ ",
    "desc": "",
    "answer": "你好！\r\r当然是冬天好，&nbsp;不宜过多。",
}
WEBTEXT_ROW = {
    "qid": 1,
    "title": "机器人会写小说吗？",
    "desc": "如果会，<br>水平如何？",
    "topic": "机器人",
    "star": 3,
    "content": "<p>还不会。</p>以后&amp;将来也许会。",
    "answer_id": 2,
    "answerer_tags": "",
}
NEWS_ROW = {
    "news_id": "1",
    "keywords": "雪",
    "title": "北方今日降雪",
    "desc": "今日北方",
    "source": "报",
    "time": "03-22 12:00",
    "content": "今日北方普遍降雪。",
}
WIKI_ROW = {"id": "53", "url": "u", "title": "经济学", "text": "经济学\n\n经济学是一门科学。"}
# Every line of the original files ends with a space.
WIKITEXT = """ \n = Robert Boulter = \n \n Robert Boulter is an English film , role @-@ playing \
actor . He earned 1 @,@ 000 pounds . \n \n = = Career = = \n \n He had a role in 2000 . \n \n = Du \
Fu = \n \n Du Fu was a poet . \n"""
GUTENBERG = """The Project Gutenberg eBook of A Tale

This eBook is for the use of anyone.

*** START OF THE PROJECT GUTENBERG EBOOK A TALE ***

It was the best
of times.

It was the worst.

*** END OF THE PROJECT GUTENBERG EBOOK A TALE ***

Updated editions will replace this one.
"""
SUBTITLES = "".join(f"- Реплика номер {n}. ♪\n" for n in range(250))
SOCIAL = """\ufeffDataBaseItem: 6_5756
Кстати, как неожиданно
DataBaseItem: 6_5757
[id12890229|Евгений], можно
и по-другому
"""


# Each anchor refers nine times to the one before, so that the list grows exponentially.
_NESTED_ALIASES = "".join(
    f"  - &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)


def _lines(*rows: dict) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# The files of each corpus, and the documents that are read from them.
CASES = {
    "wiki_zh": ({"AA/wiki_00": _lines(WIKI_ROW)}, ["经济学\n经济学是一门科学。"]),
    "news2016zh": (
        {"news2016zh_valid.json": _lines(NEWS_ROW)},
        ["北方今日降雪\n今日北方普遍降雪。"],
    ),
    "baike2018qa": (
        {"baike_qa_train.json": _lines(BAIKE_ROW)},
        ["冬天进补好吗？\n你好！\n当然是冬天好， 不宜过多。"],
    ),
    "webtext2019zh": (
        {"web_text_zh_testa.json": _lines(WEBTEXT_ROW)},
        ["机器人会写小说吗？\n如果会，\n水平如何？\n还不会。\n以后&将来也许会。"],
    ),
    "opensubtitles_ru": (
        {"ru.txt.gz": SUBTITLES},
        [
            "\n".join(f"Реплика номер {n}." for n in range(begin, min(250, begin + 100)))
            for begin in (0, 100, 200)
        ],
    ),
    "taiga_social": (
        {"home/texts/vktexts.txt": SOCIAL},
        ["Кстати, как неожиданно", "Евгений, можно\nи по-другому"],
    ),
    "taiga_prose": (
        {"texts/1.txt": "Первый абзац.\r\n\r\nВторой  абзац.\r\n", "texts/2.txt": "Другой."},
        ["Первый абзац.\nВторой абзац.", "Другой."],
    ),
    "wikitext": (
        {"wiki.train.raw": WIKITEXT},
        [
            "Robert Boulter\nRobert Boulter is an English film , role-playing actor . "
            "He earned 1,000 pounds .\nCareer\nHe had a role in 2000 .",
            "Du Fu\nDu Fu was a poet .",
        ],
    ),
    "bookcorpus": (
        {"books_large_p1.txt": "".join(f"sentence {n} .\n" for n in range(201))},
        ["\n".join(f"sentence {n} ." for n in range(200)), "sentence 200 ."],
    ),
    "gutenberg": ({"98-0.txt": GUTENBERG}, ["It was the best of times.\nIt was the worst."]),
}


def _write(folder: pathlib.Path, files: dict[str, str]) -> pathlib.Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode("utf-8")
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


def _documents(*sources: CorpusSource) -> list[str]:
    files = corpus.open_corpora(sources, corpus.resolve(sources))
    blocks = corpus.read_blocks(files)
    return [corpus.document_text(document) for block in blocks for document in block.documents]


def test_every_declaration_has_a_case() -> None:
    assert set(CASES) == set(corpora.names())


@pytest.mark.parametrize("name", corpora.names())
def test_each_declaration_reads_the_format_of_its_corpus(tmp_path, name: str) -> None:
    files, expected = CASES[name]
    # The folder also has files that do not belong to the corpus.
    _write(tmp_path, files | {"LICENSE": "x", "readme.md": "y"})
    assert _documents(CorpusSource(input_dir=str(tmp_path), corpus_spec=name)) == expected
    spec = corpora.load_spec(name)
    assert spec.name == name and spec.title and spec.url.startswith("https://") and spec.licence
    assert spec.language in ("zh", "ru", "en")


@pytest.mark.parametrize("name", corpora.names())
def test_folder_without_the_declared_files_is_refused(tmp_path, name: str) -> None:
    _write(tmp_path, {"other.csv": "a,b\n"})
    with pytest.raises(InputError) as error:
        _documents(CorpusSource(input_dir=str(tmp_path), corpus_spec=name))
    assert (error.value.setting, error.value.received) == ("input_dir", "none of them")
    assert name in error.value.expected


def test_rows_without_the_declared_fields_are_refused(tmp_path) -> None:
    _write(tmp_path, {"AA/wiki_00": _lines({"id": "1", "content": "x"})})
    with pytest.raises(InputError, match="wiki_00, line 1: .*wiki_zh"):
        _documents(CorpusSource(input_dir=str(tmp_path), corpus_spec="wiki_zh"))


def test_declaration_file_of_the_user_is_read(tmp_path) -> None:
    spec = tmp_path / "mine.yaml"
    spec.write_text("reader: text\ndocuments: lines\nlines_per_document: 2\n", encoding="utf-8")
    _write(tmp_path / "text", {"a.txt": "一\n二\n三\n"})
    source = CorpusSource(input_dir=str(tmp_path / "text"), corpus_spec=str(spec))
    assert _documents(source) == ["一\n二", "三"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("readers: text\n", "unknown field 'readers', expected fields of name, title, url"),
        ("text_fields: text\n", "text_fields: Expected 'array', got 'str'"),
        ("documents: lines\n", "lines_per_document: must be above 0 if documents is lines"),
        ("documents: starts\n", "document_start: must be a regular expression"),
        ("documents: starts\ndocument_start: '('\n", "document_start: .* received '\\('"),
        ("lines_per_document: many\n", "lines_per_document: Expected 'int', got 'str'"),
        ("title: 3\n", "title: Expected 'str', got 'int'"),
        ("a: [\n", "not YAML"),
        ("- a\n", "expected keys and values, received list"),
        ("reader: text\nreader: rows\n", "not YAML .a repeated key"),
        ("cleaning: []\n", "cleaning: Expected 'array' of length >= 1"),
        ("lines_per_document: true\n", "lines_per_document: Expected 'int', got 'bool'"),
        ("files:\n  - &a [x]\n" + _NESTED_ALIASES, "not YAML .aliases are not supported"),
        ("files: &a [*a]", "not YAML .aliases are not supported"),
        ("files: " + "[" * 20_000, "not YAML .maximum recursion depth exceeded"),
        ("files: !!python/object/apply:os.getcwd []", "not YAML .could not determine a constr"),
        ("title: 2024-99-99", "not YAML .month must be in 1..12"),
        ("title: " + "9" * 5000, "not YAML .expected a plain number, received '999"),
        ("lines_per_document: " + "9" * 20, "not YAML .expected a plain number, received '999"),
        ("lines_per_document: 0x10", "not YAML .expected a plain number, received '0x10'"),
        ("lines_per_document: 1_000", "not YAML .expected a plain number, received '1_000'"),
        # YAML reads these as numbers of base 60, which takes quadratic time.
        ("title: 1" + ":1" * 60_000, "not YAML .expected a plain number, received '1:1:"),
        ("title: 1" + ":1" * 60_000 + ".5", "not YAML .expected a plain number, received '1:1:"),
        ("title: [" + "x, " * 3000 + "]", "title: Expected 'str', got 'array'$"),
        ("? [a]\n: b", "not YAML"),
        ("1: b", "Expected 'str'"),
        ("x" * 1000 + ": b", "unknown field 'xxx"),
        ("documents: starts\ndocument_start: '(?u)x'", "document_start: expected a regular"),
        ("documents: starts\ndocument_start: '\\N{DASH}'", "document_start: expected a regular"),
        ("documents: starts\ndocument_start: 'a{99999999999}'", "document_start: expected a reg"),
        ("x" * (2**17 + 1), "not YAML .expected at most 131072 bytes, received 131073.$"),
    ],
)
def test_error_for_an_invalid_declaration_names_file_and_field(
    tmp_path, content: str, message: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"^{path}: .*{message}") as refused:
        corpora.load_spec(str(path))
    assert len(str(refused.value)) < 1000
    with pytest.raises(InputError) as error:
        corpus.resolve([CorpusSource(input_dir="x", corpus_spec=str(path))])
    assert error.value.subject == "corpus_spec"


@pytest.mark.parametrize(
    ("content", "known", "received"),
    [
        ("reader: xml\n", "auto, arrow, csv", "'xml'"),
        ("cleaning: [soap]\n", "drop_first_line, ", "'soap'"),
        ("segmenter: x\n", "jieba, whitespace, none", "'x'"),
    ],
)
def test_unknown_reader_cleaning_step_or_segmenter_is_refused(
    tmp_path, content, known, received
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as error:
        corpus.resolve([CorpusSource(input_dir="x", corpus_spec=str(path))])
    assert (error.value.subject, error.value.received) == ("corpus_spec", received)
    assert known in error.value.expected


def test_unknown_declaration_is_refused() -> None:
    for name in ("wiki", "../corpora/wiki_zh", "/etc/passwd", "no.yaml", "x" * 5_000 + ".yaml"):
        with pytest.raises(ValueError, match="^expected one of baike2018qa, .* or a .yam") as error:
            corpora.load_spec(name)
        assert len(str(error.value)) < 1_000


def test_mixture_reads_its_corpora_with_their_weights(tmp_path) -> None:
    _write(tmp_path / "wiki", CASES["wiki_zh"][0])
    _write(tmp_path, {"own/a.txt": "一\n\n二"})
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(
        "corpora:\n"
        "- {corpus_spec: wiki_zh, input_dir: wiki, weight: 2}\n"
        "- {name: own, input_dir: own/a.txt, segmenter: none, text_fields: [a]}\n",
        encoding="utf-8",
    )
    sources = corpora.load_mixture(str(mixture))
    assert [(source.label, source.weight) for source in sources] == [("wiki_zh", 2.0), ("own", 1.0)]
    assert _documents(*sources) == [*CASES["wiki_zh"][1], "一", "二"]
    keys = [file.key for file in corpus.open_corpora(sources, corpus.resolve(sources))]
    assert keys == ["wiki_zh/AA/wiki_00", "own/a.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("corpora: []\n", r"must have only the key corpora .*; got \[\]"),
        ("corpora: own\n", "must have only the key corpora .*; got 'own'"),
        ("corpus: []\n", r"must have only the key corpora .*; got the keys \['corpus'\]"),
        ("corpora: [a]\n", "corpus 1: Expected 'object', got 'str'"),
        (
            "corpora: [{weight: 1}]\n",
            "corpus 1: input_dir: either input_dir or tfds_name is required",
        ),
        *(
            (
                f"corpora: [{{input_dir: a, weight: {weight}}}]\n",
                "corpus 1: weight: Expected 'float'",
            )
            for weight in ("0", ".nan", ".inf", "-1")
        ),
        ("corpora: [{input_dir: a, weight: 99999999999999999999}]\n", "not YAML"),
        ("corpora: [{input_dir: a, wieght: 1}]\n", "corpus 1: .*unknown field 'wieght', expected "),
        *(
            (
                f"corpora:\n  - input_dir: /{name}\n",
                "corpus 1: input_dir: path is too long",
            )
            for name in ("x" * 256, "春" * 100, "x/" * 3_000)
        ),
    ],
)
def test_error_for_an_invalid_mixture_names_its_file(tmp_path, content: str, message: str) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"^{path}.*{message}"):
        corpora.load_mixture(str(path))


def test_corpora_of_the_same_name_are_refused() -> None:
    sources = [CorpusSource(input_dir="a"), CorpusSource(input_dir="b")]
    with pytest.raises(InputError) as error:
        corpus.resolve(sources)
    assert error.value.subject == "corpora"
