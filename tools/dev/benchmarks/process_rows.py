"""Measurements of whole commands: masking, system time, memory, and the overhead of Ray."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Iterator
from typing import Any

from pipeline.base.location import Location
from pipeline.runners import local
from pipeline.runners.ray import RayConfig, RayWorkers
from tools.dev.benchmarks import processes
from tools.dev.benchmarks.inputs import Inputs
from tools.measurement import Row, compare

# Size of the shortest text for which the rows of prepare have targets.
_MIN_TARGET_MEGABYTES = 5.0


def _seconds(inputs: Inputs, command: str, **settings: Any) -> float:
    output = inputs.new_directory("made")
    seconds = processes.run(command, output_dir=output, **settings).seconds
    inputs.remove(output)
    return seconds


def _cut(text: str) -> float:
    """Returns the seconds that jieba takes for a text in one thread, with its dictionary loaded."""
    import jieba

    jieba.setLogLevel("ERROR")
    jieba.initialize()
    start = time.perf_counter()
    for line in text.splitlines():
        for _ in jieba.cut(line):
            pass
    return time.perf_counter() - start


def masking_rows(inputs: Inputs) -> Iterator[Row]:
    """Yields the time of masking a corpus with five copies, 512 tokens and a stride of 256."""
    text = inputs.corpus.read_text(encoding="utf-8")
    megabytes = len(text.encode("utf-8")) / 1e6
    size = f"{megabytes:.1f} MB of text"
    # Starting two workers takes much of the time of a shorter text.
    has_targets = megabytes >= _MIN_TARGET_MEGABYTES
    seconds: list[float] = []

    def mask(workers: int) -> float:
        return _seconds(
            inputs,
            "create_pretraining_data",
            input_dir=inputs.corpus,
            vocab_file=inputs.vocab,
            max_seq_length=512,
            doc_stride=256,
            dupe_factor=5,
            max_workers=workers,
        )

    def with_two() -> float:
        seconds.append(mask(2))
        return seconds[-1]

    if inputs.has("jieba"):
        yield compare(
            with_two,
            lambda: _cut(text),
            inputs.repeats,
            name="prepare, 2 workers, whole process",
            unit="s",
            against="one thread of jieba.cut over the text, once",
            least_ratio=2.5 if has_targets else None,
            note=size,
        )
    row = compare(
        with_two,
        lambda: mask(1),
        inputs.repeats,
        name="prepare, 2 workers",
        unit="s",
        against="1 worker",
        least_ratio=1.8 if has_targets else None,
    )
    speed = megabytes / statistics.median(seconds)
    yield dataclasses.replace(row, note=f"{size}, {speed:.2f} MB/s")


def kernel_rows(inputs: Inputs) -> Iterator[Row]:
    """Yields the system time and the number of page faults of each stage."""
    stages: dict[str, dict[str, Any]] = {
        "create_pretraining_data": {
            "input_dir": inputs.corpus,
            "vocab_file": inputs.vocab,
            "max_seq_length": inputs.max_seq_length,
            "max_workers": 2,
        },
        "create_teacher_output_data": {
            "input_dir": inputs.examples(mixed=False).directory,
            "teacher": inputs.teacher,
            "compute_dtype": "auto",
            "force": True,
        },
        "run_distill": {
            "input_dir": inputs.cache(mixed=False).directory,
            "init_from": inputs.teacher,
            "student_layers": 1,
            "num_train_steps": _KERNEL_STEPS,
            "compute_dtype": "auto",
        },
    }
    for command, settings in stages.items():
        output = inputs.new_directory("kernel")
        finished = processes.run(command, output_dir=output, **settings)
        inputs.remove(output)
        yield Row(
            name=f"system time, {command}",
            unit="s",
            ours=finished.system_seconds,
            against="user time of the same processes",
            baseline=finished.user_seconds,
            note=f"{finished.page_faults:,} minor page faults",
        )


_MB = 1e6
# A smaller ratio does not count as growth: some buffers have the length of a text, and the
# allocator keeps memory.
_SLACK = 1.25
_LONG_STEPS = 1_000
_KERNEL_STEPS = 60


def _grown(small: float, large: float, name: str, against: str, note: str) -> Row:
    return Row(
        name=name,
        unit="MB",
        ours=large / _MB,
        against=against,
        baseline=small / _MB,
        ratio=small / large,
        least_ratio=1.0 / _SLACK,
        note=note,
    )


def memory_rows(inputs: Inputs, small: Location, large: Location) -> Iterator[Row]:
    """Yields the memory of each stage for a small corpus and for a large one."""
    sizes = [path.stat().st_size / _MB for path in (small, large)]
    texts = f"{sizes[1]:.0f} MB and {sizes[0]:.0f} MB of text"
    examples = [inputs.new_directory(f"memory-examples-{name}") for name in ("small", "large")]
    peaks = [
        processes.run(
            "create_pretraining_data",
            input_dir=corpus,
            vocab_file=inputs.vocab,
            output_dir=output,
            max_seq_length=128,
            doc_stride=126,
            segments="single",
            dupe_factor=5,
            max_workers=2,
            num_shards=800,
        ).peak
        for corpus, output in zip((small, large), examples, strict=True)
    ]
    yield _grown(*peaks, "peak memory, prepare", "the small corpus", texts)
    # Captures one of the 800 shards, then eight. Capturing more would take too long, not too much
    # memory.
    caches = [inputs.new_directory(f"memory-cache-{name}") for name in ("small", "large")]
    globs = ("train-00000-*", "train-0000[0-7]-*")
    peaks = [
        processes.run(
            "create_teacher_output_data",
            input_file=examples[1] / pattern,
            teacher=inputs.teacher,
            output_dir=output,
            compute_dtype="auto",
            force=True,
        ).peak
        for pattern, output in zip(globs, caches, strict=True)
    ]
    yield _grown(*peaks, "peak memory, capture", "an eighth of the shards", "8 shards, and 1")
    peaks = [max(_training_memory(inputs, cache, num_train_steps=60)) for cache in caches]
    yield _grown(*peaks, "peak memory, run_distill", "the small cache", "60 updates of 32")
    yield _long_run(inputs, caches[0])
    for path in (*examples, *caches):
        inputs.remove(path)


def _training_memory(inputs: Inputs, cache: Location, **settings: Any) -> tuple[int, ...]:
    output = inputs.new_directory("memory-student")
    finished = processes.run(
        "run_distill",
        input_dir=cache,
        init_from=inputs.teacher,
        student_layers=1,
        output_dir=output,
        compute_dtype="auto",
        # The shuffle buffer is small enough that both caches fill it. Otherwise memory would depend
        # on the cache.
        shuffle_buffer_size=1_000,
        **settings,
    )
    inputs.remove(output)
    return finished.memory


def _long_run(inputs: Inputs, cache: Location) -> Row:
    """Returns the memory near the end of a run, compared with that after its first third."""
    settings = {"train_batch_size": 8, "save_checkpoints_steps": 100}
    memory = _training_memory(inputs, cache, num_train_steps=_LONG_STEPS, **settings)
    tenth = len(memory) // 10
    early = statistics.median(memory[3 * tenth : 4 * tenth])
    late = statistics.median(memory[-2 * tenth : -tenth])
    return Row(
        name="memory of a long run_distill",
        unit="MB",
        ours=late / _MB,
        against="the same run after its first third",
        baseline=early / _MB,
        ratio=early / late,
        least_ratio=1.0 / 1.03,
        note=f"{_LONG_STEPS} updates, a checkpoint every 100",
    )


def _start(inputs: Inputs) -> float:
    """Returns the seconds of starting Ray, running a trivial job, and shutting Ray down."""
    directory = inputs.new_directory("started")
    directory.mkdir()
    start = time.perf_counter()
    with RayWorkers(RayConfig(), directory) as workers:
        list(workers.run(abs, [-1]))
    seconds = time.perf_counter() - start
    inputs.remove(directory)
    return seconds


def ray_rows(inputs: Inputs) -> Iterator[Row]:
    """Yields the overhead of Ray on one machine, where it brings no gain."""
    if not inputs.has("ray"):
        return
    cpus = local.num_cpus()
    starts = [_start(inputs) for _ in range(inputs.repeats)]
    yield Row(name="Ray, start and shutdown", unit="s", ours=statistics.median(starts))
    masking = {
        "input_dir": inputs.corpus,
        "vocab_file": inputs.vocab,
        "max_seq_length": inputs.max_seq_length,
    }
    teacher = {"input_dir": inputs.examples(mixed=False).directory, "teacher": inputs.teacher}
    # The numbers of processes and threads are the same with and without Ray.
    stages = (
        ("prepare", "create_pretraining_data", masking, {"max_workers": cpus}, 1),
        ("capture", "create_teacher_output_data", teacher, {}, cpus),
    )
    for stage, command, settings, local_settings, cpus_per_job in stages:
        run = functools.partial(_seconds, inputs, command, **settings)
        on_ray = functools.partial(run, runner="ray", cpus_per_job=cpus_per_job)
        yield compare(
            on_ray,
            functools.partial(run, **local_settings),
            inputs.repeats,
            name=f"{stage} on Ray, whole process",
            unit="s",
            against="--runner=local with the same number of processes and threads",
            note=f"includes {statistics.median(starts):.1f} s for start and shutdown of Ray",
        )
