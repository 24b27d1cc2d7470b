"""Evaluation of students on the eval split of a teacher cache."""

from collections.abc import Mapping

from pipeline.base.location import Location


def evaluate(student: Location, cache: Location, max_steps: int) -> Mapping[str, float]:
    """Returns the evaluation report of a student, by the names of `metrics.jsonl`.

    Args:
        student: a model directory.
        cache: a cache directory.
        max_steps: batches of 32, at most.
    """
    import keras

    from pipeline.distill import training
    from pipeline.distill.settings import DistillConfig, StudentConfig, parse_losses

    config = DistillConfig(
        StudentConfig(student=student),
        parse_losses("kl_divergence=1"),
        input_dir=cache,
        do_train=False,
        max_eval_steps=max_steps,
        verify="sizes",
    )
    report = training.distill(config)
    # Else the models of all students stay in memory.
    keras.backend.clear_session()
    return report
