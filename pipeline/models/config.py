"""The dimensions of an encoder, read from a configuration file in either layout."""

import dataclasses
import sys
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pipeline.base.errors import InputError, Setting
from pipeline.base.json_text import format_value
from pipeline.base.location import Location
from pipeline.models.families import FAMILIES, find_family
from pipeline.models.families.base import Family

# "gelu" is the exact form 0.5·x·(1 + erf(x/√2)); the next two are two names of
# its tanh approximation (Hendrycks and Gimpel, 2016).
Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"]
# The family of a configuration file that names none, such as Google's.
_DEFAULT_FAMILY = "bert"


def _integer(low: int, high: int = 2**31 - 1) -> Any:
    return Annotated[int, Meta(ge=low, le=high, description=f"an integer from {low} to {high}")]


_Count = _integer(1)
# Bounded, because the table of weights has rows for each layer.
_Layers = _integer(1, 10_000)
_OptionalCount = Annotated[_Count | None, Meta(description="a positive integer or none")]
_Rate = Annotated[float, Meta(ge=0, lt=1, description="a number in [0, 1)")]
_Positive = Annotated[float, Meta(gt=0, le=sys.float_info.max, description="a positive number")]
_Flag = Annotated[bool, Meta(description="true or false")]
_OptionalPositive = Annotated[_Positive | None, Meta(description="a positive number or none")]
# The first token's state or the mean of all states; None for a family with a fixed pooling.
_Pooling = Annotated[Literal["cls", "mean"] | None, Meta(description="cls, mean or none")]
_ACTIVATIONS = f"one of {', '.join(typing.get_args(Activation))}"

# Marks a field that `to_dict` leaves out at its default.
_RARE = "rare"


def _rare(default: Any) -> Any:
    return dataclasses.field(default=default, metadata={_RARE: True})


