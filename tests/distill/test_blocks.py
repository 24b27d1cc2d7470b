"""Training with logits in blocks of positions equals training with all logits at once."""

import importlib.util

import pytest

from pipeline.base.location import Location
from pipeline.distill.preparation import prepare
from pipeline.distill.settings import DistillConfig, StudentConfig
from pipeline.models import position_blocks
from tests.conftest import run_python
from tests.distill.running import assert_close_lines, read_weights

RUN = """
import sys
from pipeline.models import position_blocks
position_blocks._MAX_TABLE_BYTES = int(sys.argv.pop(1))
from pipeline import run_distill
raise SystemExit(run_distill.main(sys.argv))
"""
CACHED = ("--losses=soft_cross_entropy=1,probability_cosine=1,masked_lm=1,kl_divergence=1",)
LIVE = (
    "--losses=kl_divergence=5,masked_lm=2,hidden_cosine=1",
    "--loss_positions=all",
    "--temperature=2",
)
BACKENDS = [
    "tensorflow",
    pytest.param(
        "jax",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("jax") is None, reason="JAX is not installed"
        ),
    ),
]


def _train(output_dir: Location, table_bytes: int, *arguments: str) -> Location:
    run_python(
        "-c",
        RUN,
        str(table_bytes),
        *arguments,
        f"--output_dir={output_dir}",
        "--student_layers=1",
        "--num_train_steps=4",
        "--train_batch_size=4",
        "--eval_batch_size=4",
        "--learning_rate=1e-3",
    )
    return output_dir


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("source", ["top-k", "states", "live"])
def test_training_in_blocks_gives_the_same_student(
    tmp_path, cache_dir, states_cache_dir, teacher_dir, backend, source
) -> None:
    cache = states_cache_dir if source == "states" else cache_dir
    arguments = [f"--input_dir={cache}", f"--init_from={teacher_dir}", f"--backend={backend}"]
    arguments += [*LIVE, f"--teacher={teacher_dir}"] if source == "live" else CACHED
    whole = _train(tmp_path / "whole", 2**40, *arguments)
    # The limit allows about two positions of each row in a block.
    blocks = _train(tmp_path / "blocks", 2**13, *arguments)
    assert_close_lines(whole, blocks)
    for name, value in read_weights(whole).items():
        assert abs(value - read_weights(blocks)[name]).max() < 2e-4, name


def test_more_devices_allow_larger_blocks(tmp_path, monkeypatch, cache_dir, teacher_dir) -> None:
    student = StudentConfig(init_from=str(teacher_dir), student_layers=1)
    folders = {"input_dir": str(cache_dir), "output_dir": str(tmp_path / "student")}
    run = prepare(DistillConfig(student, train_batch_size=64, eval_batch_size=32, **folders))
    table_bytes = 4 * 64 * run.start.config.vocab_size
    monkeypatch.setattr(position_blocks, "_MAX_TABLE_BYTES", table_bytes)
    assert [run.block_size(), run.block_size(1), run.block_size(4)] == [1, 1, 4]
    # On 64 devices, all positions of an input fit in one block.
    assert run.block_size(64) is None
