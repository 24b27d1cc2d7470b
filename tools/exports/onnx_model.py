"""ONNX, by way of tf2onnx."""

import importlib.metadata
import math
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pipeline.commands import running
from pipeline.runners import local
from tools.exports.examples import Arrays
from tools.exports.program import ExportError, Opened, Program, Subject, compile_program

if TYPE_CHECKING:
    import onnx

MODEL_FILE = "model.onnx"
# Of 2022: has layer normalisation, and every runtime since has it.
_OPSET = 17
# Numbers of a matrix that is worth storing once.
_LARGE = 5_000


def _convert(program: Program) -> "onnx.ModelProto":
    """Converts a program, by the parts of tf2onnx, of whose optimizers only two are applied.

    One of the others merges a reshaping that copies dimensions of its input with the one
    before it, whose input has others. Runtimes optimize on their own when they load a file.
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
    """Writes a model.

    Raises:
        ExportError: ONNX lacks an operation.
    """
    with running.silenced_stderr():
        import onnx

        model = _convert(subject.program)
    # What cannot be converted stands there under TensorFlow's name.
    operations = {node.op_type for node in model.graph.node if not node.domain}
    lacking = sorted(name for name in operations if not onnx.defs.has(name))
    if lacking:
        raise ExportError(f"ONNX has no operation {', '.join(lacking)}")
    share_transposed(model)
    directory.mkdir()
    (directory / MODEL_FILE).write_whole(model.SerializeToString())


def share_transposed(model: "onnx.ModelProto") -> None:
    """Stores a matrix once where its transpose is stored, too: mostly the word embeddings.

    The converter transposes constants beforehand. Runtimes do that as well when they load
    a file, so that it only becomes smaller. The model is changed in place.
    """
    from onnx import helper, numpy_helper

    graph, originals = model.graph, {}
    for tensor in list(graph.initializer):
        if len(tensor.dims) != 2 or math.prod(tensor.dims) < _LARGE:
            continue
        matrix = numpy_helper.to_array(tensor)
        same = (name for name, other in originals.items() if np.array_equal(other, matrix.T))
        original = next(same, None)
        if original is None:
            originals[tensor.name] = matrix
            continue
        graph.initializer.remove(tensor)
        # Nodes stand in the order in which they are computed.
        node = helper.make_node("Transpose", [original], [tensor.name], perm=[1, 0])
        graph.node.insert(0, node)


def open_onnx(subject: Subject, directory: pathlib.Path) -> Opened:
    """Opens what was written, on all processors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = local.num_cpus()
    session = onnxruntime.InferenceSession(
        str(directory / MODEL_FILE), options, providers=["CPUExecutionProvider"]
    )
    program = subject.program

    def run(batch: Mapping[str, np.ndarray]) -> Arrays:
        given = {name: batch[name] for name in program.inputs}
        try:
            values = session.run(list(program.outputs), given)
        except Exception as error:
            # It has classes of its own for what goes wrong in native code.
            raise ExportError(f"onnxruntime cannot compute it ({error})") from error
        return dict(zip(program.outputs, values, strict=True))

    return Opened(run, f"onnxruntime {importlib.metadata.version('onnxruntime')}")
