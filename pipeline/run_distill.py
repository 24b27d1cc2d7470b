"""Stage 2: trains a student from a teacher cache, without the teacher.

run_distill --input_dir=CACHE --init_from=TEACHER --student_layers=2 --output_dir=STUDENT
"""

import dataclasses
import importlib.util
import sys
from collections.abc import Sequence

from absl import flags

from pipeline.base.errors import InputError, Setting
from pipeline.commands import running
from pipeline.distill import settings


def define_flags() -> flags.FlagValues:
    """Returns this command's flags."""
    table = running.FlagTable()
    _define_data(table)
    _define_student(table)
    _define_objective(table)
    _define_live_teacher(table)
    _define_training(table)
    _define_run(table)
    _define_devices(table)
    return table.values


def _define_data(table: running.FlagTable) -> None:
    table.string(
        "input_dir",
        None,
        "A teacher cache; or masked examples or unmasked windows, with --teacher or for "
        "--losses=masked_lm=1.",
    )
    table.string("input_file", None, "Instead of --input_dir: a glob of its shards.")
    table.string(
        "output_dir",
        None,
        "The student's directory: empty, or of an unfinished run. Required to train.",
    )
    table.integer("max_seq_length", None, "Checked against the cache.", low=1)
    table.integer("max_predictions_per_seq", None, "Checked against the cache.", low=1)
    table.integer(
        "truncation_factor",
        None,
        "k, the teacher's tokens to use at a position: at most the cached one, the default.",
        low=1,
    )
    table.choice("verify", "full", "Check every byte first, or sizes.", of=["full", "sizes"])


def _define_student(table: running.FlagTable) -> None:
    table.string("student", None, "The student to start from: a model directory.")
    table.string("bert_config_file", None, "Instead of --student: a config, random without more.")
    table.string("init_checkpoint", None, "With --bert_config_file: …/bert_model.ckpt.")
    table.string("init_from", None, "Instead of --student: the teacher to take layers from.")
    table.integer("student_layers", None, "With --init_from: how many layers.", low=1)
    table.string(
        "layer_map",
        None,
        "With --init_from: which layers, from 0: even (the default), first, last, every:k, or "
        "such as 0,2,4,7,9,11.",
    )
    table.integer(
        "student_hidden_size",
        None,
        "With --init_from: a narrower student, cut from the teacher's weights.",
        low=1,
    )
    table.integer(
        "student_attention_heads", None, "With --init_from: its heads; the teacher's.", low=1
    )
    table.integer(
        "student_intermediate_size",
        None,
        "With --init_from: its feed-forward size; shrunk with the hidden size by default.",
        low=1,
    )
    table.boolean(
        "drop_segments", False, "With --init_from: make a BERT a DistilBERT, without segments."
    )
    table.string(
        "freeze", None, f"Embeddings that are not trained, of {', '.join(settings.FREEZABLE)}."
    )


def _define_objective(table: running.FlagTable) -> None:
    table.string(
        "losses",
        "soft_cross_entropy=1,probability_cosine=1",
        f"Losses and weights, of {', '.join(settings.LOSS_NEEDS)}.",
    )
    table.string(
        "loss_schedules",
        None,
        "How weights go from those of --losses to a last one, such as masked_lm=linear:0 or "
        "hidden_cosine=cosine:0.1; constant by default.",
    )
    table.number(
        "temperature", 1.0, "The temperature T of soft_cross_entropy and kl_divergence.", low=0.01
    )
    table.choice(
        "tail",
        None,
        "What becomes of the mass outside the top-k; by default drop for soft_cross_entropy, "
        "bucket for kl_divergence.",
        of=settings.TAIL_POLICIES,
    )


def _define_live_teacher(table: running.FlagTable) -> None:
    table.string(
        "teacher",
        None,
        "A live teacher, a model directory: what the cache does not hold is computed in the same "
        "step.",
    )
    table.choice(
        "loss_positions",
        "masked",
        "Where distributions are compared: at the masked positions, or with --teacher at all "
        "tokens.",
        of=settings.LOSS_POSITIONS,
    )
    table.string(
        "layer_groups",
        None,
        "What hidden_cosine and attention_mse compare: last, mean, skip, or teacher layers and a "
        "student layer such as 1-6:1,7-12:2; by default last for hidden_cosine, mean for "
        "attention_mse.",
    )


def _define_training(table: running.FlagTable) -> None:
    table.boolean("do_train", True, "Whether to train.")
    table.boolean("do_eval", True, "Whether to evaluate, at every checkpoint and in the end.")
    table.integer("train_batch_size", 32, "Examples in a batch of training.", low=1)
    table.integer("eval_batch_size", 32, "Examples in a batch of evaluation.", low=1)
    table.integer("gradient_accumulation_steps", 1, "Batches that make one update.", low=1)
    table.integer("num_train_steps", 100_000, "How many updates to train for.", low=1)
    table.integer(
        "num_warmup_steps",
        None,
        "Updates over which the learning rate rises to its peak; a tenth of all by default.",
        low=0,
    )
    table.number(
        "learning_rate", 5e-5, "The peak; from there the rate falls linearly to 0.", low=0.0
    )
    table.number(
        "weight_decay", 0.01, "Decoupled weight decay; none on biases and layer norms.", low=0.0
    )
    table.number(
        "clip_norm", 1.0, "Gradients are clipped to this global norm; 0 for no clipping.", low=0.0
    )