# Settings that change what a model computes, with the only supported value. It is also the value
# of a setting that a file lacks.
_FIXED_OPTIONS: dict[str, Any] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Everything that decides an encoder's variables and its outputs.

    Attributes:
        vocab_size: number of tokens, V.
        hidden_size: width of a hidden state, D; a multiple of the number of heads.
        num_hidden_layers: number of transformer layers, N.
        num_attention_heads: number of heads of each layer, H.
        intermediate_size: width inside the feed-forward block.
        hidden_act: an `Activation`, of the feed-forward block and the head.
        max_position_embeddings: number of rows of the position table.
        type_vocab_size: number of rows of the segment table; 0 for a family without one.
        hidden_dropout_prob: dropout of embeddings and residual branches.
        attention_probs_dropout_prob: dropout of attention probabilities.
        initializer_range: standard deviation of random weights (truncated normal).
        layer_norm_eps: added to the variance in layer normalization.
        pad_token_id: id of [PAD]. RoBERTa's positions begin after it. Padding itself is marked
            only by `input_mask`.
        model_type: the family, a key of `FAMILIES`.
        embedding_size: width of embeddings that are projected; None for other families.
        tie_word_embeddings: whether the word embeddings are also the matrix of the output
            layer. Otherwise this matrix is a separate weight.
        global_attn_every_n_layers: k. Layers 0, k, 2k, … attend to all tokens and the others
            only to near ones. None if all layers attend to all tokens.
        local_attention: number of tokens that a local layer attends to, half of them on each
            side.
        global_rope_theta: base of the rotary positions in global layers.
        local_rope_theta: the same in local layers.
        embedding_dropout: dropout of embeddings, for a family with a separate rate.
        classifier_pooling: the pooled state that a task head reads, `cls` or `mean`.

    Raises:
        InputError: a value has the wrong type or range.
    """

    vocab_size: _Count
    hidden_size: _Count
    num_hidden_layers: _Layers
    num_attention_heads: _Count
    intermediate_size: _Count
    hidden_act: Annotated[Activation, Meta(description=_ACTIVATIONS)]
    max_position_embeddings: _Count
    type_vocab_size: _integer(0)
    hidden_dropout_prob: _Rate
    attention_probs_dropout_prob: _Rate
    initializer_range: _Positive = 0.02
    layer_norm_eps: _Positive = 1e-12
    pad_token_id: _integer(0) = 0
    model_type: str = _DEFAULT_FAMILY
    embedding_size: _OptionalCount = None
    tie_word_embeddings: _Flag = _rare(True)
    global_attn_every_n_layers: _OptionalCount = _rare(None)
    local_attention: _OptionalCount = _rare(None)
    global_rope_theta: _OptionalPositive = _rare(None)
    local_rope_theta: _OptionalPositive = _rare(None)
    embedding_dropout: _Rate = _rare(0.0)
    classifier_pooling: _Pooling = _rare(None)

    def __post_init__(self) -> None:
        find_family(self.model_type)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            try:
                msgspec.convert(value, field.type)
            except (msgspec.ValidationError, UnicodeEncodeError) as error:
                expected = field.type.__metadata__[0].description
                raise InputError(field.name, expected, format_value(value)) from error
        for holds, name, expected in self._relations():
            if not holds:
                raise InputError(name, expected, format_value(getattr(self, name)))

    def _relations(self) -> Iterator[tuple[bool, str, str]]:
        """Yields constraints between fields: whether it holds, a field, and its valid values."""
        family, heads = self.family, self.num_attention_heads
        for name, value in _absent_fields(family).items():
            yield getattr(self, name) == value, name, f"{value}, because {family.title} has none"
        if family.has_segments:
            yield self.type_vocab_size >= 1, "type_vocab_size", "a positive integer"
        if family.projects_embeddings:
            yield self.embedding_size is not None, "embedding_size", "a positive integer"
        for name in family.own_fields:
            yield getattr(self, name) is not None, name, "a value"
        fits = self.hidden_size % heads == 0
        yield fits, "hidden_size", f"a multiple of num_attention_heads={heads}"
        if self.global_rope_theta is not None:
            # Rotary positions rotate pairs of a head's dimensions.
            fits = self.hidden_size % (2 * heads) == 0
            yield fits, "hidden_size", f"a multiple of twice num_attention_heads={heads}"
        fits = self.pad_token_id < self.vocab_size
        yield fits, "pad_token_id", f"an integer in [0, {self.vocab_size})"
        fits = self.max_input_length >= 1
        yield fits, "max_position_embeddings", f"more than {self.position_offset}"

    @property
    def family(self) -> Family:
        """The declaration of the family."""
        return FAMILIES[self.model_type]

    @property
    def embedding_width(self) -> int:
        """Width of the embeddings and of the output layer's input."""
        return self.embedding_size or self.hidden_size

    @property
    def has_projection(self) -> bool:
        """Whether a layer projects the embeddings to the hidden size."""
        differs = self.embedding_width != self.hidden_size
        return self.family.projects_embeddings and (differs or self.family.projects_equal_widths)

    @property
    def num_distinct_layers(self) -> int:
        """Number of layers with separate weights."""
        return 1 if self.family.shares_layers else self.num_hidden_layers

    def is_global_layer(self, index: int) -> bool:
        """Returns whether a layer, numbered from 0, attends to all tokens."""
        return self.global_attn_every_n_layers is None or (
            index % self.global_attn_every_n_layers == 0
        )

    @property
    def position_offset(self) -> int:
        """The row of the position table that belongs to the first token."""
        return self.pad_token_id + 1 if self.family.counts_positions_from_padding else 0

    @property
    def max_input_length(self) -> int:
        """The maximum number of tokens of an input."""
        return self.max_position_embeddings - self.position_offset

    @property
    def head_act(self) -> str:
        """The activation of the masked-LM head."""
        return self.family.head_act or self.hidden_act

    @classmethod
    def from_json(cls, path: Location) -> "EncoderConfig":
        """Reads a `config.json` (Hugging Face) or a `bert_config.json` (Google).

        Google's file has no `model_type`. Its "gelu" is read as the erf form, because the
        released code that trained its checkpoints uses this form. Keys that no computation
        needs are ignored.

        Raises:
            InputError: the file is not a JSON object or has another model type, a key is
                missing, or a value has the wrong type or range. The subject is the file and
                the key.
        """
        raw = path.read_json()
        try:
            return cls(**_read_fields(raw))
        except InputError as error:
            error.subject = f"{path}: {error.subject}"
            error.setting = None if path.setting is None else Setting(path.setting)
            raise

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields by name, in the order of declaration, for a manifest.

        A rare field is left out at its default. So adding such a field does not change digests
        and manifests of models without it.
        """
        values = dataclasses.asdict(self)
        for field in dataclasses.fields(self):
            if field.metadata.get(_RARE) and values[field.name] == field.default:
                del values[field.name]
        return values

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of a `config.json` for the same masked LM in `transformers`."""
        absent, keys = _absent_fields(self.family), self.family.config_keys
        values = {
            keys.get(name, name): value
            for name, value in self.to_dict().items()
            if name not in absent
        }
        architectures = [f"{self.family.class_prefix}ForMaskedLM"]
        others = dict.fromkeys(self.family.null_settings)
        if self.family.folded_embeddings is not None:
            others[self.family.folded_embeddings.key] = False
        others["tie_word_embeddings"] = self.tie_word_embeddings
        return {"architectures": architectures, **values, **_fixed_options(self.family), **others}


