"""Task data: each declaration reads small files of the published format and refuses others."""

import csv
import json
import pathlib

import pytest

from data_specs import tasks
from data_specs.declarations import known_names
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from tests.tools.finetuning.squad_files import squad_json
from tools.finetuning.task_data import read_split
from tools.finetuning.task_files import Answer, SplitData, TaskExample

SHARED = Location.parse(pathlib.Path(__file__)).parents[4] / "shared"


def _lines(*rows: dict) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _table(*rows: str) -> str:
    """Returns rows as TSV, with a tab for each bar."""
    return "".join(row.replace("|", "\t") + "\n" for row in rows)


OCNLI_ROW = {
    "level": "medium",
    "sentence1": "门关着",
    "sentence2": "门开着",
    "label": "contradiction",
    "label0": None,
    "genre": "lit",
    "prem_id": "lit_635",
    "id": 7,
}
CONTEXT = "长江全长6397公里，流入东海。"
PARAGRAPH = (CONTEXT, [("Q_0", "长江流入哪里？", [("东海", 13)])])
QUESTION = TaskExample("Q_0", ("长江流入哪里？", CONTEXT), None, (Answer("东海", 13),))
ENGLISH = "Super Bowl 50 was won by Denver."
SQUAD = squad_json((ENGLISH, [("56be", "Who won?", [("Denver", 25), ("by Denver", 22)])]))
WON = TaskExample(
    "56be", ("Who won?", ENGLISH), None, (Answer("Denver", 25), Answer("by Denver", 22))
)
MNLI_HEADER = (
    "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|"
    "sentence1_parse|sentence2_parse|sentence1|sentence2|label1|"
)
MRPC_HEADER = "\ufeffQuality|#1 ID|#2 ID|#1 String|#2 String"
STSB_HEADER = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2"

