"""Converts a masked LM between the layouts of Hugging Face and Google.

offline_distill convert_checkpoint --input=MODEL --output_dir=NEW --layout=hf

The layout hf is Hugging Face's, config.json and model.safetensors, for all supported families.
The layout tf1 is Google's, bert_config.json and bert_model.ckpt, for BERT only. Weights are
copied bit by bit, or converted to float32 from other types. Tokenizer files are copied. Other
heads are not converted. In tf1, the pooler and the sentence-pair head are zeros, so that code
that restores a whole pre-trained BERT finds them.
"""

import dataclasses
import errno
import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags as absl_flags

from pipeline.base import hub_id
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, setting
from pipeline.commands import flags, running
from pipeline.models.families import FAMILIES

if TYPE_CHECKING:
    from pipeline.models.config import EncoderConfig
    from pipeline.models.formats.model_directory import ModelSource

HF, _TF1 = "hf", "tf1"
# Fields that Google's `bert_config.json` does not have.
_NOT_IN_GOOGLE_LAYOUT = ("layer_norm_eps", "pad_token_id", "model_type", "embedding_size")
# Values that Google's code supports, by field.
_GOOGLE_VALUES: dict[str, tuple[Any, ...]] = {
    "model_type": tuple(name for name, family in FAMILIES.items() if family.in_google_layout),
    "hidden_act": ("gelu", "relu"),
    "layer_norm_eps": (1e-12,),
    "tie_word_embeddings": (True,),
}
# Other files that may accompany a tokenizer's main file.
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
    input: Location | None = setting(
        None,
        "Model directory in either layout, or a model of the hub.",
        hub_files=hub_id.MODEL,
    )
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
                "set, or `bert_config_file` with `init_checkpoint` in its place",
                "neither" if self.input is None else "both",
            )
        if self.input is not None and self.init_checkpoint is not None:
            raise InputError(
                Setting("init_checkpoint"), "used together with `bert_config_file`", "`input`"
            )
        if self.input is None and self.init_checkpoint is None:
            expected = "set together with `bert_config_file`"
            raise InputError(Setting("init_checkpoint"), expected, "none")


def _find_source(config: ConvertConfig) -> "ModelSource":
    from pipeline.models.formats import model_directory

    if config.input is not None:
        return model_directory.find_model(config.input)
    return model_directory.ModelSource.from_google(config.bert_config_file, config.init_checkpoint)


def google_config(config: "EncoderConfig") -> dict[str, Any]:
    """Returns the content of a `bert_config.json` from which Google's code makes the same model.

    Google's code recognizes padding only by the mask, so `pad_token_id` is left out.

    Raises:
        InputError: Google's layout cannot express a value, and its code would compute something
            else.
    """
    for name, allowed in _GOOGLE_VALUES.items():
        value = getattr(config, name)
        if value not in allowed:
            expected = f"{' or '.join(map(str, allowed))}, as Google's layout has no other"
            raise InputError(name, expected, f"{value!r}")
    fields = config.to_dict().items()
    return {name: value for name, value in fields if name not in _NOT_IN_GOOGLE_LAYOUT}


def write_tf1_weights(
    prefix: str, config: "EncoderConfig", weights: Mapping[str, np.ndarray]
) -> None:
    """Writes the weights of a masked-LM model under Google's names.

    This project's masked LM has neither the pooler nor the sentence-pair head. They are written
    as zeros, so that code that restores every variable of a pre-trained BERT finds them.

    Args:
        prefix: path of the checkpoint; `.index` and `.data-00000-of-00001` are
            written, not atomically.
        config: the model's configuration, of a family that Google's layout supports.
        weights: float32 arrays of all weights, by the project's names (`weight_names`).

    Raises:
        ValueError: Google's layout does not support the family.
        OSError: the files cannot be written, for example because the disk is full.
    """
    import tensorflow as tf

    from pipeline.models.weight_names import weight_table

    if not config.family.in_google_layout:
        raise ValueError(f"config: Google's layout has no {config.model_type}")
    size = config.hidden_size
    other_heads = {
        "bert/pooler/dense/kernel": (size, size),
        "bert/pooler/dense/bias": (size,),
        "cls/seq_relationship/output_weights": (2, size),
        "cls/seq_relationship/output_bias": (2,),
    }
    tensors = {name: np.zeros(shape, np.float32) for name, shape in other_heads.items()}
    tensors |= {row.tf1: weights[row.ours] for row in weight_table(config)}
    names = sorted(tensors)
    try:
        with tf.device("CPU"):
            tf.raw_ops.SaveV2(
                prefix=prefix,
                tensor_names=names,
                shape_and_slices=[""] * len(names),
                tensors=[tf.constant(tensors[name]) for name in names],
            )
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, " ".join(str(error).split()), prefix) from error


def write_model(source: "ModelSource", directory: "Location", *, layout: str) -> list[str]:
    """Writes a model and copies its tokenizer's files; returns the names of the latter.

    Args:
        source: a model with weights.
        directory: is created if it does not exist; must not hold files of the same names.
        layout: `hf` or `tf1`.

    Raises:
        InputError: the weights do not fit the configuration, or the directory cannot be created.
    """
    from pipeline.models.formats import model_directory

    # Weights are read first, so that an error leaves no directory.
    weights = source.read_weights()

    def write_hf(stage: pathlib.Path) -> None:
        model_directory.save_hf_weights(stage, source.config, weights)

    def write_tf1(stage: pathlib.Path) -> None:
        write_tf1_weights(str(stage / model_directory.GOOGLE_PREFIX), source.config, weights)
        (stage / model_directory.GOOGLE_CONFIG).write_json(google_config(source.config))

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
    """Writes a model and copies its tokenizer's files; returns the names of the latter.

    Args:
        source: the model whose directory holds the tokenizer.
        directory: see `write_model`.
        write: writes the model's files into a directory.
        last: the model's file that appears last.

    Raises:
        InputError: the directory cannot be created.
    """
    from pipeline.tokenizers import loading

    settings = (source.directory / name for name in _TOKENIZER_SETTINGS)
    tokenizer_files = [
        *loading.tokenizer_files(source.directory),
        *(path for path in settings if path.is_file()),
    ]
    directory.make_directory()
    with directory.stage_directory(last=last) as stage:
        write(stage)
        for path in tokenizer_files:
            shutil.copyfile(path.mirror(), stage / path.name)
    return [path.name for path in tokenizer_files]


def _convert(values: absl_flags.FlagValues) -> None:
    from pipeline.models import weight_names

    config = flags.read_config(values, ConvertConfig)
    source, directory = _find_source(config), config.output_dir
    if config.layout == _TF1:
        try:
            google_config(source.config)
        except InputError as error:
            raise InputError(
                Setting("layout"), received=f"{_TF1}: {error}", hint="hf supports all families"
            ) from error
    directory.expect_empty()
    if _TF1 in (source.layout, config.layout):
        running.import_quietly("tensorflow")
    copied = write_model(source, directory, layout=config.layout)
    source.print_unused()
    table = weight_names.weight_table(source.config)
    print(f"weights    {len(table)} of a {source.config.model_type}, from {source.layout}")
    print(f"tokenizer  {', '.join(copied) or 'none, as the model directory has no tokenizer file'}")
    print(f"model: {directory}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(ConvertConfig), _convert, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
