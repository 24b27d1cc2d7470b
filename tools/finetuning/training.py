"""Fine-tuning of a model on a task: training, evaluation and the files of the run."""

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import msgspec
import numpy as np
import tensorflow as tf
import tqdm

from pipeline.base import json_text
from pipeline.base.errors import DivergedError, InputError, Setting
from pipeline.base.json_text import format_value
from pipeline.base.location import Location
from pipeline.distill.optimization import WarmupLinearDecay, build_optimizer
from pipeline.distill.run_log import RunLog
from pipeline.storage import manifest as manifests
from tools.finetuning import heads, prediction, scoring, task_teacher
from tools.finetuning.heads import TaskModel
from tools.finetuning.inputs import WEIGHTS, Arrays, Padding, TrainingBatches
from tools.finetuning.objective import TaskObjective
from tools.finetuning.preparation import Preparation, prepare
from tools.finetuning.settings import FinetuneConfig

METRICS_FILE = "metrics.json"
MODEL_FOLDER = "model"
# The maximum length of a file name on common file systems.
_MAX_NAME = 255


@dataclasses.dataclass(frozen=True)
class Result:
    """The results of a finished run.

    Attributes:
        directory: contains `model`, `predictions` and `metrics.json`.
        metrics: the official scores on the evaluated split, from 0 to 1; correlations are
            from −1 to 1.
        counts: numbers of examples, inputs and steps, and inputs per second.
        predictions: the submission files, that of the evaluated split first.
    """

    directory: Location
    metrics: Mapping[str, float]
    counts: Mapping[str, float]
    predictions: tuple[Location, ...]


def finetune(config: FinetuneConfig, preparation: Preparation | None = None) -> Result:
    """Makes a run, or reads a finished one; several runs may share a `preparation`.

    Raises:
        InputError: the data, the model or the directory is invalid.
        DivergedError: the learning rate is too high.
    """
    run = prepare(config) if preparation is None else preparation
    run_config = run.run_config(config)
    manifests.check_output_dir(config.output_dir, run_config)
    directory = config.output_dir
    if (directory / METRICS_FILE).is_file():
        return _read_result(directory)
    check_teacher_cache(run, config)
    manifests.reserve_output_dir(directory, run_config)
    with directory.lock():
        return _make(run, config)


def _make(run: Preparation, config: FinetuneConfig) -> Result:
    keras.utils.set_random_seed(config.random_seed)
    tf.config.experimental.enable_op_determinism()
    teacher_logits = find_teacher_logits(run, config)
    model = heads.build_head(
        run.source,
        run.head,
        dtype=config.compute_dtype,
        seed=config.random_seed,
        keep_head=run.keep_head,
    )
    # An interrupted run starts again from step 0, so its log lines are dropped.
    log = RunLog(config.output_dir, start=-1)
    try:
        counts = _train(run, config, model, teacher_logits, log) if run.train is not None else {}
        return _finish(run, config, model, counts, log)
    finally:
        log.close()
        # A grid builds many models, and Keras keeps the names of all of them.
        keras.backend.clear_session(free_memory=False)


def check_teacher_cache(run: Preparation, config: FinetuneConfig) -> None:
    """Checks the teacher cache of a run that distills; changes nothing.

    Raises:
        InputError: the cache belongs to a different task, teacher or inputs.
    """
    if config.distills and run.train is not None:
        task_teacher.check_cache(**_teacher_arguments(run, config))


def find_teacher_logits(run: Preparation, config: FinetuneConfig) -> list[np.ndarray] | None:
    """Returns the teacher's logits of the training inputs; None without a teacher.

    Raises:
        InputError: the teacher cache does not match the task and the inputs.
    """
    if not config.distills or run.train is None:
        return None
    return task_teacher.cached_logits(**_teacher_arguments(run, config))


def _teacher_arguments(run: Preparation, config: FinetuneConfig) -> dict[str, Any]:
    return {
        "directory": config.teacher_cache,
        "inputs": run.inputs(run.train, config),
        "teacher": run.teacher,
        "compute_dtype": config.compute_dtype,
    }


class Trainer:
    """The compiled training step, and the sum of the losses, which stays on the device.

    Args:
        model: the model to train.
        objective: the loss to minimize.
        optimizer: built for the model's variables.
        example: a batch; other batches differ from it only in their lengths.
    """

    def __init__(
        self,
        model: TaskModel,
        objective: TaskObjective,
        optimizer: keras.optimizers.Optimizer,
        example: Arrays,
    ) -> None:
        self._loss_sum = tf.Variable(0.0, trainable=False)
        variables = model.trainable_variables
        signature = {
            name: tf.TensorSpec([None] * value.ndim, value.dtype) for name, value in example.items()
        }

        # One graph serves all lengths. XLA would compile each length, and is slower on a CPU.
        @tf.function(input_signature=[signature], jit_compile=False)
        def step(batch):
            with tf.GradientTape() as tape:
                loss = objective.loss(model(batch, training=True), batch)
            values = [variable.value for variable in variables]
            optimizer.apply(tape.gradient(loss, values), variables)
            self._loss_sum.assign_add(loss)

        self.step = step

    def take_loss_sum(self) -> float:
        """Returns the sum of the losses since the last call."""
        total = float(self._loss_sum.numpy())
        self._loss_sum.assign(0.0)
        return total