# Each case: a task, its files, a split, and the examples in the split.
CASES = [
    ("afqmc", {"train.json": _lines({"sentence1": "a", "sentence2": "b", "label": "1"})}, "train",
     [TaskExample("0", ("a", "b"), 1)]),
    ("afqmc", {"test.json": _lines({"id": 3, "sentence1": "a", "sentence2": "b"})}, "test",
     [TaskExample("3", ("a", "b"), None)]),
    ("cmnli", {"dev.json": _lines({"sentence1": "a", "sentence2": "b", "label": "-"},
     {"sentence1": "c", "sentence2": "d", "label": "neutral"})}, "dev",
     [TaskExample("1", ("c", "d"), 1)]),
    ("ocnli", {"train.10k.json": _lines(OCNLI_ROW, OCNLI_ROW | {"label": "-"}),
     "train.3k.json": _lines(OCNLI_ROW | {"id": 8})}, "train",
     [TaskExample("7", ("门关着", "门开着"), 2)]),
    ("tnews", {"train_few_all.json": _lines({"label": 116, "label_desc": "news_game",
     "sentence": "新游戏", "id": 55})}, "train", [TaskExample("55", ("新游戏",), 14)]),
    ("tnews", {"dev.json": _lines({"label": "102", "label_desc": "news_entertainment",
     "sentence": "上课"}), "dev_few_all.json": "not read"}, "dev",
     [TaskExample("0", ("上课",), 2)]),
    ("lcqmc", {"train.tsv": _table("text_a|text_b|label", "你好吗|好不好|1")}, "train",
     [TaskExample("0", ("你好吗", "好不好"), 1)]),
    ("lcqmc", {"dev.txt": _table("甲|乙|0")}, "dev", [TaskExample("0", ("甲", "乙"), 0)]),
    ("chnsenticorp", {"train.tsv": _table("label|text_a", '1|"很好，还会再来', "0|差")}, "train",
     [TaskExample("0", ('"很好，还会再来',), 1), TaskExample("1", ("差",), 0)]),
    ("cmrc2018", {"trial.json": squad_json(PARAGRAPH)}, "dev", [QUESTION]),
    ("xquad_zh", {"xquad.zh.json": squad_json(PARAGRAPH)}, "dev", [QUESTION]),
    ("xquad_ru", {"xquad.ru.json": SQUAD}, "test", [WON]),
    ("xquad_en", {"xquad.en.json": SQUAD}, "dev", [WON]),
    ("squad", {"dev-v1.1.json": SQUAD, "train-v1.1.json": "not read"}, "dev", [WON]),
    ("sst2", {"dev.tsv": _table("sentence|label", "it 's charming . |1")}, "dev",
     [TaskExample("0", ("it 's charming . ",), 1)]),
    ("sst2", {"test-labeled.tsv": "sentence\tlabel\r\ndull .\t0\r\n"}, "test",
     [TaskExample("0", ("dull .",), 0)]),
    ("sst2", {"test.tsv": _table("index|sentence", "0|dull .", "1|fine .")}, "test",
     [TaskExample("0", ("dull .",)), TaskExample("1", ("fine .",))]),
    ("mrpc", {"msr_paraphrase_train.txt": _table(MRPC_HEADER,
     '1|70|71|He said "no.|"No", he said.')}, "train",
     [TaskExample("0", ('He said "no.', '"No", he said.'), 1)]),
    ("mrpc", {"test.tsv": _table("index|#1 ID|#2 ID|#1 String|#2 String", "4|1|2|a|b")}, "test",
     [TaskExample("4", ("a", "b"))]),
    ("cola", {"train.tsv": _table("gj04|1||Our friends buy it.", "gj04|0|*|They drank pub.")},
     "train", [TaskExample("0", ("Our friends buy it.",), 1),
     TaskExample("1", ("They drank pub.",), 0)]),
    ("cola", {"test.tsv": _table("index|sentence", "0|Bill whistled past.")}, "test",
     [TaskExample("0", ("Bill whistled past.",))]),
    ("rte", {"dev.tsv": _table("index|sentence1|sentence2|label", "9|a|b|not_entailment")}, "dev",
     [TaskExample("9", ("a", "b"), 1)]),
    ("qnli", {"dev.tsv": _table("index|question|sentence|label", '0|What "?|That.|entailment')},
     "dev", [TaskExample("0", ('What "?', "That."), 0)]),
    ("qqp", {"train.tsv": _table("id|qid1|qid2|question1|question2|is_duplicate",
     "133273|1|2|Why?|How so?|1")}, "train", [TaskExample("133273", ("Why?", "How so?"), 1)]),
    ("mnli", {"train.tsv": _table(MNLI_HEADER + "gold_label",
     "0|1|1n|f|p|p|p|p|a|b|neutral|neutral")}, "train", [TaskExample("0", ("a", "b"), 1)]),
    ("mnli", {"dev_matched.tsv": "not read",
     "dev_mismatched.tsv": _table(MNLI_HEADER + "label2|gold_label",
     "0|1|1n|f|p|p|p|p|a|b|neutral|entailment|-",
     "1|1|1c|f|p|p|p|p|c|d|neutral|entailment|contradiction")}, "dev_mismatched",
     [TaskExample("1", ("c", "d"), 2)]),
    ("stsb", {"dev.tsv": _table(STSB_HEADER + "|score",
     '0|g|f|2012|1|none|none|A "man.|A man.|4.750')}, "dev",
     [TaskExample("0", ('A "man.', "A man."), 4.75)]),
    ("stsb", {"test.tsv": _table(STSB_HEADER, "0|g|f|2012|1|none|none|a|b")}, "test",
     [TaskExample("0", ("a", "b"))]),
    ("stsb_json", {"validation.jsonl": _lines({"sentence1": "a", "sentence2": "b",
     "score": 4.5})}, "dev", [TaskExample("0", ("a", "b"), 4.5)]),
    ("stsb_multi_mt", {"stsb-zh-dev.csv": '"甲,","乙",4.750\n'}, "dev",
     [TaskExample("0", ("甲,", "乙"), 4.75)]),
    ("rusentiment",
     {"rusentiment_random_posts.csv": 'label,text\nskip,"Мы ""просто""\nтак,\n\nда"\n',
     "rusentiment_preselected_posts.csv": "label,text\r\nnegative,плохо\r\n",
     "rusentiment_test.csv": "not read"}, "train", [TaskExample("0", ("плохо",), 0),
     TaskExample("1", ('Мы "просто"\nтак,\n\nда',), 4)]),
    ("weibo_ner", {"dev.conll": _table("口0|O", "女1|B-PER.NOM", "", "1 0|O")
     .replace("1 0", "10")}, "dev", [TaskExample("0", ("口", "女"), ("O", "B-PER.NOM")),
     TaskExample("1", ("1",), ("O",))]),
    ("msra_ner", {"msra_test_bio": _table("北|B-LOC", "京|I-LOC", "")}, "dev",
     [TaskExample("0", ("北", "京"), ("B-LOC", "I-LOC"))]),
    ("peoples_daily_ner", {"example.train": "海 O\n钓 O\n\n厦 B-LOC\n门 I-LOC\n"}, "train",
     [TaskExample("0", ("海", "钓"), ("O", "O")),
     TaskExample("1", ("厦", "门"), ("B-LOC", "I-LOC"))]),
    ("cluener", {"train.json": _lines({"text": "浙商银行", "label":
     {"company": {"浙商银行": [[0, 3]]}}})}, "train", [TaskExample("0", ("浙", "商", "银", "行"),
     ("B-company", *["I-company"] * 3))]),
    ("conll2003", {"eng.testa": "-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\n"},
     "dev", [TaskExample("0", ("EU", "rejects"), ("I-ORG", "O"))]),
    ("wnut17", {"wnut17train.conll": _table("@paulwalk|O", "|", "Empire|B-location")}, "train",
     [TaskExample("0", ("@paulwalk",), ("O",)), TaskExample("1", ("Empire",), ("B-location",))]),
    ("wikiann", {"dev": _table("en:Rome|B-LOC", "en::|O", "a:b|O", "12:30|O", "zh-yue:香|B-LOC")},
     "dev", [TaskExample("0", ("Rome", ":", "a:b", "12:30", "香"),
     ("B-LOC", "O", "O", "O", "B-LOC"))]),
    ("collection3", {"valid.txt": _table("<DOCSTART>|O", "", "Россия|B-LOC")}, "dev",
     [TaskExample("0", ("Россия",), ("B-LOC",))]),
]  # fmt: skip


