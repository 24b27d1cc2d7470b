"""Writes vectors of texts, or scores their cosines against given similarities.

offline_distill embed --model=MODEL --sentences=TEXT --output=vectors.npy
offline_distill embed --model=MODEL --task=stsb --data_dir=DATA

The vector of a text is its pooled last hidden state. A text file has one text per line.
The output has one row per text, in the same order: float32 [texts, size] in an .npy file, or
objects with text and vector in a .jsonl file. If --sentences is a .jsonl file, --text_field names
the field with the text.

With --task, pairs of texts are scored by Spearman's and Pearson's correlation between the cosines
of their vectors and the given similarities. stsb reads GLUE's files, stsb_multi_mt the translated
CSV files, and stsb_json JSON lines; your own .yaml file can declare others. --output is a .json
file for the scores, which export_student --scores accepts.
"""

import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import flags as absl_flags

from data_specs.tasks import TaskSpec, load_task
from pipeline.base import compute_dtype, hub_id, json_text
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, setting
from pipeline.base.text_encoding import not_utf8_error, utf8_stream
from pipeline.commands import flags, running
from pipeline.commands.settings import BackendSettings
from pipeline.models.formats import model_directory
from tools.finetuning.task_data import read_split
from tools.finetuning.task_files import SplitData
from tools.model_tokenizer import load_model_tokenizer
from tools.sentence_layout import PoolingSettings, choose_layout

if TYPE_CHECKING:
    from tools.sentence_encoding import Forward, TextReader

_SURROGATES = re.compile(r"[\ud800-\udfff]")
_NUMPY, _JSON_LINES, _JSON = ".npy", ".jsonl", ".json"


@dataclasses.dataclass(frozen=True)
class EmbedConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    model: Location = setting(
        dataclasses.MISSING,
        "Model directory with its tokenizer, or a model on the hub.",
        hub_files=hub_id.MODEL,
    )
    sentences: Location | None = setting(
        None, "Text file with one text per line, or a .jsonl file with one object per line."
    )
    text_field: str = setting("text", "Field with the text in a .jsonl file.")
    task: str | None = setting(
        None,
        "Replaces `sentences`: task with pairs of texts to score, for example stsb, or the path "
        "of your own declaration (.yaml).",
    )
    data_dir: Location | None = setting(None, "Directory of the task's files; requires `task`.")
    eval_split: str = setting("dev", "Split of the task that is scored.")
    output: Location | None = setting(
        None, "New file: .npy or .jsonl for vectors, .json for the scores of a task."
    )
    max_seq_length: int | None = setting(
        None,
        "Maximum number of tokens of a text; longer texts are truncated. By default the length in "
        "the model's sentence-transformers files, or the model's number of positions.",
        low=3,
    )
    batch_size: int = setting(64, "Texts per batch.", low=1)
    compute_dtype: str = setting(
        compute_dtype.FLOAT32,
        "Precision of the encoder. auto is mixed_bfloat16 if the hardware supports it, otherwise "
        "float32.",
        choices=compute_dtype.CHOICES,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.sentences is None) == (self.task is None):
            received = "neither" if self.task is None else "both"
            raise InputError(Setting("sentences"), "given, or `task` in its place", received)
        if self.task is None and self.data_dir is not None:
            raise InputError(Setting("data_dir"), "used together with `task`")
        if self.task is not None and self.data_dir is None:
            raise InputError(Setting("data_dir"), "the folder of the task's files", "none")
        if self.output is None and self.task is None:
            raise InputError(Setting("output"), "a new file for the vectors", "none")
        if self.output is not None:
            kinds = (_NUMPY, _JSON_LINES) if self.task is None else (_JSON,)
            if self.output.suffix not in kinds:
                expected = f"a file that ends in {' or '.join(kinds)}"
                raise InputError(Setting("output"), expected, self.output)
            self.output.expect_absent()


def read_texts(path: Location, text_field: str) -> Iterator[str]:
    """Yields the texts of a file: its lines, or a field of the objects of a .jsonl file.

    Raises:
        InputError: the file is missing, is not UTF-8, or has a line without the field; names
            the line.
    """
    if not path.is_file():
        raise InputError(path, received="no such file")
    with path.open("rb") as raw:
        for number, line in enumerate(utf8_stream(raw, path), 1):
            where = f"{path}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise not_utf8_error(line, error, where) from error
            yield _field_of(text, text_field, where) if path.suffix == _JSON_LINES else text


def _field_of(line: str, name: str, where: str) -> str:
    try:
        value = json_text.load(line)
    except ValueError as error:
        raise InputError(
            where, "a JSON object", f"{json_text.format_value(line)} ({error})"
        ) from error
    text = value.get(name) if isinstance(value, dict) else None
    # JSON can contain unpaired surrogates, which no tokenizer accepts.
    if not isinstance(text, str) or _SURROGATES.search(text):
        hint = "`text_field` names the field"
        raise InputError(where, f"text in the field {name}", json_text.format_value(value), hint)
    return text


