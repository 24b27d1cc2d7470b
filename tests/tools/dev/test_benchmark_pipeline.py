"""Tests of the pipeline benchmark with a tiny teacher."""

import json
import pathlib
import sys

import numpy as np
import pytest

from data_specs import records
from pipeline.base.location import Location
from tests.conftest import make_text
from tools import measurement
from tools.dev import benchmark_pipeline as tool
from tools.dev.benchmarks import processes, record_rows, student_rows, teacher_rows
from tools.dev.benchmarks.inputs import Inputs, write_beginning
from tools.measurement import Row

_SMALL_SIZES = {
    record_rows: {
        "_EXAMPLES": 32,
        "_COPIES": 2,
        "_READ_BATCH_SIZE": 16,
        "_READ_BATCHES": 5,
        "_SAMPLE": 32,
    },
    teacher_rows: {"_EXAMPLES": 64},
    student_rows: {"_LOG_STEPS": 1, "_LINES": 2},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> pathlib.Path:
    """Forty documents in a text file."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(make_text(seed=3, num_documents=40)) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> pathlib.Path:
    """The directory for the files of this module's benchmarks."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(autouse=True)
def without_peers(request, monkeypatch) -> None:
    """Makes the benchmarks small, with one dtype, and hides optional packages."""
    monkeypatch.setattr(tool.compute_dtype, "detect", lambda: ("float32", ""))
    for module, settings in _SMALL_SIZES.items():
        for name, value in settings.items():
            monkeypatch.setattr(module, name, value)
    if not {"peers", "ray"} & {mark.name for mark in request.node.iter_markers()}:
        monkeypatch.setattr(Inputs, "has", lambda self, *packages: False)


def _run(corpus, teacher, work, *others: str) -> int:
    flags = (f"--corpus={corpus}", f"--teacher={teacher}", f"--work={work}")
    return tool.main(["benchmark_pipeline", *flags, "--repeats=1", "--max_seq_length=48", *others])


def _rows(path: pathlib.Path) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads(path.read_text())["rows"]}


def test_pairs_are_measured_alternately() -> None:
    calls: list[str] = []
    figures = iter(())

    def call(name: str) -> float:
        calls.append(name)
        return next(figures)

    def compare(unit: str) -> Row:
        nonlocal figures
        figures = iter([2.0, 4.0, 3.0, 9.0, 2.5, 2.5])
        return measurement.compare(
            lambda: call("ours"), lambda: call("other"), 3, name="a", unit=unit
        )

    row = compare("s")
    assert calls == ["ours", "other"] * 3
    # The ratios are 2, 3 and 1. Figures and ratio are separate medians, not those of one pair.
    assert (row.ours, row.baseline, row.ratio, row.spread) == (2.5, 4.0, 2.0, (1.0, 3.0))
    row = compare("examples/s")
    assert row.ratio == pytest.approx(1 / 2)
    assert row.spread == pytest.approx((1 / 3, 1.0))


@pytest.mark.parametrize(
    ("targets", "met"),
    [
        ({}, None),
        ({"least_ratio": 2.0}, True),
        ({"least_ratio": 2.1}, False),
        ({"most": 5.0}, True),
        ({"most": 4.9}, False),
        ({"least_ratio": 2.0, "most": 4.9}, False),
    ],
)
def test_targets_are_met_only_if_all_are(targets, met) -> None:
    assert Row("a", "s", ours=5.0, baseline=10.0, ratio=2.0, **targets).met is met


@pytest.mark.parametrize(
    ("instructions", "kind"),
    [
        (["avx2"], "AVX2"),
        (["avx2", "avx512f"], "AVX-512"),
        (["avx2", "avx512f", "avx512_bf16"], "AVX-512-BF16"),
        (["asimd"], "Arm"),
    ],
)
def test_a_machine_is_of_the_kind_of_its_best_instructions(instructions, kind) -> None:
    assert measurement.machine_kind(instructions) == kind


