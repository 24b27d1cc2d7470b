"""The same student from several caches: what it reports, and what it refuses."""

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
    """The cache of `cache_dir` with fewer ids in fewer bytes."""
    folder = tmp_path_factory.mktemp("small") / "small"
    return make_cache(
        folder, examples_dir, teacher_dir, truncation_factor=4, logit_encoding="compact"
    )


def _compare(caches, work, *others: str) -> int:
    joined = ",".join(map(str, caches))
    return tool.main(["compare_caches", f"--caches={joined}", f"--work={work}", *others])


@pytest.mark.slow
def test_students_are_measured_on_the_first_cache(
    cache_dir, small_dir, teacher_dir, tmp_path, capsys
) -> None:
    output = tmp_path / "comparison.json"
    distill_flags = (
        f"--init_from='{teacher_dir}' --student_layers=1 --num_train_steps=3 --train_batch_size=8 "
        "--learning_rate=1e-3 --verify=sizes"
    )
    flags = (f"--distill_flags={distill_flags}", "--seeds=7", "--max_eval_steps=2")
    assert _compare([cache_dir, small_dir], tmp_path / "work", *flags, f"--output={output}") == 0
    found = json.loads(output.read_text())
    assert [one["cache"] for one in found] == [str(cache_dir), str(small_dir)]
    assert [one["kept"] for one in found] == [[16, 16], [4, 4.0]]
    assert found[0]["bytes_per_position"] == 16 * 4 + 10
    assert found[1]["bytes_per_position"] < 40
    for number, one in enumerate(found):
        assert set(one["scores"]) == {"7"}
        for seed, scores in one["scores"].items():
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
    means = [one["scores"]["7"]["kl_divergence"] for one in found]
    assert means[0] != means[1]
    said = capsys.readouterr().out
    assert f"{found[1]['scores']['7']['masked_lm']:.4f} " in said
    assert "mean and deviation of 1 seed" in said


def test_one_seed_has_no_deviation() -> None:
    scores = dict.fromkeys(tool.METRICS, 0.5)
    one = Comparison("a/cache", (4, 3.5), "compact", 20.0, {1: scores})
    assert one.deviation("masked_lm") is None
    assert one.mean("masked_lm") == 0.5
    two = Comparison("a/cache", (4, 3.5), "compact", 20.0, {1: scores, 2: {**scores, "KL": 1.0}})
    assert two.deviation("masked_lm") == 0.0
    assert "±" not in tool.table([one])
    assert "0.5000 ±0.0000" in tool.table([two])


def _refusal(**settings: object) -> InputError:
    with pytest.raises(InputError) as caught:
        tool.compare(CompareConfig(**{"distill_flags": "--student=a", **settings}))
    return caught.value


def test_caches_of_other_examples_are_refused(
    cache_dir, examples_dir, teacher_dir, tmp_path
) -> None:
    part, files = tmp_path / "part", f"{examples_dir}/*-00000-of-*"
    settings = {"teacher": teacher_dir, "truncation_factor": 4, "predict_batch_size": 8}
    create_teacher_cache(TeacherCacheConfig(output_dir=part, input_file=files, **settings))
    error = _refusal(caches=(cache_dir, part), work=tmp_path / "work")
    assert error.subject == Setting("caches") and f"{cache_dir} (" in error.received
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("name", ["output_dir=x", "nodo_eval", "random_seed=3"])
def test_flags_of_its_own_are_refused(tmp_path, name: str) -> None:
    error = _refusal(caches=str(tmp_path), work=tmp_path, distill_flags=f"--{name}")
    assert error.subject == Setting("distill_flags")
    assert f"`{name.partition('=')[0]}`" in error.expected


def test_masked_examples_are_no_cache(examples_dir, tmp_path) -> None:
    error = _refusal(caches=(examples_dir,), work=tmp_path)
    assert (error.subject, error.expected) == (str(examples_dir), "a teacher cache")