def _write(folder: Location, files: dict[str, str]) -> Location:
    for name, content in files.items():
        (folder / name).write_bytes(content.encode("utf-8"))
    return folder


def test_every_declared_task_has_a_case() -> None:
    assert {name for name, *_ in CASES} == set(known_names(tasks.FOLDER))


@pytest.mark.parametrize(
    ("name", "files", "split", "expected"), CASES, ids=[f"{name}-{s}" for name, _, s, _ in CASES]
)
def test_each_task_reads_its_published_format(
    tmp_path, name: str, files, split: str, expected
) -> None:
    assert read_split(tasks.load_task(name), _write(tmp_path, files), split).examples == expected


def test_skipped_rows_do_not_change_the_keys_of_others(tmp_path) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "label": label} for label in ("-", "neutral")]
    folder = _write(tmp_path, {"dev.json": "\n" + _lines(*rows) + "\n"})
    data = read_split(tasks.load_task("ocnli"), folder, "dev")
    assert [example.key for example in data.examples] == ["1"]
    assert (data.num_left_out, data.bad_rows) == (1, [])


def _refusal(name: str, folder: Location, split: str = "dev", **settings) -> InputError:
    with pytest.raises(InputError) as caught:
        read_split(tasks.load_task(name), folder, split, **settings)
    assert "\n" not in str(caught.value)
    return caught.value


def _is_only_bad_row(data: SplitData, error: InputError) -> bool:
    """Returns whether the refused row is the only bad row, reported without the hint."""
    assert "`skip_bad_rows`" in error.hint
    return data.bad_rows == [str(InputError(error.subject, error.expected, error.received))]


@pytest.mark.parametrize("name", known_names(tasks.FOLDER))
def test_folder_without_the_tasks_files_is_refused(tmp_path, name: str) -> None:
    _write(tmp_path, {"other.txt": "x"})
    error = _refusal(name, tmp_path)
    assert error.subject == str(tmp_path)
    assert f"({' or '.join(tasks.load_task(name).files['dev'])})" in error.expected


def test_missing_folders_and_unknown_splits_are_refused(tmp_path) -> None:
    assert _refusal("rte", Location.parse("/no/such")).subject == "/no/such"
    error = _refusal("rte", tmp_path, "eval")
    assert error.expected == "one of the splits train, dev, test" and error.received == "'eval'"