def test_a_quick_run_has_fewer_groups_and_repeats(corpus, teacher_dir, tmp_path) -> None:
    def config(**settings: object) -> tool.BenchmarkConfig:
        paths = {"corpus": str(corpus), "teacher": str(teacher_dir), "work": str(tmp_path)}
        return tool.BenchmarkConfig(**paths, **settings).limited()

    quick = config(quick=True)
    assert (quick.repeats, quick.max_seq_length) == (2, 128)
    assert quick.groups == ("masking", "teacher", "records", "sizes", "student")
    less = config(quick=True, repeats=1, max_seq_length=48, groups=("ray", "sizes"))
    assert (less.repeats, less.max_seq_length, less.groups) == (1, 48, ("sizes",))
    assert (config().repeats, config().groups) == (5, tool.GROUPS)


def test_the_beginning_of_a_text_ends_with_a_line(tmp_path) -> None:
    text = Location.parse(tmp_path / "text.txt")
    text.write_bytes(b"one\ntwo\nthree\n")
    assert write_beginning(text, 9, text.parent).read_bytes() == b"one\ntwo\n"


def test_the_table_shows_missed_targets() -> None:
    row = Row("reading", "records/s", 1234.0, "lists", 617.0, 2.0, (1.9, 2.1), least_ratio=6.0)
    size = Row("bytes", "bytes a position", 522.0, most=535.0)
    lines = [" ".join(line.split()) for line in tool.table([row, size], "AVX2").splitlines()]
    assert lines[0] == "project baseline times better on AVX2 target"
    assert lines[2] == "reading 1,234 records/s 617 2.00 (1.90-2.10) >= 6 missed"
    assert lines[3] == "bytes 522 bytes a position <= 535 bytes met"
    assert "reading: lists" in lines


@pytest.mark.slow
def test_records_and_sizes_are_measured(corpus, teacher_dir, work, tmp_path) -> None:
    output = tmp_path / "benchmark.json"
    assert _run(corpus, teacher_dir, work, "--groups=records,sizes", f"--output={output}") == 0
    assert json.loads(output.read_text())["machine"]["cores"] >= 1
    rows = _rows(output)
    vocab = len((teacher_dir / "vocab.txt").read_text(encoding="utf-8").splitlines())
    k = min(128, vocab)
    assert rows[f"writing a record, float16, k={k}"]["ours"] > 0
    assert rows[f"reading to ready batches, float16, k={k}"]["baseline"] > 0
    # An id and a logit have two bytes each, two tails four bytes each, and the label two.
    cache = rows[f"cache, float16, k={k}"]
    assert cache["ours"] == k * 4 + 10
    # In lists, an id from 0 to 255 has one or two bytes, and a logit has four.
    assert 5 * k <= cache["baseline"] <= 6 * k + 2
    assert rows["cache, compact: KL(decoded || exact top-k)"]["ours"] < 1e-4


@pytest.mark.slow
def test_teacher_and_student_are_measured(corpus, teacher_dir, work, tmp_path) -> None:
    output = tmp_path / "benchmark.json"
    assert _run(corpus, teacher_dir, work, "--groups=teacher,student", f"--output={output}") == 0
    rows = _rows(output)
    names = {name.rsplit(", ", 1)[0] for name in rows}
    assert names == {
        "capture",
        "capture, mixed lengths",
        "run_distill",
        "run_distill, mixed lengths",
    }
    for row in rows.values():
        assert row["ours"] > 0
        assert row["ratio"] == pytest.approx(row["ours"] / row["baseline"])
        assert row["met"] is (row["ratio"] >= row["least_ratio"])


@pytest.mark.slow
def test_system_time_is_measured_for_each_stage(corpus, teacher_dir, work, tmp_path) -> None:
    output = tmp_path / "benchmark.json"
    assert _run(corpus, teacher_dir, work, "--groups=kernel", f"--output={output}") == 0
    rows = _rows(output)
    commands = ("create_pretraining_data", "create_teacher_output_data", "run_distill")
    assert list(rows) == [f"system time, {command}" for command in commands]
    for row in rows.values():
        assert row["ours"] > 0 and row["baseline"] > 0
        count, _, name = row["note"].partition(" ")
        assert int(count.replace(",", "")) > 1_000 and name == "minor page faults"


