"""Readers of models and of tasks that are fuzzed."""

import functools
import io
import json
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from data_specs.tasks import load_task
from pipeline.base.errors import InputError
from pipeline.models.config import EncoderConfig
from pipeline.models.formats import model_directory
from pipeline.models.weight_names import count_parameters, weight_table
from tests.fuzz.checking import Reader
from tests.fuzz.mutation import Below, Mutate, mutate_bytes, mutate_json, mutate_json_lines
from tests.fuzz.text_readers import mutate_yaml
from tests.models.formats.writing import write_h5, write_torch
from tools.finetuning import task_data, task_files
from tools.finetuning.head_layout import read_head

_CONFIG = EncoderConfig(
    vocab_size=20,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    hidden_act="gelu",
    max_position_embeddings=16,
    type_vocab_size=2,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
)


def _weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        row.ours: random.normal(size=row.shape).astype(np.float32) for row in weight_table(_CONFIG)
    }


def write_model(folder: pathlib.Path) -> None:
    """Writes the directory of a model with two tiny layers."""
    model_directory.save_hf_weights(folder, _CONFIG, _weights())
    path = folder / "config.json"
    labels = {"id2label": {"0": "a", "1": "b"}, "architectures": ["BertForSequenceClassification"]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **labels}))


def _write_torch(folder: pathlib.Path) -> None:
    _write_converted(folder, "pytorch_model.bin", write_torch)


def _write_h5(folder: pathlib.Path) -> None:
    _write_converted(folder, "tf_model.h5", write_h5)


def _write_converted(
    folder: pathlib.Path, name: str, write: Callable[[pathlib.Path, Any], None]
) -> None:
    write_model(folder)
    write(folder / name, load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()


def _write_indexed(folder: pathlib.Path, name: str, write: Callable[[pathlib.Path], None]) -> None:
    """Writes a model whose only file is a shard that an index names."""
    write(folder)
    whole = folder / name
    shard = f"part-1{whole.suffix}"
    whole.rename(folder / shard)
    names = [row.hf for row in weight_table(_CONFIG)]
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)}
    (folder / f"{name}.index.json").write_text(json.dumps(index))


def _write_google(folder: pathlib.Path) -> None:
    from tools.convert_checkpoint import google_config, write_tf1_weights

    (folder / "bert_config.json").write_text(json.dumps(google_config(_CONFIG)))
    write_tf1_weights(str(folder / "bert_model.ckpt"), _CONFIG, _weights())


def _read_config(folder: pathlib.Path) -> object:
    source = model_directory.find_model(folder)
    return count_parameters(source.config), read_head(source), source.config.to_hf()


def _read_model(folder: pathlib.Path) -> object:
    source = model_directory.find_model(folder)
    if not all(path.resolve().is_relative_to(folder.resolve()) for path in source.weight_files):
        raise RuntimeError(f"outside: {source.weight_files}")
    weights = source.read_weights()
    return source.open_files().shapes, source.sha256(), {k: v.sum() for k, v in weights.items()}