RTE = "index|sentence1|sentence2|label"
# Each case: a task, its content, the location in the file, and the expected and received values.
BAD = [
    ("rte", _table("id|sentence1|sentence2|gold", "0|a|b|entailment"), "line 1",
     "the columns sentence1, sentence2, label", "id, sentence1, sentence2, gold"),
    ("rte", _table(RTE, "0|a|b|entailment", "1|a|entailment"), "line 3",
     "4 columns (index, sentence1, sentence2, label)", 3),
    ("rte", _table(RTE, "0|a|b|maybe"), "line 2: label",
     "one of entailment, not_entailment", "'maybe'"),
    ("cola", _table("gj04|1|Our friends."), "line 1",
     "4 columns (source, label, mark, sentence)", 3),
    ("cola", _table("gj04|2||Our friends."), "line 1: label", "one of 0, 1", "'2'"),
    ("stsb", _table(STSB_HEADER + "|score", "0|g|f|2|1|n|n|a|b|high"), "line 2: score",
     "a number", "'high'"),
    ("stsb", _table(STSB_HEADER + "|score", "0|g|f|2|1|n|n|a|b|nan"), "line 2: score",
     "a number", "'nan'"),
    ("ocnli", _lines(OCNLI_ROW) + '{"sentence1": \n', "line 2",
     "a JSON object", """'{"sentence1": ' (Expecting value"""),
    ("ocnli", "[1]\n", "line 1", "a JSON object", "'[1]'"),
    ("ocnli", _lines({"sentence1": "a", "label": "neutral"}), "line 1",
     "the fields sentence1, sentence2, label", "sentence1, label"),
    ("ocnli", _lines(OCNLI_ROW | {"sentence2": 3}), "line 1: sentence2", "text", "3"),
    ("ocnli", _lines(OCNLI_ROW | {"label": None}), "line 1: label",
     "one of entailment, neutral, contradiction", "'None'"),
    ("ocnli", json.dumps(OCNLI_ROW | {"sentence2": "a\ud83d"}), "line 1: sentence2",
     "text", r"'a\ud83d'"),
    ("ocnli", json.dumps(OCNLI_ROW | {"id": "\ud83d"}), "line 1: id", "text", r"'\ud83d'"),
    ("tnews", _lines({"label": 105, "sentence": "a"}), "line 1: label",
     "one of 100, 101,", "'105'"),
    ("rusentiment", 'label,text\nskip,a\nneutral,"b\nskip,c\n', "line 3", "UTF-8 fields",
     "a malformed row"),
    ("rusentiment", 'label,text\nskip,"a\nb\nc"\nnone,d\n', "line 5: label", "one of", "'none'"),
    ("rte", "", None, "at least one example of rte", "none"),
    ("rte", _table(RTE), None, "at least one example of rte", "none"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "location", "expected", "received"), BAD)
def test_bad_rows_name_the_file_and_the_line(
    tmp_path, name: str, content: str, location: str | None, expected: str, received: object
) -> None:
    path = tmp_path / tasks.load_task(name).files["dev"][0]
    path.write_text(content, encoding="utf-8")
    error = _refusal(name, tmp_path)
    assert error.subject == (f"{path}, {location}" if location else str(path))
    assert error.expected.startswith(expected)
    is_row = location is not None and name != "rusentiment" and "columns sentence1" not in expected
    assert not is_row or "`skip_bad_rows`" in error.hint
    assert str(error.received).startswith(str(received))


@pytest.mark.parametrize(
    ("name", "file", "content", "line"),
    [
        ("rte", "dev.tsv", b"index\tsentence1\tsentence2\tlabel\n\xff\n", 2),
        ("rusentiment", "rusentiment_test.csv", b"label,text\nskip,\xff\n", 1),
    ],
)
def test_files_with_invalid_utf8_are_refused(tmp_path, name, file, content, line) -> None:
    (tmp_path / file).write_bytes(content)
    error = _refusal(name, tmp_path)
    assert error.subject == f"{tmp_path / file}, line {line}" and "UTF-8" in error.expected


def test_bad_rows_are_skipped_and_reported(tmp_path) -> None:
    # In GLUE's training file of QQP, some rows are split over two lines.
    header = "id|qid1|qid2|question1|question2|is_duplicate"
    rows = _table(header, "1|1|2|Why?|How", " come?|1", "2|3|4|a|b|0")
    folder = _write(tmp_path, {"train.tsv": rows})
    data = read_split(tasks.load_task("qqp"), folder, "train", skip_bad_rows=True)
    assert [example.key for example in data.examples] == ["2"]
    reported_locations = [row.partition(": ")[0] for row in data.bad_rows]
    assert reported_locations == [f"{folder}/train.tsv, line {line}" for line in (2, 3)]
    _write(tmp_path, {"train.tsv": _table(header, "broken")})
    error = _refusal("qqp", folder, "train", skip_bad_rows=True)
    assert error.received == "none" and f"{folder}/train.tsv, line 2: " in error.hint


