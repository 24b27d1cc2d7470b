"""Tests of the dtype that `--compute_dtype=auto` chooses, and of its record."""

import json
import pathlib

import pytest

from pipeline import run_distill
from pipeline.base import compute_dtype

CPU_INFO = """processor\t: 0
model name\t: A Processor
flags\t\t: fpu sse2 avx512f {} amx_tile
power management:
"""


@pytest.mark.parametrize(
    ("devices", "flags", "expected"),
    [
        ((), "avx512_bf16", ("mixed_bfloat16", "the processor has avx512_bf16")),
        (["cpu:0"], "amx_bf16", ("mixed_bfloat16", "the processor has amx_bf16")),
        # The name of an instruction is only a prefix of the flag.
        (
            ["cpu:0"],
            "avx512_bf16x",
            ("float32", "the processor is not known to have avx512_bf16 or amx_bf16"),
        ),
        (["gpu:0", "gpu:1"], "", ("mixed_bfloat16", "gpu:0 supports it")),
        (["cpu:0", "tpu:0"], "", ("mixed_bfloat16", "tpu:0 supports it")),
    ],
)
def test_detect_chooses_bfloat16_only_with_hardware_support(
    tmp_path, devices, flags: str, expected: tuple[str, str]
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(CPU_INFO.format(flags), encoding="utf-8")
    assert compute_dtype.detect(devices, file) == expected


def test_detect_chooses_float32_without_a_description_of_the_processor(tmp_path) -> None:
    assert compute_dtype.detect(["cpu:0"], tmp_path / "none")[0] == "float32"


@pytest.mark.long
@pytest.mark.parametrize(
    "chosen", [pytest.param("float32", marks=pytest.mark.slow), "mixed_bfloat16"]
)
def test_run_configuration_records_the_chosen_dtype(
    cache_dir, teacher_dir, tmp_path, monkeypatch, capsys, chosen: str
) -> None:
    monkeypatch.setattr(compute_dtype, "detect", lambda devices: (chosen, "the test chose it"))
    folder = tmp_path / "student"
    flags = [
        f"--input_dir={cache_dir}",
        f"--student={teacher_dir}",
        f"--output_dir={folder}",
        "--num_train_steps=1",
        "--train_batch_size=4",
        "--nodo_eval",
        "--compute_dtype=auto",
    ]
    assert run_distill.main(["run_distill", *flags]) == 0
    assert f"--compute_dtype=auto: {chosen}, because the test chose it\n" in capsys.readouterr().err
    request = json.loads((pathlib.Path(folder) / "request.json").read_text(encoding="utf-8"))
    assert request["compute_dtype"] == chosen
    # Naming the chosen dtype gives the same run configuration, and prints no line about `auto`.
    assert run_distill.main(["run_distill", *flags[:-1], f"--compute_dtype={chosen}"]) == 0
    assert "auto" not in capsys.readouterr().err
