"""Runs a SavedModel in a process with only the packages that a reader has.

python saved_model_reader.py DIRECTORY INPUTS.npz OUTPUTS.npz [PACKAGE…]

Inputs and outputs are those of the default signature, by name. The packages are imported first.
This script imports nothing else of this project.
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
    tensors = {name: tf.constant(value) for name, value in np.load(inputs).items()}
    results = loaded.signatures["serving_default"](**tensors)
    np.savez(outputs, **{name: value.numpy() for name, value in results.items()})


if __name__ == "__main__":
    main()
