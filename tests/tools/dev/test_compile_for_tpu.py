"""Tests of compile_for_tpu: compiled programs, their descriptions, and the search for batches."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import types
from collections.abc import Callable

import pytest

from pipeline.base.accelerators import TPUS
from pipeline.base.errors import InputError
from tests.tools.dev.test_benchmark_step import write_config
from tools.dev import compile_for_tpu as tool
from tools.dev.workloads import recipes, step_programs, tpu_compiler
from tools.dev.workloads.tpu_compiler import Program, Topology

ROOT = pathlib.Path(__file__).parents[3]
TOPOLOGY = Topology("v5e:2x2", TPUS["v5e"], 1000.0, devices=[None] * 4)


def _program(size: int, fits: bool = True, memory: float | None = 500.0, **others) -> Program:
    return Program("step", size, 4, 2.0, fits, memory, **others)


def _error(capsys) -> str:
    lines = capsys.readouterr().err.splitlines()
    (error,) = [line for line in lines if line.startswith("error: ")]
    return error


def _search(memory: Callable[[int], float | None], start: int, multiple: int = 4) -> list[Program]:
    def compile_batch(size: int) -> Program:
        needed = memory(size)
        return _program(size, needed is not None and needed <= 1000, needed)

    return tool.find_largest(compile_batch, start=start, multiple=multiple, usable_bytes=1000.0)


@pytest.mark.parametrize("start", [4, 40, 400, 4000])
def test_largest_batch_of_linear_memory_is_found_with_few_programs(start: int) -> None:
    programs = _search(lambda size: 100 + 2.2 * size, start)
    # (1000 − 100) / 2.2 = 409.09.
    assert tool.largest_that_fits(programs) == 408
    assert 412 in [program.batch_size for program in programs if not program.fits]
    assert len(programs) <= 6


@pytest.mark.parametrize(
    "memory",
    [
        # Memory that the compiler saves when it becomes scarce; steps; no reported number.
        lambda size: min(100 + 3 * size, 900 + size / 4),
        lambda size: 100 + 64 * (size // 32),
        lambda size: 500.0 if size <= 404 else None,
        lambda size: None if size > 404 else 10.0 * size / 404,
        lambda size: min(100 + 2 * size, 990) if size < 1500 else 1500 + size,
    ],
    ids=["bent", "stairs", "silent", "nearly nothing", "flat"],
)
def test_next_multiple_of_the_largest_batch_does_not_fit(
    memory: Callable[[int], float | None],
) -> None:
    programs = _search(memory, 64)
    sizes = [program.batch_size for program in programs]
    assert len(sizes) == len(set(sizes))
    largest = tool.largest_that_fits(programs)
    fits = [size for size in range(4, 4000, 4) if (memory(size) or 2000) <= 1000]
    assert largest == max(fits) and largest + 4 in sizes
    # Compiling a program takes minutes, so the number of programs must be small.
    assert len(sizes) <= 25


def test_search_ends_at_the_smallest_batch_if_none_fits() -> None:
    programs = _search(lambda size: 2000 + size, 64)
    assert tool.largest_that_fits(programs) is None
    assert programs[-1].batch_size == 4


def test_needed_memory_is_read_from_compiler_errors() -> None:
    late = RuntimeError(
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 19.62G of 15.75G hbm. Exceeded hbm capacity by 3.87G.\n\nTotal hbm usage"
    )
    assert tpu_compiler.needed_bytes(late) == 19.62 * 2**30
    early = RuntimeError(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (512.00G) exceeds available HBM (15.75G)."
    )
    assert tpu_compiler.needed_bytes(early) == 512 * 2**30
    assert tpu_compiler.needed_bytes(RuntimeError("RESOURCE_EXHAUSTED: no number")) is None
    with pytest.raises(RuntimeError, match="INTERNAL: a defect"):
        tpu_compiler.needed_bytes(RuntimeError("INTERNAL: a defect"))


def test_the_roofline_is_the_longer_of_two_times() -> None:
    # 197e12 operations take one second, and so do 819e9 bytes.
    chip = TPUS["v5e"]
    computing = _program(8, flops=2 * 197e12, bytes_accessed=819e9)
    assert computing.roofline_seconds(chip) == 2.0
    moving = dataclasses.replace(computing, bytes_accessed=3 * 819e9)
    assert moving.roofline_seconds(chip) == 3.0
    assert _program(8).roofline_seconds(chip) is None


@pytest.mark.parametrize("counted", [1.0, 1e15])
def test_operations_are_at_least_those_that_the_model_requires(monkeypatch, counted) -> None:
    """The compiler counts only one iteration of a loop over blocks of positions."""
    sizes = ("argument", "output", "alias", "temp", "generated_code")
    memory = types.SimpleNamespace(**{f"{name}_size_in_bytes": 1 for name in sizes})
    compiled = types.SimpleNamespace(
        memory_analysis=lambda: memory,
        cost_analysis=lambda: {"flops": counted, "bytes accessed": 1.0},
    )
    lowered = types.SimpleNamespace(compile=lambda: compiled)
    monkeypatch.setitem(tpu_compiler._PARTS, "step", lambda *_: lowered)
    workload = recipes.read_recipe("distilrubert_tiny")
    program = tpu_compiler.compile_part(workload, "step", 8, TOPOLOGY)
    required = 8 * step_programs.step_flops(workload) / TOPOLOGY.num_chips
    assert program.flops == max(required, counted) and 1.0 < required < 1e15


def test_table_shows_memory_roofline_and_compiler_times() -> None:
    fits = _program(
        256,
        memory=12.5 * 2**30,
        argument_bytes=2**30,
        temporary_bytes=11 * 2**30,
        flops=197e11,
        bytes_accessed=819e8 * 2,
        compiler_seconds=-3.0,
    )
    too_large = _program(512, fits=False, memory=19.62 * 2**30)
    lines = tool.table([fits, too_large], TOPOLOGY).splitlines()
    assert lines[0].split() == [
        *("part", "batch", "fits", "memory", "arguments", "temporaries", "TFLOP", "roofline"),
        *("compiler", "examples/s", "compiled", "in"),
    ]
    # The bytes take 0.2 s, which gives 1,280 examples per second. A negative time is not shown.
    assert lines[2].split() == [
        *("step", "256", "yes", "12.50", "1.00", "11.00", "19.70", "200", "ms", "1280", "2", "s")
    ]
    assert lines[3].split() == ["step", "512", "no", "19.62", "2", "s"]
    assert lines[-1].endswith("is unusable: it is not positive")
    estimated = dataclasses.replace(fits, compiler_seconds=0.25)
    lines = tool.table([estimated, too_large], TOPOLOGY).splitlines()
    assert "250 ms" in lines[2] and lines[-1] == "compiler: the compiler's estimate of the time"


def test_json_describes_programs_and_models() -> None:
    workload = recipes.read_recipe("roberta_wwm")
    report = tool.to_json([_program(256, compiler_seconds=-3.0)], workload, TOPOLOGY)
    assert json.loads(json.dumps(report)) == report
    assert report["programs"][0]["compiler_estimates"] is False
    assert report["student"]["hidden_size"] == 768 and report["teacher"]["hidden_size"] == 1024


CACHED = ("roberta_wwm", "roberta_wwm_3layers", "minirbt", "rubert_tiny")


@pytest.mark.parametrize(
    ("recipe", "layers", "batch", "accumulated", "positions"),
    [
        ("roberta_wwm", 12, 384, 1, 20),
        ("roberta_wwm_3layers", 3, 128, 1, 20),
        ("distilbert", 6, 32, 128, 77),
        ("distilrubert_tiny", 2, 8, 512, 77),
        ("tinybert_general", 4, 256, 1, 20),
        ("minilm_v2", 6, 8, 32, 6),
        ("minirbt", 6, 32, 128, 77),
        ("rubert_tiny", 3, 64, 4, 20),
    ],
)
def test_recipes_give_their_published_workloads(
    recipe: str, layers: int, batch: int, accumulated: int, positions: int
) -> None:
    workload = recipes.read_recipe(recipe)
    assert workload.student.num_hidden_layers == layers
    assert workload.config.train_batch_size == batch
    assert workload.config.gradient_accumulation_steps == accumulated
    assert workload.max_predictions_per_seq == positions
    assert workload.live == (recipe not in CACHED)
    assert (workload.teacher_info() is None) == workload.live
    assert (workload.student.type_vocab_size == 0) == (recipe == "distilbert")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v9:2x2"], "--topology: "),
        (["--topology=v5e:2by2"], "--topology: "),
        (["--max_seq_length=513"], "--max_seq_length: "),
        (["--student_config=bert-base"], "--student_config: "),
        (["--teacher_config=nowhere"], "--teacher_config: "),
        (["--max_seq_length=8", "--max_predictions_per_seq=9"], "--max_predictions_per_seq: "),
        (["--json=/nowhere/plan.json"], "--json: "),
    ],
)
def test_invalid_flags_are_named_in_errors(capsys, flags: list[str], message: str) -> None:
    assert tool.main(["compile_for_tpu", *flags]) == 1
    assert _error(capsys).startswith(f"error: {message}")


def test_missing_compiler_is_an_error_with_a_hint(capsys, monkeypatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else find_spec(name)
    )
    assert tool.main(["compile_for_tpu"]) == 1
    line = _error(capsys)
    assert line.startswith("error: --topology: ")
    assert "pip install libtpu" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--per_step_batch_size=6"], "--per_step_batch_size: "),
        (["--part=teacher", "--predict_batch_size=2"], "--predict_batch_size: "),
        (["--find_batch", "--batch_multiple=6"], "--batch_multiple: "),
    ],
)
def test_batches_that_chips_cannot_share_equally_are_errors(
    capsys, monkeypatch, flags: list[str], message: str
) -> None:
    monkeypatch.setattr(tpu_compiler, "open_topology", lambda name: TOPOLOGY)
    assert tool.main(["compile_for_tpu", *flags]) == 1
    assert _error(capsys).startswith(f"error: {message}")


def test_search_reports_the_largest_batch_that_fits(capsys, monkeypatch, tmp_path) -> None:
    def compile_part(workload, part: str, size: int, topology: Topology) -> Program:
        assert workload.config.recompute_activations and part == "step"
        return _program(size, fits=size <= 500, memory=2.0 * size)

    monkeypatch.setattr(tpu_compiler, "open_topology", lambda name: TOPOLOGY)
    monkeypatch.setattr(tpu_compiler, "compile_part", compile_part)
    path = tmp_path / "plan.json"
    flags = ["--part=step", "--find_batch", "--recompute_activations", f"--json={path}"]
    assert tool.main(["compile_for_tpu", *flags]) == 0
    assert "step: the largest batch that fits is 500\n" in capsys.readouterr().out
    programs = json.loads(path.read_text())["programs"]
    sizes = {program["batch_size"]: program["fits"] for program in programs}
    assert sizes[384] and sizes[500] and not sizes[504]


def test_topology_names_give_chip_and_layout() -> None:
    assert tpu_compiler.parse_topology("v5e:2x4") == ("v5e", (2, 4))
    assert tpu_compiler.parse_topology("v5p:2x2x1") == ("v5p", (2, 2, 1))
    with pytest.raises(InputError):
        tpu_compiler.parse_topology("v4:2x2x1")


@pytest.mark.tpu
def test_a_tiny_step_and_forward_are_compiled(tmp_path) -> None:
    """Requires `libtpu`, installed or on PYTHONPATH; JAX needs a new process."""
    config = write_config(tmp_path, hidden_size=64, num_attention_heads=2)
    flags = ["--max_seq_length=64", "--per_step_batch_size=8", "--predict_batch_size=8"]
    path = tmp_path / "plan.json"
    models = [f"--student_config={config}", f"--teacher_config={config}", f"--json={path}"]
    result = subprocess.run(
        [sys.executable, "-m", "tools.dev.compile_for_tpu", *flags, *models],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(path.read_text())
    assert [program["part"] for program in report["programs"]] == ["step", "teacher"]
    for program in report["programs"]:
        assert program["fits"] and program["num_chips"] == 4
        assert 0 < program["argument_bytes"] < program["memory_bytes"] < report["usable_bytes"]
        assert program["roofline_seconds"] > 0