def mutate_safetensors(below: Below, content: bytes) -> bytes:
    """Changes the header and corrects its length, or changes any bytes."""
    length = int.from_bytes(content[:8], "little")
    if below(3) == 0:
        return mutate_bytes(below, content)
    header = mutate_json(below, content[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def mutate_torch(below: Below, content: bytes) -> bytes:
    """Changes the pickle of an archive, another entry, the name of an entry, or any bytes."""
    if below(3) == 0:
        return mutate_bytes(below, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    names = ["archive/data.pkl"] * 4 + sorted(entries)
    for _ in range(1 + below(2)):
        name = names[below(len(names))]
        entries[name] = mutate_bytes(below, entries[name])
    if below(8) == 0:
        name = sorted(entries)[below(len(entries))]
        entries[name.swapcase()] = entries.pop(name)
    changed = io.BytesIO()
    compression = zipfile.ZIP_DEFLATED if below(8) == 0 else zipfile.ZIP_STORED
    with zipfile.ZipFile(changed, "w", compression) as archive:
        for name, value in entries.items():
            archive.writestr(name, value)
    return changed.getvalue()


@functools.cache
def _distiller() -> Any:
    """Returns an object into which a checkpoint can be restored."""
    import types

    import keras

    def variable(name: str, shape: tuple[int, ...], dtype: str = "float32") -> Any:
        return keras.Variable(np.zeros(shape, dtype), name=name)

    return types.SimpleNamespace(
        trainable_variables=[variable("kernel", (2, 3)), variable("bias", (3,))],
        state_variables=[variable("seed", (2,), "uint32")],
        metrics_variables=[variable("total", ())],
        optimizer=types.SimpleNamespace(variables=[variable("iteration", (), "int32")]),
        set_updates=lambda step: None,
    )


def _write_checkpoint(folder: pathlib.Path) -> None:
    from pipeline.distill import checkpoints
    from pipeline.distill.checkpoints import CheckpointFiles

    CheckpointFiles(folder, keep=1).save(7, checkpoints.to_arrays(_distiller()))
    # With the checksum in this file, every change would be an error.
    (folder / "checkpoints" / "step-00000007.json").unlink()


def _read_checkpoint(folder: pathlib.Path) -> object:
    from pipeline.distill import checkpoints
    from pipeline.distill.checkpoints import CheckpointFiles

    newest = CheckpointFiles(folder, keep=1).find_newest()
    return checkpoints.restore(folder, _distiller(), newest.step)


_QUESTION = {"question": "去哪里？", "answers": [{"text": "咖啡馆", "answer_start": 2}]}
_PARAGRAPH = {
    "context": "她去咖啡馆，他去海边。",
    "qas": [{"id": f"q{n}", **_QUESTION} for n in range(2)],
}
_TASKS: dict[str, tuple[str, str, Mutate]] = {
    "chnsenticorp": ("train.tsv", "label\ttext_a\n1\t好\n0\t坏 人\n1\t一二\n", mutate_bytes),
    "stsb": (
        "train.tsv",
        "index\tsentence1\tsentence2\tscore\n0\ta b\tc\t4.5\n1\td\te\t0.0\n",
        mutate_bytes,
    ),
    "ocnli": (
        "train.3k.json",
        "".join(
            json.dumps({"sentence1": "a", "sentence2": "b", "label": label, "genre": 1}) + "\n"
            for label in ("entailment", "-", "neutral")
        ),
        mutate_json_lines,
    ),
    "rusentiment": ("", "", mutate_bytes),
    "weibo_ner": ("train.conll", "口0\tO\n女1\tB-PER.NOM\n\n好0\tO\n", mutate_bytes),
    "cluener": (
        "train.json",
        "".join(
            json.dumps({"text": text, "label": {"name": {"ab": [[0, 1]]}}}) + "\n"
            for text in ("ab", "abc", "ab d")
        ),
        mutate_json_lines,
    ),
    "cmrc2018": ("train.json", json.dumps({"data": [{"paragraphs": [_PARAGRAPH]}]}), mutate_json),
}


def _rusentiment() -> tuple[str, str]:
    spec = load_task("rusentiment")
    columns = ["id", *spec.text_fields, spec.label_field]
    columns = list(spec.columns) or list(dict.fromkeys(columns))
    rows = [",".join(columns)] if spec.header else []
    for label in spec.labels[:2]:
        cells = {spec.label_field: label, **dict.fromkeys(spec.text_fields, '"да, ""нет""\nтак"')}
        rows.append(",".join(cells.get(name, "1") for name in columns))
    return spec.files["train"][0].replace("*", "x"), "\n".join(rows) + "\n"


def _read_task(folder: pathlib.Path, task: str) -> object:
    skipped = task_data.read_split(load_task(task), folder, "train", skip_bad_rows=True)
    for message in skipped.bad_rows:
        if len(message.splitlines()) != 1:
            raise RuntimeError(f"a message of several lines: {message!r}")
    return task_data.read_split(load_task(task), folder, "train")


def _write_text(folder: pathlib.Path, name: str, content: str) -> None:
    (folder / name).write_text(content, encoding="utf-8")


_TASK_SPEC = """title: A task
url: https://example.org
licence: none
language: en
kind: classification
reader: csv
quoting: double
header: true
text_fields: [text]
label_field: label
labels: [a, b]
id_field: id
files:
  train: ["*.csv", x.csv]
  dev: [dev.csv]
metrics: [accuracy, f1]
submission: {file: x.tsv, format: glue}
"""


def _write_task(folder: pathlib.Path) -> None:
    _write_text(folder, "task.yaml", _TASK_SPEC)
    for name in ("train.csv", "dev.csv"):
        _write_text(folder, name, 'id,text,label\n1,"x, y",a\n2,z,b\n')


def _read_declared_task(folder: pathlib.Path) -> object:
    try:
        spec = load_task(str(folder / "task.yaml"))
    except ValueError as error:
        # The command that has the flag raises the same error.
        raise InputError(f"--task: {error}") from error
    for split in spec.files:
        for path in task_files.find_files(spec, folder, split):
            if not path.resolve().is_relative_to(folder.resolve()):
                raise RuntimeError(f"outside: {path}")
        task_data.read_split(spec, folder, split)
    return json.dumps(spec.reading())


def _indexed(name: str, file: str, write: Callable[[pathlib.Path], None]) -> Reader:
    prepare = functools.partial(_write_indexed, name=file, write=write)
    others = "part-1", "/work"
    return Reader(name, f"{file}.index.json", mutate_json, _read_model, prepare, others)


def _model_readers() -> list[Reader]:
    model = "model.safetensors"
    google = functools.partial(Reader, read=_read_model, prepare=_write_google)
    return [
        Reader("config", "config.json", mutate_json, _read_config, write_model, (model,)),
        Reader("safetensors", model, mutate_safetensors, _read_model, write_model, ("/work",)),
        _indexed("safetensors index", model, write_model),
        Reader("torch", "pytorch_model.bin", mutate_torch, _read_model, _write_torch, ("/work",)),
        _indexed("torch index", "pytorch_model.bin", _write_torch),
        Reader("h5", "tf_model.h5", mutate_bytes, _read_model, _write_h5, ("/work",)),
        _indexed("h5 index", "tf_model.h5", _write_h5),
        Reader(
            "google config",
            "bert_config.json",
            mutate_json,
            _read_model,
            _write_google,
            ("bert_model.ckpt",),
        ),
        google("google index", "bert_model.ckpt.index", mutate_bytes, others=("bert_model.ckpt",)),
        google(
            "google data",
            "bert_model.ckpt.data-00000-of-00001",
            mutate_bytes,
            others=("bert_model.ckpt",),
        ),
        Reader(
            "checkpoint",
            "checkpoints/step-00000007.safetensors",
            mutate_safetensors,
            _read_checkpoint,
            _write_checkpoint,
        ),
    ]


def _task_readers() -> list[Reader]:
    readers = []
    for task, (given_name, given_content, mutate) in _TASKS.items():
        name, content = (given_name, given_content) if given_name else _rusentiment()
        write = functools.partial(_write_text, name=name, content=content)
        read = functools.partial(_read_task, task=task)
        readers.append(Reader(f"task, {task}", name, mutate, read, write))
    others = (".csv", "--data_dir", "task: files")
    return [
        *readers,
        Reader(
            "declaration, task",
            "task.yaml",
            mutate_yaml,
            _read_declared_task,
            _write_task,
            others,
        ),
    ]


def readers_of_models() -> list[Reader]:
    """Returns all readers of models and tasks."""
    return [*_model_readers(), *_task_readers()]