def test_misplaced_answers_are_relocated_nearby(tmp_path) -> None:
    context = "江 长江 长 长江"
    questions = [
        ("there", "?", [("长江", 2)]),
        ("late", "?", [("长江", 3)]),
        ("early", "?", [("长江", 6)]),
        ("far", "?", [("长江", 99)]),
    ]
    folder = _write(tmp_path, {"dev.json": squad_json((context, questions))})
    data = read_split(tasks.load_task("cmrc2018"), folder, "dev")
    assert [example.answers[0].start for example in data.examples] == [2, 2, 7, 7]
    assert data.num_relocated == 3


@pytest.mark.parametrize(
    ("change", "location"),
    [
        ({"question": None}, "question"),
        ({"question": 3}, "question"),
        ({"answers": {}}, "answers"),
        ({"answers": [1]}, "answers[0]"),
        ({"answers": [{"text": "a"}]}, "answers[0]"),
        ({"answers": [{"text": 1, "answer_start": 0}]}, "answers[0].text"),
        ({"answers": [{"text": "a", "answer_start": "0"}]}, "answers[0].answer_start"),
        ({"answers": [{"text": "a", "answer_start": True}]}, "answers[0].answer_start"),
    ],
)
def test_malformed_question_is_a_bad_row(tmp_path, change, location: str) -> None:
    value = json.loads(squad_json(("ab", [("wrong", "?", [("a", 0)]), ("q", "?", [("b", 1)])])))
    value["data"][0]["paragraphs"][0]["qas"][0].update(change)
    folder = _write(tmp_path, {"dev.json": json.dumps(value)})
    error = _refusal("cmrc2018", folder)
    assert error.subject == f"{folder}/dev.json, question wrong: {location}"
    data = read_split(tasks.load_task("cmrc2018"), folder, "dev", skip_bad_rows=True)
    assert [example.key for example in data.examples] == ["q"] and _is_only_bad_row(data, error)


def test_answer_outside_the_context_is_a_bad_row_except_in_test_files(tmp_path) -> None:
    paragraph = (CONTEXT, [("Q_1", "?", [("黄海", 13)]), *PARAGRAPH[1]])
    folder = _write(tmp_path, {"dev.json": squad_json(paragraph), "test.json": "{}"})
    spec = tasks.load_task("cmrc2018")
    error = _refusal("cmrc2018", folder)
    assert error.subject == f"{folder}/dev.json, question Q_1" and "'黄海'" in error.expected
    data = read_split(spec, folder, "dev", skip_bad_rows=True)
    assert data.examples == [QUESTION] and _is_only_bad_row(data, error)
    # Benchmarks with hidden answers publish placeholders instead.
    _write(tmp_path, {"test.json": squad_json((CONTEXT, [("Q", "?", [("FAKE_ANSWER_1", -1)])]))})
    assert read_split(spec, folder, "test").examples == [TaskExample("Q", ("?", CONTEXT))]


_ONE = squad_json(("a", [("q", "?", [("a", 0)])]))


