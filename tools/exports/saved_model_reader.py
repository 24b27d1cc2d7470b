"""Runs a SavedModel in a process that has only what its reader has.

python saved_model_reader.py DIRECTORY INPUTS.npz OUTPUTS.npz [PACKAGE…]

The inputs are those of the default signature, by their names; so are the outputs. The packages
are imported first. Nothing else of this project is imported here.
"""

import importlib
import sys

import numpy as np
import tensorflow as tf


def main() -> None:
    """Reads the inputs, runs the model, and writes the outputs."""
    directory, inputs, outputs, *packages = sys.argv[1:]
    for name in packages:
        importlib.import_module(name)
    loaded = tf.saved_model.load(directory)
    given = {name: tf.constant(value) for name, value in np.load(inputs).items()}
    computed = loaded.signatures["serving_default"](**given)
    np.savez(outputs, **{name: value.numpy() for name, value in computed.items()})


if __name__ == "__main__":
    main()
