"""The run that the tests of distillation vary."""

import pytest

from pipeline.distill.settings import DistillConfig, StudentConfig


@pytest.fixture(scope="session")
def shared_run(cache_dir, teacher_dir) -> dict:
    """Settings of a run of twelve steps: two layers of the teacher's three, with dropout."""
    return {
        "student": StudentConfig(init_from=teacher_dir, student_layers=2),
        "losses": {"soft_cross_entropy": 1.0, "probability_cosine": 1.0},
        "input_dir": cache_dir,
        "train_batch_size": 8,
        "eval_batch_size": 8,
        "num_train_steps": 12,
        "learning_rate": 1e-3,
        "save_checkpoints_steps": 5,
        "log_steps": 3,
        "shuffle_buffer_size": 64,
    }


@pytest.fixture
def config(shared_run, tmp_path) -> DistillConfig:
    """The run, not begun."""
    return DistillConfig(output_dir=tmp_path / "student", **shared_run)
