"""Formats of weights on disk: one module each, with one subclass of `WeightFiles`."""

from pipeline.models.formats import h5_files, safetensors_files, tf1_checkpoint, torch_files
from pipeline.models.formats.base import WeightFiles

# If a directory has several formats, the first of this list is read.
FORMATS: dict[str, type[WeightFiles]] = {
    "safetensors": safetensors_files.SafetensorsFiles,
    "h5": h5_files.H5Files,
    "torch": torch_files.TorchFiles,
    "tf1": tf1_checkpoint.Tf1Checkpoint,
}
