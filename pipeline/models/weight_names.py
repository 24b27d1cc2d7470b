"""What each weight is called: here, in a Hugging Face directory, in Google's checkpoints."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from pipeline.base.errors import InputError
from pipeline.models.config import ALBERT, BERT, DISTILBERT, EncoderConfig

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class WeightName:
    """One weight.

    Attributes:
        ours: the variable's path relative to the model.
        hf: its name in `model.safetensors`.
        tf1: its name in a TensorFlow-1 checkpoint.
        shape: ours, which is also TensorFlow 1's.
        transpose_hf: whether `transformers` keeps the transpose: dense kernels
            are [in, out] here and [out, in] there.
    """

    ours: str
    hf: str
    tf1: str
    shape: Shape
    transpose_hf: bool = False

    @property
    def hf_shape(self) -> Shape:
        """The shape in `model.safetensors`."""
        return self.shape[::-1] if self.transpose_hf else self.shape


def _tf1_scope(hf: str) -> str:
    """Example: `bert.encoder.layer.3.output.dense` is `bert/encoder/layer_3/output/dense`."""
    return re.sub(r"\.layer\.(\d+)\.", r"/layer_\1/", hf).replace(".", "/")


def _dense(ours: str, hf: str, *, inputs: int, units: int) -> Iterator[WeightName]:
    tf1 = _tf1_scope(hf)
    yield WeightName(f"{ours}/kernel", f"{hf}.weight", f"{tf1}/kernel", (inputs, units), True)
    yield WeightName(f"{ours}/bias", f"{hf}.bias", f"{tf1}/bias", (units,))


def _layer_norm(ours: str, hf: str, *, size: int) -> Iterator[WeightName]:
    tf1 = _tf1_scope(hf)
    yield WeightName(f"{ours}/gamma", f"{hf}.weight", f"{tf1}/gamma", (size,))
    yield WeightName(f"{ours}/beta", f"{hf}.bias", f"{tf1}/beta", (size,))


def _embeddings(config: EncoderConfig) -> Iterator[WeightName]:
    tables = (
        ("word_embeddings", "word_embeddings", config.vocab_size),
        ("position_embeddings", "position_embeddings", config.max_position_embeddings),
        ("segment_embeddings", "token_type_embeddings", config.type_vocab_size),
    )
    size = config.embedding_width
    for ours, theirs, rows in tables:
        hf, tf1 = f"bert.embeddings.{theirs}.weight", f"bert/embeddings/{theirs}"
        if rows:
            yield WeightName(f"encoder/embeddings/{ours}", hf, tf1, (rows, size))
    yield from _layer_norm("encoder/embeddings/layer_norm", "bert.embeddings.LayerNorm", size=size)
    if config.model_type == ALBERT:
        hf = "bert.encoder.embedding_hidden_mapping_in"
        ours = "encoder/embeddings/projection"
        yield from _dense(ours, hf, inputs=size, units=config.hidden_size)


def _layer(index: int, config: EncoderConfig) -> Iterator[WeightName]:
    ours, hf = f"encoder/layer_{index}", f"bert.encoder.layer.{index}"
    size, inner = config.hidden_size, config.intermediate_size
    attention = f"{ours}/attention"
    for part in ("query", "key", "value"):
        yield from _dense(
            f"{attention}/{part}", f"{hf}.attention.self.{part}", inputs=size, units=size
        )
    output = f"{hf}.attention.output"
    yield from _dense(f"{attention}/output", f"{output}.dense", inputs=size, units=size)
    yield from _layer_norm(f"{attention}/layer_norm", f"{output}.LayerNorm", size=size)
    forward = f"{ours}/feed_forward"
    yield from _dense(
        f"{forward}/intermediate", f"{hf}.intermediate.dense", inputs=size, units=inner
    )
    yield from _dense(f"{forward}/output", f"{hf}.output.dense", inputs=inner, units=size)
    yield from _layer_norm(f"{forward}/layer_norm", f"{hf}.output.LayerNorm", size=size)


def _head(config: EncoderConfig) -> Iterator[WeightName]:
    hf, size = "cls.predictions.transform", config.embedding_width
    yield from _dense("head/transform", f"{hf}.dense", inputs=config.hidden_size, units=size)
    yield from _layer_norm("head/layer_norm", f"{hf}.LayerNorm", size=size)
    yield WeightName(
        "head/bias", "cls.predictions.bias", "cls/predictions/output_bias", (config.vocab_size,)
    )


# What a family calls BERT's parts; the first rule that matches counts.
_ROBERTA_RULES = (
    (r"bert\.", "roberta."),
    (r"cls\.predictions\.transform\.dense", "lm_head.dense"),
    (r"cls\.predictions\.transform\.LayerNorm", "lm_head.layer_norm"),
    (r"cls\.predictions\.", "lm_head."),
)
_DISTILBERT_LAYER = r"bert\.encoder\.layer\.(\d+)\."
_DISTILBERT_RULES = (
    (r"bert\.embeddings", "distilbert.embeddings"),
    *(
        (_DISTILBERT_LAYER + theirs, rf"distilbert.transformer.layer.\1.{name}")
        for theirs, name in (
            (r"attention\.self\.query", "attention.q_lin"),
            (r"attention\.self\.key", "attention.k_lin"),
            (r"attention\.self\.value", "attention.v_lin"),
            (r"attention\.output\.dense", "attention.out_lin"),
            (r"attention\.output\.LayerNorm", "sa_layer_norm"),
            (r"intermediate\.dense", "ffn.lin1"),
            (r"output\.dense", "ffn.lin2"),
            (r"output\.LayerNorm", "output_layer_norm"),
        )
    ),
    (r"cls\.predictions\.transform\.dense", "vocab_transform"),
    (r"cls\.predictions\.transform\.LayerNorm", "vocab_layer_norm"),
    (r"cls\.predictions\.decoder\.weight", "vocab_projector.weight"),
    (r"cls\.predictions\.(?:decoder\.)?bias", "vocab_projector.bias"),
)


_ALBERT_LAYER = r"bert\.encoder\.layer\.0\."
_ALBERT_RULES = (
    *(
        (_ALBERT_LAYER + theirs, rf"albert.encoder.albert_layer_groups.0.albert_layers.0.{name}")
        for theirs, name in (
            (r"attention\.self\.", "attention."),
            (r"attention\.output\.", "attention."),
            (r"intermediate\.dense", "ffn"),
            (r"output\.dense", "ffn_output"),
            (r"output\.LayerNorm", "full_layer_layer_norm"),
        )
    ),
    (r"bert\.", "albert."),
    (r"cls\.predictions\.transform\.", "predictions."),
    (r"cls\.predictions\.", "predictions."),
)
_RULES = {
    "roberta": _ROBERTA_RULES,
    "xlm-roberta": _ROBERTA_RULES,
    DISTILBERT: _DISTILBERT_RULES,
    ALBERT: _ALBERT_RULES,
}


def _family_name(bert_name: str, model_type: str) -> str:
    """Example: RoBERTa's for `cls.predictions.bias` is `lm_head.bias`."""
    if model_type == BERT:
        return bert_name
    for pattern, replacement in _RULES[model_type]:
        if re.match(pattern, bert_name):
            return re.sub(rf"^{pattern}", replacement, bert_name)
    raise ValueError(f"bert_name: expected one of BERT's, received {bert_name!r}")


