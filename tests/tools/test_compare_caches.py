"""Comparison of caches by the scores of their students."""

import dataclasses
import json

import pytest

from pipeline.base.errors import InputError, Setting
from pipeline.distill import training
from pipeline.distill.settings import DistillConfig, StudentConfig, parse_losses
from pipeline.teacher.capture import create_teacher_cache
from pipeline.teacher.settings import TeacherCacheConfig
from tests.conftest import make_cache
from tools import compare_caches as tool
from tools.compare_caches import CompareConfig, Comparison


@pytest.fixture(scope="module")
def small_dir(tmp_path_factory, examples_dir, teacher_dir):
    """A compact cache of the same examples as `cache_dir`, with fewer ids."""
    folder = tmp_path_factory.mktemp("small") / "small"
    return make_cache(
        folder, examples_dir, teacher_dir, truncation_factor=4, logit_encoding="compact"
    )


def _compare(caches, work, *settings: str) -> int:
    joined = ",".join(map(str, caches))
    return tool.main(["compare_caches", f"--caches={joined}", f"--work={work}", *settings])


@pytest.mark.slow
def test_students_are_evaluated_on_the_first_cache(
    cache_dir, small_dir, teacher_dir, tmp_path, capsys
) -> None:
    output = tmp_path / "comparison.json"
    distill_flags = (
        f"--init_from='{teacher_dir}' --student_layers=1 --num_train_steps=3 --train_batch_size=8 "
        "--learning_rate=1e-3 --verify=sizes"
    )
    flags = (f"--distill_flags={distill_flags}", "--seeds=7", "--max_eval_steps=2")
    assert _compare([cache_dir, small_dir], tmp_path / "work", *flags, f"--output={output}") == 0
    comparisons = json.loads(output.read_text())
    assert [comparison["cache"] for comparison in comparisons] == [str(cache_dir), str(small_dir)]
    assert [comparison["kept"] for comparison in comparisons] == [[16, 16], [4, 4.0]]
    assert comparisons[0]["bytes_per_position"] == 16 * 4 + 10
    assert comparisons[1]["bytes_per_position"] < 40
    for number, comparison in enumerate(comparisons):
        assert set(comparison["scores"]) == {"7"}
        for seed, scores in comparison["scores"].items():
            student = tmp_path / "work" / f"{number}-{seed}"
            config = DistillConfig(
                StudentConfig(student=student),
                parse_losses("kl_divergence=1"),
                input_dir=cache_dir,
                do_train=False,
                max_eval_steps=2,
            )
            report = training.distill(config)
            assert scores == {name: pytest.approx(report[name], rel=1e-5) for name in scores}
    means = [comparison["scores"]["7"]["kl_divergence"] for comparison in comparisons]
    assert means[0] != means[1]
    printed = capsys.readouterr().out
    assert f"{comparisons[1]['scores']['7']['masked_lm']:.4f} " in printed
    assert "mean and standard deviation of 1 seed" in printed


def test_single_seed_has_no_deviation() -> None:
    scores = dict.fromkeys(tool.METRICS, 0.5)
    one_seed = Comparison("a/cache", (4, 3.5), "compact", 20.0, {1: scores})
    assert one_seed.deviation("masked_lm") is None
    assert one_seed.mean("masked_lm") == 0.5
    two_seeds = dataclasses.replace(one_seed, scores={1: scores, 2: {**scores, "KL": 1.0}})
    assert two_seeds.deviation("masked_lm") == 0.0
    assert "±" not in tool.table([one_seed])
    assert "0.5000 ±0.0000" in tool.table([two_seeds])


def _refusal(**settings: object) -> InputError:
    with pytest.raises(InputError) as caught:
        tool.compare(CompareConfig(**{"distill_flags": "--student=a", **settings}))
    return caught.value


def test_caches_of_other_examples_are_refused(
    cache_dir, examples_dir, teacher_dir, tmp_path
) -> None:
    one_shard, files = tmp_path / "part", f"{examples_dir}/*-00000-of-*"
    settings = {"teacher": teacher_dir, "truncation_factor": 4, "predict_batch_size": 8}
    create_teacher_cache(TeacherCacheConfig(output_dir=one_shard, input_file=files, **settings))
    error = _refusal(caches=(cache_dir, one_shard), work=tmp_path / "work")
    assert error.subject == Setting("caches") and f"{cache_dir} (" in error.received
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("name", ["output_dir=x", "nodo_eval", "random_seed=3"])
def test_flags_that_the_tool_sets_are_refused(tmp_path, name: str) -> None:
    error = _refusal(caches=str(tmp_path), work=tmp_path, distill_flags=f"--{name}")
    assert error.subject == Setting("distill_flags")
    assert f"`{name.partition('=')[0]}`" in error.received


def test_masked_examples_are_refused_as_a_cache(examples_dir, tmp_path) -> None:
    error = _refusal(caches=(examples_dir,), work=tmp_path)
    assert (error.subject, error.expected) == (str(examples_dir), "a teacher cache")
