"""Exports in ONNX format, converted by tf2onnx."""

import importlib.metadata
import math
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pipeline.commands import running
from pipeline.runners import local
from tools.exports.examples import Arrays
from tools.exports.program import ExportError, Program, ReloadedExport, Subject, compile_program

if TYPE_CHECKING:
    import onnx

MODEL_FILE = "model.onnx"
# This version of 2022 is the first with layer normalization, and every runtime since supports it.
_OPSET = 17
# Smallest number of elements of a matrix for which sharing pays off.
_LARGE = 5_000


def _convert(program: Program) -> "onnx.ModelProto":
    """Converts a program by tf2onnx, with only two of its optimizers.

    Another of its optimizers gives wrong shapes. It merges two consecutive Reshape operations
    even if the second one copies dimensions of its input, and the first one's input has other
    dimensions. Runtimes optimize a model anyway when they load it.
    """
    import tensorflow as tf
    from tf2onnx import optimizer, tf_loader, tfonnx
    from tf2onnx.optimizer.identity_optimizer import IdentityOptimizer
    from tf2onnx.optimizer.merge_duplicated_nodes_optimizer import MergeDuplicatedNodesOptimizer

    function = compile_program(program).get_concrete_function()
    inputs = [tensor.name for tensor in function.inputs if tensor.dtype != tf.resource]
    names = dict(zip(inputs, program.inputs, strict=True))
    names |= {tensor.name: name for name, tensor in function.structured_outputs.items()}
    outputs = [tensor.name for tensor in function.outputs]
    frozen = tf_loader.from_function(function, inputs, outputs)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(frozen, name="")
        converted = tfonnx.process_tf_graph(
            graph,
            opset=_OPSET,
            continue_on_error=True,
            input_names=inputs,
            output_names=outputs,
            tensors_to_rename=names,
        )
        applied = {"merge": MergeDuplicatedNodesOptimizer, "identity": IdentityOptimizer}
        return optimizer.optimize_graph(converted, optimizers=applied).make_model("exported")


def write(subject: Subject, directory: pathlib.Path) -> None:
    """Writes a model in ONNX format.

    Raises:
        ExportError: ONNX lacks an operation.
    """
    with running.silenced_stderr():
        import onnx

        model = _convert(subject.program)
    # An operation that cannot be converted keeps its TensorFlow name.
    operations = {node.op_type for node in model.graph.node if not node.domain}
    lacking = sorted(name for name in operations if not onnx.defs.has(name))
    if lacking:
        raise ExportError(f"ONNX has no operation {', '.join(lacking)}")
    share_transposed(model)
    directory.mkdir()
    (directory / MODEL_FILE).write_whole(model.SerializeToString())


def share_transposed(model: "onnx.ModelProto") -> None:
    """Replaces a matrix by the transpose of another if that has the same numbers, in place.

    Mostly this concerns the word embeddings, which the converter stores a second time as a
    transposed constant. Runtimes transpose constants when they load a file, so the only effect is
    a smaller file.
    """
    from onnx import helper, numpy_helper

    graph, matrices = model.graph, {}
    for tensor in list(graph.initializer):
        if len(tensor.dims) != 2 or math.prod(tensor.dims) < _LARGE:
            continue
        matrix = numpy_helper.to_array(tensor)
        same = (name for name, other in matrices.items() if np.array_equal(other, matrix.T))
        original = next(same, None)
        if original is None:
            matrices[tensor.name] = matrix
            continue
        graph.initializer.remove(tensor)
        # Nodes are in the order of computation, so this one must precede its users.
        node = helper.make_node("Transpose", [original], [tensor.name], perm=[1, 0])
        graph.node.insert(0, node)


def open_onnx(subject: Subject, directory: pathlib.Path) -> ReloadedExport:
    """Opens a model that `write` wrote, on all processors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = local.num_cpus()
    session = onnxruntime.InferenceSession(
        str(directory / MODEL_FILE), options, providers=["CPUExecutionProvider"]
    )
    program = subject.program

    def run(batch: Mapping[str, np.ndarray]) -> Arrays:
        inputs = {name: batch[name] for name in program.inputs}
        try:
            values = session.run(list(program.outputs), inputs)
        except Exception as error:
            # onnxruntime raises its own exception classes for errors in native code.
            raise ExportError(f"onnxruntime cannot compute it ({error})") from error
        return dict(zip(program.outputs, values, strict=True))

    return ReloadedExport(run, f"onnxruntime {importlib.metadata.version('onnxruntime')}")