def write_vectors(
    path: Location, texts: Iterator[str], blocks: Iterator[np.ndarray], shape: tuple[int, int]
) -> None:
    """Writes vectors atomically.

    Args:
        path: an .npy or a .jsonl file.
        texts: the texts of the vectors.
        blocks: blocks of vectors, float32 [texts, D] each.
        shape: the shape of all vectors together.
    """
    with path.atomic_write() as temporary:
        if path.suffix == _NUMPY:
            with open(temporary, "wb") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for block in blocks:
                    file.write(block.astype("<f4").tobytes())
            return
        with open(temporary, "w", encoding="utf-8") as file:
            for block in blocks:
                for vector in block:
                    numbers = ", ".join(f"{value:.9g}" for value in vector.tolist())
                    text = json.dumps(next(texts), ensure_ascii=False)
                    file.write(f'{{"text": {text}, "vector": [{numbers}]}}\n')


def find_reader(config: EmbedConfig, pooling: PoolingSettings) -> "TextReader":
    """Finds the model, its tokenizer and the layout of its vectors.

    Raises:
        InputError: the model, its tokenizer or a setting is invalid.
    """
    from tools.sentence_encoding import TextReader

    source = model_directory.find_model(config.model)
    layout = choose_layout(source.directory, pooling)
    max_positions, requested_length = source.config.max_input_length, config.max_seq_length
    if requested_length is not None and requested_length > max_positions:
        expected = f"at most {max_positions}, the model's positions"
        raise InputError(Setting("max_seq_length"), expected, requested_length)
    length = int(min(max_positions, requested_length or layout.max_seq_length or max_positions))
    tokenizer = load_model_tokenizer(source)
    return TextReader(source, tokenizer, layout, length, config.batch_size)


def describe(reader: "TextReader") -> str:
    """Returns a line that describes the vectors of a reader."""
    layout = reader.layout
    length = "length 1" if layout.normalize else "any length"
    return (
        f"{layout.pooling} pooling, vectors of {reader.hidden_size} numbers and {length}, texts of "
        f"at most {reader.max_seq_length} tokens"
    )


def _read_pairs(config: EmbedConfig) -> tuple[TaskSpec, SplitData]:
    from tools.sentence_encoding import expect_similarities

    try:
        spec = load_task(config.task)
    except ValueError as error:
        raise InputError(Setting("task"), received=error) from error
    expect_similarities(spec)
    data = read_split(spec, config.data_dir, config.eval_split)
    unlabeled = [example.key for example in data.examples if example.label is None]
    if unlabeled:
        received = f"{config.eval_split}, whose row {unlabeled[0]} has none"
        raise InputError(Setting("eval_split"), "a split with similarities", received)
    return spec, data


def _compile(reader: "TextReader", values: absl_flags.FlagValues) -> "Forward":
    devices = running.choose_backend(values)
    dtype_name = running.choose_compute_dtype(values, devices)
    print(describe(reader), file=sys.stderr)
    return reader.compile(devices[0], dtype_name)


@contextlib.contextmanager
def _progress(count: int) -> Iterator:
    import tqdm

    with tqdm.tqdm(total=count, unit=" texts") as bar:
        yield bar


def _write_vectors(
    config: EmbedConfig, reader: "TextReader", compile_reader: Callable[[], "Forward"]
) -> None:
    def texts() -> Iterator[str]:
        return read_texts(config.sentences, config.text_field)

    # This first pass reports a malformed line before the model runs.
    lengths = [len(text) for text in texts()]
    if not lengths:
        raise InputError(config.sentences, "lines of text", "none")
    forward = compile_reader()
    shape = (len(lengths), reader.hidden_size)
    with _progress(len(lengths)) as bar:
        write_vectors(config.output, texts(), reader.encode(forward, texts(), bar), shape)
    empty = lengths.count(0)
    empty_note = f", {empty:,} of them from empty lines" if empty else ""
    print(f"{len(lengths):,} vectors{empty_note}: {config.output}")


def _score(
    config: EmbedConfig, reader: "TextReader", compile_reader: Callable[[], "Forward"]
) -> None:
    from tools import sentence_encoding

    spec, data = _read_pairs(config)
    forward = compile_reader()
    texts = [text for side in (0, 1) for text in (example.texts[side] for example in data.examples)]
    with _progress(len(texts)) as bar:
        vectors = np.concatenate(list(reader.encode(forward, texts, bar)))
    similarities = sentence_encoding.cosine_similarities(*np.split(vectors, 2))
    labels = np.array([example.label for example in data.examples], np.float64)
    scores = sentence_encoding.similarity_scores(similarities, labels)
    print(f"{spec.name}, {config.eval_split}, {len(labels):,} pairs")
    for name, value in scores.items():
        print(f"{name:<12} {100 * value:6.2f}")
    if config.output is not None:
        names = {name: f"{name} of cosines on {spec.name}, {config.eval_split}" for name in scores}
        config.output.write_json({names[name]: value for name, value in scores.items()})
        print(f"scores: {config.output}")


def _embed(values: absl_flags.FlagValues) -> None:
    config = flags.read_config(values, EmbedConfig)
    reader = find_reader(config, flags.read_config(values, PoolingSettings))
    work = _write_vectors if config.task is None else _score
    work(config, reader, lambda: _compile(reader, values))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    table = flags.define_flags(EmbedConfig, PoolingSettings, BackendSettings)
    return running.run(table, _embed, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