@pytest.mark.peers
def test_the_peers_compute_the_same(corpus, teacher_dir, work) -> None:
    from pipeline.models.formats import model_directory
    from tools.dev.benchmarks import pytorch_peer

    inputs = Inputs(work, corpus, corpus, teacher_dir, 1, 48)
    batch = teacher_rows.draw(inputs.examples(mixed=False)).batches[0]
    source = model_directory.find_model(teacher_dir)
    model = model_directory.load_masked_lm(source, dtype="float32", logits_dtype="float32")
    ours = teacher_rows.bare_forward(model)(batch)["logits"]
    peer, tensors = pytorch_peer.Teacher(teacher_dir, "float32"), pytorch_peer.tensors(batch)
    real = batch[records.MASKED_LM_IDS] > 0
    np.testing.assert_allclose(ours[real], peer.masked_positions(tensors).numpy()[real], atol=2e-4)
    everywhere = peer.all_positions(tensors).numpy()
    rows, columns = np.nonzero(real)
    received = everywhere[rows, batch[records.MASKED_LM_POSITIONS][rows, columns]]
    np.testing.assert_allclose(ours[real], received, atol=2e-4)


@pytest.mark.peers
def test_the_peers_are_measured(corpus, teacher_dir, work, tmp_path) -> None:
    output = tmp_path / "benchmark.json"
    groups = "--groups=masking,teacher,student"
    assert _run(corpus, teacher_dir, work, groups, f"--output={output}") == 0
    against = {row["against"] for row in _rows(output).values()}
    assert {
        "one thread of jieba.cut over the text, once",
        "PyTorch transformers, masked positions only",
    } <= against


@pytest.mark.ray
def test_ray_is_measured(corpus, teacher_dir, work, tmp_path) -> None:
    output = tmp_path / "benchmark.json"
    assert _run(corpus, teacher_dir, work, "--groups=ray", f"--output={output}") == 0
    rows = _rows(output)
    start = rows.pop("Ray, start and shutdown")
    assert set(rows) == {"prepare on Ray, whole process", "capture on Ray, whole process"}
    for row in rows.values():
        assert row["ours"] > start["ours"] > 0
        assert row["baseline"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_includes_the_children_of_a_process(corpus, vocab_file, tmp_path) -> None:
    settings = {"input_dir": corpus, "vocab_file": vocab_file, "max_seq_length": 48}
    finished = processes.run(
        "create_pretraining_data", output_dir=tmp_path / "masked", max_workers=2, **settings
    )
    assert finished.seconds > 0
    # At least an interpreter with NumPy, and at most the memory of a machine.
    assert 20e6 < finished.peak < 8e9
    # Page faults include those of worker processes, which import NumPy and end after the command.
    alone = processes.run(
        "create_pretraining_data", output_dir=tmp_path / "alone", max_workers=1, **settings
    )
    assert finished.page_faults > alone.page_faults + 1_000 > 2_000
    assert finished.user_seconds > alone.user_seconds / 2 > 0
    with pytest.raises(SystemExit, match="error: set --input_dir"):
        processes.run("create_pretraining_data", output_dir=tmp_path / "b", vocab_file=vocab_file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--corpus=/nowhere"], "--corpus: "),
        (["--groups=masking,speed"], "--groups: "),
        (["--teacher=/nowhere"], "--teacher: "),
    ],
)
def test_invalid_flags_are_named_in_errors(
    corpus, teacher_dir, tmp_path, capsys, changes, message
) -> None:
    assert _run(corpus, teacher_dir, tmp_path / "work", *changes) == 1
    assert f"error: {message}" in capsys.readouterr().err


def test_only_its_own_folders_are_removed(tmp_path) -> None:
    inputs = Inputs(tmp_path / "work", tmp_path, tmp_path, tmp_path, 1)
    outside = tmp_path / "outside"
    for path in (outside, inputs.work / "made"):
        path.mkdir(parents=True)
    inputs.remove(outside)
    inputs.remove(inputs.work)
    inputs.remove(inputs.work / "made")
    assert outside.is_dir() and inputs.work.is_dir()
    assert not (inputs.work / "made").exists()
