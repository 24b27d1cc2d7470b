"""The same student from several caches: what it reports, and what it refuses."""

import json

import pytest

from pipeline.distill import training
from pipeline.distill.settings import DistillConfig, StudentConfig, parse_losses
from pipeline.teacher.capture import create_teacher_cache
from pipeline.teacher.settings import TeacherCacheConfig
from tests.conftest import make_cache
from tools import compare_caches as tool
from tools.compare_caches import Comparison


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
            student = str(tmp_path / "work" / f"{number}-{seed}")
            config = DistillConfig(
                StudentConfig(student=student),
                parse_losses("kl_divergence=1"),
                input_dir=str(cache_dir),
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


def test_caches_of_other_examples(cache_dir, examples_dir, teacher_dir, tmp_path, capsys) -> None:
    part = tmp_path / "part"
    create_teacher_cache(
        TeacherCacheConfig(
            output_dir=str(part),
            input_file=f"{examples_dir}/*-00000-of-*",
            teacher=str(teacher_dir),
            truncation_factor=4,
            predict_batch_size=8,
        )
    )
    assert _compare([cache_dir, part], tmp_path / "work", "--distill_flags=--student=a") == 1
    message = capsys.readouterr().err
    assert (
        f"--caches: expected caches of the same masked examples, received {cache_dir} (" in message
    )
    assert not any((tmp_path / "work").iterdir())


@pytest.mark.parametrize(
    ("distill_flags", "message"),
    [
        ("--output_dir=x", "--distill_flags: expected no --output_dir, which is chosen"),
        ("--nodo_eval", "--distill_flags: expected no --nodo_eval, which is chosen"),
        ("-random_seed=3", "--distill_flags: expected no --random_seed, which is chosen"),
    ],
)
def test_flags_of_its_own(cache_dir, tmp_path, capsys, distill_flags, message) -> None:
    assert _compare([cache_dir], tmp_path, f"--distill_flags={distill_flags}") == 1
    assert message in capsys.readouterr().err


def test_masked_examples_are_no_cache(examples_dir, tmp_path, capsys) -> None:
    assert _compare([examples_dir], tmp_path, "--distill_flags=--student=a") == 1
    expected = f"error: --caches: expected teacher caches, received {examples_dir}, which is none"
    assert expected in capsys.readouterr().err
