"""Evaluation of students on the eval split of a teacher cache."""

from collections.abc import Mapping

from pipeline.base.location import Location


def evaluate(student: Location, cache: Location, max_steps: int) -> Mapping[str, float]:
    """Returns the evaluation report of a student, with the keys of `metrics.jsonl`.

    Args:
        student: a model directory.
        cache: a cache directory.
        max_steps: maximum number of batches of 32.
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
    # Without this call, Keras keeps the models of all students in memory.
    keras.backend.clear_session()
    return report
