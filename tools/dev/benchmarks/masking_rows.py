"""Stage 1a, whole processes, against jieba's own segmentation of the same text."""

import pathlib
import statistics
import time
from collections.abc import Iterator

from tools.dev.benchmarks import processes
from tools.dev.benchmarks.inputs import Inputs
from tools.dev.benchmarks.measurement import Row, alternate, compared


def _mask(inputs: Inputs, number: int, workers: int) -> float:
    output = inputs.work / f"masked-{workers}-{number}"
    finished = processes.run(
        "create_pretraining_data",
        input_dir=inputs.corpus,
        vocab_file=inputs.vocab,
        output_dir=output,
        max_seq_length=512,
        doc_stride=256,
        dupe_factor=5,
        max_workers=workers,
    )
    inputs.remove(output)
    return finished.seconds


def _cut(text: str) -> float:
    """Returns the seconds that one thread of jieba takes for a text, its dictionary loaded."""
    import jieba

    jieba.setLogLevel("ERROR")
    jieba.initialize()
    begun = time.perf_counter()
    for line in text.splitlines():
        for _ in jieba.cut(line):
            pass
    return time.perf_counter() - begun


def rows(inputs: Inputs) -> Iterator[Row]:
    """Yields how fast a corpus is masked five ways, at 512 tokens with a stride of 256."""
    numbers = iter(range(10**6))
    text = pathlib.Path(inputs.corpus).read_text(encoding="utf-8")
    megabytes = len(text.encode("utf-8")) / 1e6
    about = f"{megabytes:.1f} MB of text"
    two: list[float] = []

    def with_two() -> float:
        two.append(_mask(inputs, next(numbers), 2))
        return two[-1]

    if inputs.has("jieba"):
        figures = alternate(with_two, lambda: _cut(text), inputs.repeats)
        yield compared(
            figures,
            larger_is_better=False,
            name="stage 1a, 2 workers, whole process",
            unit="s",
            against="one thread of jieba.cut over the text, once",
            least_ratio=1.25,
            note=about,
        )
    figures = alternate(with_two, lambda: _mask(inputs, next(numbers), 1), inputs.repeats)
    yield compared(
        figures,
        larger_is_better=False,
        name="stage 1a, 2 workers",
        unit="s",
        against="1 worker",
        least_ratio=1.8,
        note=f"{about}, {megabytes / statistics.median(two):.2f} MB/s",
    )
