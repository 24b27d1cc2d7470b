"""Peak memory of each stage on little and on much, and of a long run."""

import pathlib
import statistics
from collections.abc import Iterator

from tools.dev.benchmarks import processes
from tools.dev.benchmarks.inputs import Inputs
from tools.dev.benchmarks.measurement import Row

_MB = 1e6
# Growth that counts as none: buffers of the text's own length, and the allocator.
_SLACK = 1.25
_LONG_STEPS = 1_000


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


def _mask(inputs: Inputs, corpus: pathlib.Path, output: pathlib.Path) -> processes.Finished:
    return processes.run(
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
    )


def _cache(inputs: Inputs, shards: str, output: pathlib.Path) -> processes.Finished:
    return processes.run(
        "create_teacher_output_data",
        input_file=shards,
        teacher=inputs.teacher,
        output_dir=output,
        compute_dtype="auto",
    )


def _train(inputs: Inputs, cache: pathlib.Path, output: pathlib.Path, steps: int, **settings):
    return processes.run(
        "run_distill",
        input_dir=cache,
        init_from=inputs.teacher,
        student_layers=1,
        output_dir=output,
        num_train_steps=steps,
        compute_dtype="auto",
        **settings,
    )


def rows(inputs: Inputs, small: pathlib.Path, large: pathlib.Path) -> Iterator[Row]:
    """Yields the memory of each stage for a small and a large corpus.

    Args:
        inputs: what else is measured.
        small: a text file.
        large: a text file, several times as large.
    """
    sizes = [path.stat().st_size / _MB for path in (small, large)]
    texts = f"{sizes[1]:.0f} MB and {sizes[0]:.0f} MB of text"
    examples = [inputs.new_directory(f"memory-examples-{name}") for name in ("small", "large")]
    peaks = [
        _mask(inputs, corpus, output).peak
        for corpus, output in zip((small, large), examples, strict=True)
    ]
    yield _grown(*peaks, "peak memory, stage 1a", "the small corpus", texts)
    # One shard of 800, and eight: the teacher's time, not its memory, forbids all.
    caches = [inputs.new_directory(f"memory-cache-{name}") for name in ("small", "large")]
    globs = ("train-00000-*", "train-0000[0-7]-*")
    peaks = [
        _cache(inputs, str(examples[1] / pattern), output).peak
        for pattern, output in zip(globs, caches, strict=True)
    ]
    yield _grown(*peaks, "peak memory, stage 1b", "an eighth of the shards", "8 shards, and 1")
    outputs = [inputs.new_directory(f"memory-student-{name}") for name in ("small", "large")]
    # All of a small cache fits into the shuffle buffer; this one is full with either.
    peaks = [
        _train(inputs, cache, output, 60, shuffle_buffer_size=1_000).peak
        for cache, output in zip(caches, outputs, strict=True)
    ]
    yield _grown(*peaks, "peak memory, run_distill", "the small cache", "60 updates of 32")
    yield _long_run(inputs, caches[0])
    for path in (*examples, *caches, *outputs):
        inputs.remove(path)


def _long_run(inputs: Inputs, cache: pathlib.Path) -> Row:
    """Returns the memory in the last tenth of a run against that after its first third."""
    output = inputs.new_directory("memory-long")
    finished = _train(
        inputs,
        cache,
        output,
        _LONG_STEPS,
        train_batch_size=8,
        save_checkpoints_steps=100,
        shuffle_buffer_size=1_000,
    )
    inputs.remove(output)
    memory = finished.memory
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