@pytest.mark.parametrize(
    ("content", "location"),
    [
        ("[]", ""),
        ("{", ""),
        ("{}", ""),
        ('{"data": 3}', ": data"),
        ('{"data": [1]}', ": data[0]"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', ": data[0].paragraphs[0]"),
        ('{"data": []}', ""),
        ("[" * 100_000, ""),
        (squad_json(("a", [("", "?", [("a", 0)])])), ", question "),
        (squad_json(("a", [("q", "?", [("a", 0)])] * 2)), ", question q"),
        (squad_json(("a", [("q", "?", [])])), ", question q"),
        (squad_json(("a", [("q", "?", [("", 0)])])), ", question q"),
        (_ONE.replace('"context": "a', r'"context": "a\ud83d'), ": context"),
        (_ONE.replace('"id": "q', r'"id": "\ud83d'), ", question \ud83d"),
        (_ONE.replace('"?"', r'"\ud83d"'), ", question q"),
    ],
)
def test_json_of_another_structure_than_squads_is_refused(
    tmp_path, content: str, location: str
) -> None:
    _write(tmp_path, {"dev.json": content})
    assert _refusal("cmrc2018", tmp_path).subject == f"{tmp_path / 'dev.json'}{location}"


def test_unanswerable_questions_are_bad_rows(tmp_path) -> None:
    value = json.loads(squad_json((CONTEXT, [("Q_2", "?", []), *PARAGRAPH[1]])))
    value["data"][0]["paragraphs"][0]["qas"][0]["is_impossible"] = True
    folder = _write(tmp_path, {"dev.json": json.dumps(value)})
    error = _refusal("cmrc2018", folder)
    assert error.subject == f"{folder}/dev.json, question Q_2" and "SQuAD 2.0" in error.received
    data = read_split(tasks.load_task("cmrc2018"), folder, "dev", skip_bad_rows=True)
    assert data.examples == [QUESTION] and _is_only_bad_row(data, error)


def test_original_layout_of_cmrc_is_read(tmp_path) -> None:
    context = "长江流入东海。东海在上海以东。"
    qas = [
        {
            "query_id": "T_0_Q_0",
            "query_text": "流入哪里？",
            "answers": ["东海", "流入东海", "东海"],
        },
        {"query_id": "T_0_Q_1", "query_text": "在哪里？", "answers": ["北京"]},
    ]
    content = [{"context_id": "T_0", "context_text": context, "qas": qas, "title": "长江"}]
    folder = _write(tmp_path, {"cmrc2018_train.json": json.dumps(content)})
    error = _refusal("cmrc2018", folder, "train")
    assert error.subject == f"{folder}/cmrc2018_train.json, question T_0_Q_1"
    data = read_split(tasks.load_task("cmrc2018"), folder, "train", skip_bad_rows=True)
    (example,) = data.examples
    assert (example.key, example.texts) == ("T_0_Q_0", ("流入哪里？", context))
    assert [(answer.text, answer.start) for answer in example.answers] == [
        ("东海", 4),
        ("流入东海", 2),
    ]
    assert data.num_relocated == 0


def test_json_after_a_byte_order_mark_is_read(tmp_path) -> None:
    folder = _write(tmp_path, {"dev.json": "\ufeff" + _ONE})
    (example,) = read_split(tasks.load_task("cmrc2018"), folder, "dev").examples
    assert example.texts == ("?", "a")


# For each split: the numbers of examples, skipped rows and relocated answers.
REAL = [
    ("sst2", "en/SST-2", {"train": (67349, 0, 0), "dev": (872, 0, 0), "test": (1821, 0, 0)}),
    ("mrpc", "en/MRPC", {"train": (4076, 0, 0), "dev": (1725, 0, 0)}),
    ("chnsenticorp", "zh/tasks/ChnSentiCorp",
     {"train": (9600, 0, 0), "dev": (1200, 0, 0), "test": (1200, 0, 0)}),
    ("ocnli", "zh/tasks/OCNLI",
     {"train": (9985, 15, 0), "dev": (2950, 50, 0), "test": (3000, 0, 0)}),
    ("tnews", "zh/tasks/TNEWS_few",
     {"train": (1185, 0, 0), "dev": (1098, 0, 0), "test": (2010, 0, 0)}),
    ("cmrc2018", "zh/tasks/cmrc2018", {"train": (10142, 0, 21), "dev": (1002, 0, 5)}),
    *((f"xquad_{language}", "xquad", {"dev": (1190, 0, 0)}) for language in ("en", "ru", "zh")),
    ("rusentiment", "ru/RuSentiment", {"train": (28218, 0, 0), "dev": (2967, 0, 0)}),
]  # fmt: skip


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "folder", "split", "counts"),
    [(*task, split, counts) for *task, splits in REAL for split, counts in splits.items()],
)
def test_published_files_have_known_numbers_of_examples(
    name: str, folder: str, split: str, counts: tuple[int, ...]
) -> None:
    data = read_split(tasks.load_task(name), SHARED / "data" / folder, split)
    assert (len(data.examples), data.num_left_out, data.num_relocated) == counts
    assert len({example.key for example in data.examples}) == counts[0] and not data.bad_rows
    # CMRC's trial file has two empty questions.
    assert all(example.texts[-1].strip() for example in data.examples)
    for example in data.examples:
        for answer in example.answers:
            assert example.texts[1].startswith(answer.text, answer.start)


@pytest.mark.shared
def test_posts_equal_those_read_by_the_csv_module() -> None:
    folder = SHARED / "data" / "ru" / "RuSentiment"
    rows = []
    for name in ("rusentiment_preselected_posts.csv", "rusentiment_random_posts.csv"):
        with open(folder / name, encoding="utf-8", newline="") as file:
            rows += [(row["text"], row["label"]) for row in csv.DictReader(file)]
    spec = tasks.load_task("rusentiment")
    examples = [
        (example.texts[0], spec.labels[example.label])
        for example in read_split(spec, folder, "train").examples
    ]
    assert examples == rows
