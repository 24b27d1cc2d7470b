"""Formats of weights on disk: one module each, with one subclass of `WeightFiles`."""

from pipeline.models.formats import safetensors_files, tf1_checkpoint
from pipeline.models.formats.base import WeightFiles

# Where a directory has several, the first is read.
FORMATS: dict[str, type[WeightFiles]] = {
    "safetensors": safetensors_files.SafetensorsFiles,
    "tf1": tf1_checkpoint.Tf1Checkpoint,
}
