"""Exports for LiteRT (formerly TensorFlow Lite), in float32 and with 8-bit weights."""

import importlib.metadata
import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.commands import running
from pipeline.runners import local
from tools.exports import saved_model
from tools.exports.examples import Arrays, Run
from tools.exports.program import ExportError, Program, ReloadedExport, Subject

MODEL_FILE = "model.tflite"
# The converter's message on operations that LiteRT does not have.
_LACKING = re.compile(r"(?:TF Select|Custom) ops: ([\w:]+(?:, [\w:]+)*)")


def convert(program: Program, *, quantized: bool) -> bytes:
    """Returns a program as the bytes of a LiteRT model.

    Args:
        program: the program.
        quantized: whether weights are int8 and activations are quantized at run time (dynamic
            range); otherwise everything is float32.

    Raises:
        ExportError: LiteRT lacks an operation.
    """
    with tempfile.TemporaryDirectory() as folder, running.silenced_stderr():
        saved_model.write_ids(program, pathlib.Path(folder))
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=[saved_model.SIGNATURE]
        )
        if quantized:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        try:
            return converter.convert()
        except Exception as error:
            lacking = _LACKING.search(str(error))
            if lacking is None:
                raise
            raise ExportError(f"LiteRT has no operation {lacking[1]}") from error


def write(subject: Subject, directory: pathlib.Path, *, quantized: bool = False) -> None:
    """Writes a model for LiteRT; see `convert`."""
    content = convert(subject.program, quantized=quantized)
    directory.mkdir()
    (directory / MODEL_FILE).write_whole(content)


def open_litert(subject: Subject, directory: pathlib.Path) -> ReloadedExport:
    """Opens a model that `write` wrote."""
    run = load(subject.program, directory / MODEL_FILE)
    return ReloadedExport(run, f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}")


def load(program: Program, path: pathlib.Path) -> Run:
    """Returns a function that computes batches with a LiteRT model, on all processors."""
    with running.silenced_stderr():
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(path), num_threads=local.num_cpus())
    runner = interpreter.get_signature_runner(saved_model.SIGNATURE)
    inputs = {name: details["index"] for name, details in runner.get_input_details().items()}
    outputs = {name: details["index"] for name, details in runner.get_output_details().items()}
    allocated: dict[str, Any] = {}

    def run(batch: Mapping[str, np.ndarray]) -> Arrays:
        shapes = {name: batch[name].shape for name in inputs}
        try:
            if shapes != allocated:
                for name, shape in shapes.items():
                    interpreter.resize_tensor_input(inputs[name], shape)
                with running.silenced_stderr():
                    interpreter.allocate_tensors()
                allocated.update(shapes)
            for name, index in inputs.items():
                interpreter.set_tensor(index, batch[name])
            interpreter.invoke()
        except RuntimeError as error:
            raise ExportError(f"LiteRT cannot compute it ({error})") from error
        return {name: interpreter.get_tensor(outputs[name]) for name in program.outputs}

    return run