def _train(
    run: Preparation,
    config: FinetuneConfig,
    model: TaskModel,
    teacher_logits: list[np.ndarray] | None,
    log: RunLog,
) -> dict[str, float]:
    """Trains the model, and returns the counts of the run."""
    batches = TrainingBatches(
        run.train.features,
        run.train.targets(run.head),
        Padding(config.train_batch_size, run.max_seq_length, run.source.config.type_vocab_size),
        seed=config.random_seed,
        teacher_logits=teacher_logits,
    )
    num_steps = math.ceil(config.num_train_epochs * batches.steps_per_epoch)
    schedule = WarmupLinearDecay(
        config.learning_rate,
        warmup_steps=math.ceil(config.warmup_proportion * num_steps),
        num_train_steps=num_steps,
    )
    optimizer = build_optimizer(
        model.trainable_variables,
        schedule,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
    )
    weight = config.distill_weight if config.distills else 0.0
    objective = TaskObjective(run.head.kind, weight, config.distill_temperature)
    trainer = Trainer(model, objective, optimizer, next(batches.take(1)))
    start_time = time.perf_counter()
    _make_steps(trainer, batches.take(num_steps), num_steps, schedule, config, log)
    seconds = time.perf_counter() - start_time
    num_inputs_read = num_steps / batches.steps_per_epoch * len(batches.features)
    return {
        "num_train_examples": len(run.train.examples),
        "num_train_inputs": len(run.train.features),
        "num_train_steps": num_steps,
        "train_inputs_per_second": num_inputs_read / seconds,
    }


def _make_steps(
    trainer: Trainer,
    batches: Iterator[Arrays],
    num_steps: int,
    schedule: WarmupLinearDecay,
    config: FinetuneConfig,
    log: RunLog,
) -> None:
    description = f"rate {config.learning_rate:g}, seed {config.random_seed}"
    last_logged_step, start_time, num_inputs = 0, time.perf_counter(), 0.0
    with tqdm.tqdm(total=num_steps, unit=" steps", desc=description) as bar:
        for step, batch in enumerate(batches, 1):
            trainer.step(batch)
            bar.update()
            num_inputs += float(batch[WEIGHTS].sum())
            if step % config.log_steps and step != num_steps:
                continue
            loss = trainer.take_loss_sum() / (step - last_logged_step)
            if not math.isfinite(loss):
                raise DivergedError(
                    Setting("learning_rates"),
                    received=(
                        f"training diverged by step {step} at {config.learning_rate:g} "
                        f"(loss {loss})"
                    ),
                    hint="use a lower learning rate",
                )
            seconds = time.perf_counter() - start_time
            rate = float(schedule(step - 1))
            line = {
                "loss": loss,
                "learning_rate": rate,
                "examples_per_second": num_inputs / seconds,
            }
            log.write(step, manifests.TRAIN, line)
            bar.set_postfix(loss=f"{loss:.3f}")
            last_logged_step, start_time, num_inputs = step, time.perf_counter(), 0.0


def _finish(
    run: Preparation,
    config: FinetuneConfig,
    model: TaskModel,
    counts: Mapping[str, float],
    log: RunLog,
) -> Result:
    """Evaluates the model and writes the files of the run, the metrics last."""
    directory = config.output_dir
    forward = prediction.compile_forward(model)
    predicted, speed = prediction.predict(run, config, run.evaluation, forward)
    scores = scoring.evaluate(run.spec, run.evaluation.examples, predicted)
    log.write(int(counts.get("num_train_steps", 0)), manifests.EVAL, scores)
    paths = [prediction.write_predictions(run, run.evaluation, predicted, directory)]
    if run.handed_in is not None:
        predicted, _ = prediction.predict(run, config, run.handed_in, forward)
        paths.append(prediction.write_predictions(run, run.handed_in, predicted, directory))
    folder = (directory / MODEL_FOLDER).make_directory()
    for name, content in run.tokenizer.files().items():
        (folder / name).write_whole(content)
    heads.save_head(folder, model)
    evaluated = {
        "num_eval_examples": len(run.evaluation.examples),
        "eval_inputs_per_second": speed,
    }
    report = {
        "task": run.spec.name,
        "split": run.evaluation.name,
        "metrics": scores,
        "counts": {**counts, **evaluated},
        "predictions": [str(path.relative_to(directory)) for path in paths],
    }
    log.publish()
    (directory / METRICS_FILE).write_json(report)
    return _read_result(directory)


class _Report(msgspec.Struct):
    metrics: dict[str, float]
    counts: dict[str, int | float]
    predictions: tuple[str, ...]


def _read_result(directory: Location) -> Result:
    path = directory / METRICS_FILE
    report = json_text.convert(path.read_json(), _Report, path)
    for name in report.predictions:
        is_name = name.isprintable() and len(name) <= _MAX_NAME
        if not is_name or name.startswith("/") or ".." in name.split("/"):
            raise InputError(f"{path}: predictions", "names below the folder", format_value(name))
    paths = tuple(directory / name for name in report.predictions)
    return Result(directory, report.metrics, report.counts, paths)