def weight_table(config: EncoderConfig) -> tuple[WeightName, ...]:
    """Returns every weight of a model, each once."""
    layers = (name for index in range(config.num_distinct_layers) for name in _layer(index, config))
    rows = (*_embeddings(config), *layers, *_head(config))
    return tuple(
        dataclasses.replace(row, hf=_family_name(row.hf, config.model_type)) for row in rows
    )


def encoder_table(config: EncoderConfig) -> tuple[WeightName, ...]:
    """Returns every weight of a model but those of its head."""
    return tuple(row for row in weight_table(config) if row.ours.startswith("encoder/"))


# Second copies that some Hugging Face checkpoints store, and what they repeat.
_TIED: Mapping[str, str] = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


def count_parameters(config: EncoderConfig) -> int:
    """Returns how many numbers a masked LM's weights are; tied ones count once."""
    return sum(math.prod(row.shape) for row in weight_table(config))


def tied_hf_names(config: EncoderConfig) -> dict[str, str]:
    """Returns what a checkpoint may hold twice: the name of the copy, and of the original."""
    names = {
        _family_name(copy, config.model_type): _family_name(original, config.model_type)
        for copy, original in _TIED.items()
    }
    return {copy: original for copy, original in names.items() if copy != original}


# The encoder's own tensors: one that no weight takes means that the
# configuration is not the checkpoint's. The pooler and other heads are not used.
_ENCODER = re.compile(r"(bert|roberta|distilbert|albert)[./](encoder|transformer|embeddings)[./].*")
_NOT_WEIGHTS = re.compile(
    r".*/(adam_[mv]|lamb_[mv]|adamw_[mv])(_\d+)?|.*/(Adam|Adam_1|LAMB|LAMB_1)"
    r"|.*/ExponentialMovingAverage|.*\.(position|token_type)_ids"
)


def modern_hf_name(name: str) -> str:
    """Returns today's name of a tensor: files of 2019 call a norm's weights gamma and beta."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


def check_tensors(
    shapes: Mapping[str, Shape],
    config: EncoderConfig,
    *,
    layout: str,
    where: str,
    table: Sequence[WeightName] | None = None,
) -> None:
    """Checks that a checkpoint has the tensors of a configuration.

    Args:
        shapes: of every tensor in the checkpoint, by its name there.
        config: the model's configuration.
        layout: `hf` or `tf1`.
        where: the checkpoint, for messages.
        table: the weights that are wanted; all of a masked LM's by default.

    Raises:
        InputError: tensors are missing or misshapen, or belong to layers or
            embeddings that the configuration does not have.
    """
    table = weight_table(config) if table is None else table
    if layout == "hf":
        wanted = {row.hf: row.hf_shape for row in table}
    else:
        wanted = {row.tf1: row.shape for row in table}
    problems = {
        "missing": [
            f"{name} {list(shape)}" for name, shape in wanted.items() if name not in shapes
        ],
        "misshapen": [
            f"{name}: expected {list(shape)}, received {list(shapes[name])}"
            for name, shape in wanted.items()
            if name in shapes and tuple(shapes[name]) != shape
        ],
        "not in the configuration": [
            name
            for name in sorted(set(shapes) - set(wanted))
            if _ENCODER.fullmatch(name) and not _NOT_WEIGHTS.fullmatch(name)
        ],
    }
    for problem, entries in problems.items():
        if entries:
            rest = f" and {len(entries) - 3} more" if len(entries) > 3 else ""
            plural = "" if len(entries) == 1 else "s"
            raise InputError(
                where,
                received=f"{len(entries)} tensor{plural} {problem}: {'; '.join(entries[:3])}{rest}",
            )