def _absent_fields(family: Family) -> dict[str, Any]:
    """Returns the fields that a family's `config.json` lacks, with their values."""
    absent: dict[str, Any] = {} if family.has_segments else {"type_vocab_size": 0}
    if not family.projects_embeddings:
        absent["embedding_size"] = None
    own = {name for other in FAMILIES.values() for name in other.own_fields}
    for field in dataclasses.fields(EncoderConfig):
        if field.name in own.difference(family.own_fields):
            absent[field.name] = field.default
    return absent


def _find_family(raw: Mapping[str, Any]) -> Family:
    """Returns the family of a configuration file; BERT if the file names none.

    A file without `model_type` may still name a class of another family in `architectures`.
    Such a file is refused, because some families use BERT's names of weights.
    """
    names = raw.get("architectures")
    if "model_type" not in raw and isinstance(names, list):
        for family in FAMILIES.values():
            classes = (f"{family.class_prefix}For", f"{family.class_prefix}Model")
            is_other = family.model_type != _DEFAULT_FAMILY
            if is_other and any(str(name).startswith(classes) for name in names):
                expected = (
                    f"{family.model_type!r}, because architectures names {format_value(names)}"
                )
                raise InputError("model_type", expected, "none, the key is missing")
    return find_family(raw.get("model_type", _DEFAULT_FAMILY))


def _fixed_options(family: Family) -> dict[str, Any]:
    """Returns the keys of a `config.json` that have only one supported value, and this value."""
    options = _FIXED_OPTIONS | family.fixed_options
    return {key: value for key, value in options.items() if key not in family.ignored_options}


def _read_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of an `EncoderConfig` from a file's content."""
    family = _find_family(raw)
    raw = family.read_settings(raw)
    for key, value in _fixed_options(family).items():
        if raw.get(key, value) != value:
            raise InputError(key, repr(value), format_value(raw[key]))
    absent = _absent_fields(family)
    values = {"model_type": family.model_type, **family.config_defaults, **absent}
    for field in dataclasses.fields(EncoderConfig):
        key = family.config_keys.get(field.name, field.name)
        if field.name not in absent and raw.get(key) is not None:
            values[field.name] = raw[key]
        elif field.default is dataclasses.MISSING and field.name not in values:
            raise InputError(key, "a value", "none, the key is missing")
    return values
