"""A masked-LM model from one layout into the other.

offline_distill convert_checkpoint --input=MODEL --output_dir=NEW --layout=hf

hf is Hugging Face's: config.json and model.safetensors, for every family that is
built here. tf1 is Google's: bert_config.json and bert_model.ckpt, for BERT alone.
Weights are copied bit by bit (of another type than float32, converted to it), the
tokenizer's files as they are. Of other heads nothing is kept: in tf1 the pooler and
the sentence-pair head are zeros, so that code which restores a whole pre-trained
BERT finds them.
"""

import dataclasses
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, setting
from pipeline.commands import flags, running

if TYPE_CHECKING:
    from pipeline.models.formats.model_directory import ModelSource

HF, _TF1 = "hf", "tf1"
# What else may lie beside a tokenizer's own file.
_TOKENIZER_SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


@dataclasses.dataclass(frozen=True)
class ConvertConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    output_dir: Location = setting(dataclasses.MISSING, "Directory for the model: new or empty.")
    layout: str = setting(dataclasses.MISSING, "Layout to write.", choices=(HF, _TF1))
    input: Location | None = setting(None, "Model directory in either layout.")
    bert_config_file: Location | None = setting(None, "In place of `input`: a bert_config.json.")
    init_checkpoint: Location | None = setting(
        None,
        "Requires `bert_config_file`. Prefix of the checkpoint, for example DIR/bert_model.ckpt.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.input is None) == (self.bert_config_file is None):
            raise InputError(
                Setting("input"),
                "either it or `bert_config_file` with `init_checkpoint`",
                "neither" if self.input is None else "both",
            )
        if self.input is not None and self.init_checkpoint is not None:
            raise InputError(
                Setting("init_checkpoint"), "`bert_config_file` together with it", "`input`"
            )
        if self.input is None and self.init_checkpoint is None:
            raise InputError(Setting("init_checkpoint"), "the model's checkpoint", "none")


def _find_source(config: ConvertConfig) -> "ModelSource":
    from pipeline.models.formats import model_directory

    if config.input is not None:
        return model_directory.find_model(config.input)
    return model_directory.ModelSource.from_google(config.bert_config_file, config.init_checkpoint)


def write_model(source: "ModelSource", directory: "Location", *, layout: str) -> list[str]:
    """Writes a model with its tokenizer's files, and returns the names of these.

    Args:
        source: has weights.
        directory: is made unless it is there; holds no file of the same name.
        layout: `hf` or `tf1`.

    Raises:
        InputError: the weights are not those of the configuration, or the folder
            cannot be made.
    """
    from pipeline.models.formats import model_directory

    # Before there is a folder: a mistake leaves none.
    weights = source.read_weights()

    def write_hf(stage: pathlib.Path) -> None:
        model_directory.save_hf_weights(stage, source.config, weights)

    def write_tf1(stage: pathlib.Path) -> None:
        # Imports TensorFlow, which the other layout does not need.
        from pipeline.models.formats.tf1_checkpoint import write_tf1_weights

        write_tf1_weights(str(stage / model_directory.GOOGLE_PREFIX), source.config, weights)
        (stage / model_directory.GOOGLE_CONFIG).write_json(source.config.to_google())

    if layout == HF:
        return write_with_tokenizer(source, directory, write_hf, last=model_directory.HF_CONFIG)
    return write_with_tokenizer(source, directory, write_tf1, last=model_directory.GOOGLE_CONFIG)


def write_with_tokenizer(
    source: "ModelSource",
    directory: "Location",
    write: Callable[[pathlib.Path], None],
    *,
    last: str,
) -> list[str]:
    """Writes a model and copies the tokenizer's files, and returns the names of these.

    Args:
        source: beside which the tokenizer lies.
        directory: see `write_model`.
        write: writes the model's own files into a folder.
        last: the file of these that appears last.

    Raises:
        InputError: the folder cannot be made.
    """
    from pipeline.tokenizers import loading

    settings = (source.directory / name for name in _TOKENIZER_SETTINGS)
    found = [
        *loading.tokenizer_files(source.directory),
        *(path for path in settings if path.is_file()),
    ]
    directory.make_directory()
    with directory.stage_directory(last=last) as stage:
        write(stage)
        for path in found:
            shutil.copyfile(path.mirror(), stage / path.name)
    return [path.name for path in found]


def _convert(values: absl_flags.FlagValues) -> None:
    from pipeline.models import weight_names

    config = flags.read_config(values, ConvertConfig)
    source, directory = _find_source(config), config.output_dir
    if config.layout == _TF1:
        try:
            source.config.to_google()
        except InputError as error:
            raise InputError(
                Setting("layout"), received=f"{_TF1}: {error}", hint="hf takes every model"
            ) from error
    directory.expect_empty()
    if _TF1 in (source.layout, config.layout):
        running.import_quietly("tensorflow")
    copied = write_model(source, directory, layout=config.layout)
    table = weight_names.weight_table(source.config)
    print(f"weights    {len(table)} of a {source.config.model_type}, from {source.layout}")
    print(f"tokenizer  {', '.join(copied) or 'no file of one beside the model'}")
    print(f"model: {directory}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(ConvertConfig), _convert, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