def _define_run(table: running.FlagTable) -> None:
    table.compute_dtype("What the student computes in.")
    table.boolean(
        "recompute_activations",
        False,
        "Rematerialisation (gradient checkpointing): keep only what goes from layer to layer of "
        "the student, and compute the rest once more for gradients; the same numbers in less "
        "memory and more time.",
    )
    table.integer(
        "random_seed", 12345, "Decides order, dropout and new weights.", low=0, high=2**32 - 1
    )
    table.integer("shuffle_buffer_size", 10_000, "How many examples are mixed in memory.", low=1)
    table.integer(
        "length_buckets",
        8,
        "Inputs of an update are sorted by length and computed in parts, padded to the next of "
        "so many lengths; with 1 all are padded to the longest that may be.",
        low=1,
    )
    table.integer("save_checkpoints_steps", 1_000, "Updates between checkpoints.", low=1)
    table.integer(
        "keep_checkpoints",
        2,
        "How many of the newest checkpoints stay; a run goes on from the newest that verifies.",
        low=1,
    )
    table.integer("log_steps", 100, "Updates between lines of metrics.jsonl.", low=1)
    table.integer("max_eval_steps", 100, "At most so many batches of evaluation.", low=1)
    table.boolean(
        "run_local",
        False,
        "Shrink batches, steps and evaluation to a run of minutes, which claims no quality.",
    )
    table.boolean("deterministic", True, "Whether a repeated run gives the same bits on a CPU.")
    table.backend()


def _define_devices(table: running.FlagTable) -> None:
    table.choice(
        "distribution",
        settings.ALONE,
        "With --backend=jax: data_parallel shares each batch among all devices of this process, "
        "and of those that it joins.",
        of=settings.DISTRIBUTIONS,
    )
    table.string(
        "coordinator_address",
        None,
        "With data_parallel: HOST:PORT of process 0. It and the next two are found without a "
        "word on a Cloud TPU pod, under Slurm and under Open MPI.",
    )
    table.integer(
        "num_processes", None, "With data_parallel: how many; 1 looks for no others.", low=1
    )
    table.integer("process_id", None, "With data_parallel: which this is, from 0.", low=0)
    table.integer(
        "num_data_streams",
        None,
        "Streams of shards, of which every update has equally many examples; each process reads "
        "its own. What the run began with, else one a process.",
        low=1,
    )


def _join(values: flags.FlagValues) -> None:
    """Joins the other processes, if there are any, before devices are asked for."""
    given = [
        name
        for name in ("coordinator_address", "num_processes", "process_id")
        if values[name].value is not None
    ]
    if values.distribution != settings.DATA_PARALLEL:
        if given:
            raise InputError(
                Setting(given[0]),
                f"`distribution`={settings.DATA_PARALLEL} beside it",
                values.distribution,
            )
        return
    if values.backend != "jax":
        raise InputError(
            Setting("distribution"),
            f"`backend`=jax beside {values.distribution}",
            f"`backend`={values.backend}",
        )
    if importlib.util.find_spec("jax") is None:
        # `choose_backend` says so.
        return
    from pipeline.distill import replicas

    replicas.join(values.coordinator_address, values.num_processes, values.process_id)


def read_config(values: flags.FlagValues) -> settings.DistillConfig:
    """Returns what parsed flags ask for.

    Args:
        values: of `define_flags`; `--compute_dtype=auto` stays as it is.

    Raises:
        InputError: settings that do not go together.
    """
    given = values.flag_values_dict()
    names = settings.StudentConfig.__dataclass_fields__
    given["student"] = settings.StudentConfig(**{name: given[name] for name in names})
    given["losses"] = settings.parse_losses(values.losses)
    given["loss_schedules"] = settings.parse_loss_schedules(values.loss_schedules, given["losses"])
    freeze = (name.strip() for name in (values.freeze or "").split(","))
    given["freeze"] = tuple(name for name in freeze if name)
    if values.run_local:
        changes = settings.shrink(given)
        described = ", ".join(f"{name} {value:g}" for name, value in changes.items())
        print(f"--run_local: {described}", file=sys.stderr)
        given |= changes
    names = settings.DistillConfig.__dataclass_fields__
    return settings.DistillConfig(**{name: given[name] for name in names})


def _distill(values: flags.FlagValues) -> None:
    config = read_config(values)
    _join(values)
    devices = running.choose_backend(values, "tensorflow")
    chosen = running.choose_compute_dtype(values, devices)
    config = dataclasses.replace(config, compute_dtype=chosen)

    from pipeline.distill import replicas, training

    found = replicas.find_replicas(config.distribution)
    if found.distributed:
        print(f"process {found.process} of {found.num_processes}", file=sys.stderr)
    report = training.distill(config)
    if not found.writes:
        return
    print("\n".join(training.describe(report)))
    if config.do_train:
        print(f"student: {config.output_dir}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return running.run(define_flags(), _distill, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
