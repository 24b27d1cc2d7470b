"""The shape of an encoder, read from either layout's configuration file."""

import dataclasses
import math
from typing import Any

from pipeline.base.errors import InputError
from pipeline.base.json_text import shown
from pipeline.base.location import Location

# "gelu" is the exact form 0.5·x·(1 + erf(x/√2)); the next two are two names of
# its tanh approximation (Hendrycks and Gimpel, 2016).
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")

BERT = "bert"
DISTILBERT = "distilbert"
# Narrow embeddings, projected to the hidden size, and one layer applied again and
# again (Lan et al., 2020).
ALBERT = "albert"
# RoBERTa and its multilingual sister: no segments, positions counted from the
# padding's id on, a GELU in the head whatever the layers have.
XLM_ROBERTA = "xlm-roberta"
ROBERTAS = ("roberta", XLM_ROBERTA)
# The families that are built here, and what `transformers` calls them.
ARCHITECTURES = {
    BERT: "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    XLM_ROBERTA: "XLMRobertaForMaskedLM",
    DISTILBERT: "DistilBertForMaskedLM",
    ALBERT: "AlbertForMaskedLM",
}
# What DistilBERT's configuration calls ours.
_DISTILBERT_KEYS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}

_COUNTS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)
# A table has a row for each weight of each layer, and arrays are as large as these say.
_MAX_COUNT = 2**31 - 1
_MOST = {"num_hidden_layers": 10_000}
_RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob")
_POSITIVE = ("initializer_range", "layer_norm_eps")

# All that Google's `bert_config.json` says; the rest is fixed in its code.
_GOOGLE_KEYS = (*_COUNTS, *_RATES, "hidden_act", "initializer_range")
_GOOGLE_ACTIVATIONS = ("gelu", "relu")
_GOOGLE_LAYER_NORM_EPS = 1e-12

# Settings of the Hugging Face layout that change what the model computes, with
# the only value that is built here. Absent means that value.
_FIXED_OPTIONS: dict[str, Any] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
# Of ALBERT: one group of one layer, which all share.
_FIXED_ALBERT_OPTIONS: dict[str, Any] = {"num_hidden_groups": 1, "inner_group_num": 1}


def _fixed_options(model_type: str) -> dict[str, Any]:
    return _FIXED_OPTIONS | (_FIXED_ALBERT_OPTIONS if model_type == ALBERT else {})


def _is_number(value: Any) -> bool:
    # bool is a kind of int in Python; `true` is no number here.
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _mistake(config: "EncoderConfig") -> tuple[str, str] | None:
    """Returns (key, expectation) of the first value that is not allowed."""
    if config.model_type not in tuple(ARCHITECTURES):
        return "model_type", f"one of {', '.join(ARCHITECTURES)}"
    for key in _COUNTS:
        value = getattr(config, key)
        if config.model_type == DISTILBERT and key == "type_vocab_size":
            if value != 0:
                return key, "0, as DistilBERT has no segments"
        elif not _is_integer(value) or value < 1:
            return key, "a positive integer"
        elif value > _MOST.get(key, _MAX_COUNT):
            return key, f"at most {_MOST.get(key, _MAX_COUNT)}"
    for key in _RATES:
        value = getattr(config, key)
        if not _is_number(value) or not 0 <= value < 1:
            return key, "a number in [0, 1)"
    for key in _POSITIVE:
        value = getattr(config, key)
        if not _is_number(value) or value <= 0:
            return key, "a positive number"
    if config.hidden_act not in ACTIVATIONS:
        return "hidden_act", f"one of {', '.join(ACTIVATIONS)}"
    if config.hidden_size % config.num_attention_heads:
        return "hidden_size", f"a multiple of num_attention_heads={config.num_attention_heads}"
    if not _is_integer(config.pad_token_id) or not 0 <= config.pad_token_id < config.vocab_size:
        return "pad_token_id", f"an integer in [0, {config.vocab_size})"
    if config.model_type == ALBERT:
        if not _is_integer(config.embedding_size) or not 1 <= config.embedding_size <= _MAX_COUNT:
            return "embedding_size", "a positive integer"
    elif config.embedding_size is not None:
        return "embedding_size", f"none, as {config.model_type} has none"
    if config.max_input_length < 1:
        return "max_position_embeddings", f"more than {config.position_offset}"
    return None


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """What fixes an encoder's variables and what it computes.

    Attributes:
        vocab_size: tokens, V.
        hidden_size: width of a hidden state, D; a multiple of the heads.
        num_hidden_layers: transformer layers, N.
        num_attention_heads: heads of each layer, H.
        intermediate_size: width inside the feed-forward block.
        hidden_act: one of `ACTIVATIONS`; of the feed-forward block and the head.
        max_position_embeddings: rows of the position table.
        type_vocab_size: segments that have an embedding; 0 for DistilBERT.
        hidden_dropout_prob: dropout of embeddings and residual branches.
        attention_probs_dropout_prob: dropout of attention probabilities.
        initializer_range: deviation of random weights (truncated normal).
        layer_norm_eps: added to the variance in layer normalisation.
        pad_token_id: id of [PAD]; `input_mask` tells the padding, but RoBERTa's
            positions begin after this.
        model_type: one of `ARCHITECTURES`.
        embedding_size: width of ALBERT's embeddings; others have the hidden size.

    Raises:
        InputError: a value has the wrong type or range.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    max_position_embeddings: int
    type_vocab_size: int
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    model_type: str = BERT
    embedding_size: int | None = None

    def __post_init__(self) -> None:
        mistake = _mistake(self)
        if mistake is not None:
            key, expected = mistake
            raise InputError(key, expected, shown(getattr(self, key)))

    @property
    def embedding_width(self) -> int:
        """Width of the embeddings, and of what meets the vocabulary."""
        return self.embedding_size or self.hidden_size

    @property
    def num_distinct_layers(self) -> int:
        """Layers that have weights of their own."""
        return 1 if self.model_type == ALBERT else self.num_hidden_layers

    @property
    def position_offset(self) -> int:
        """The row of the position table that belongs to the first token."""
        return self.pad_token_id + 1 if self.model_type in ROBERTAS else 0

    @property
    def max_input_length(self) -> int:
        """The longest input, in tokens."""
        return self.max_position_embeddings - self.position_offset

    @property
    def head_act(self) -> str:
        """The activation of the head."""
        return "gelu" if self.model_type in ROBERTAS else self.hidden_act

    @classmethod
    def from_json(cls, path: Location) -> "EncoderConfig":
        """Reads a `config.json` (Hugging Face) or a `bert_config.json` (Google).

        Google's file has no `model_type`. Its "gelu" is taken as the erf form,
        as in the released code that its checkpoints were trained with.

        Args:
            path: the file.

        Returns:
            the configuration; keys that no computation here needs are left out.

        Raises:
            InputError: not a JSON object, another model type, a missing key, or
                a value of wrong type or range; names file, key, expected and
                received.
        """
        raw = path.read_json()
        model_type = raw.get("model_type", BERT)
        # A list may stand there, which is no key.
        if model_type not in tuple(ARCHITECTURES):
            raise InputError(
                path,
                received=f"model_type: expected one of {', '.join(ARCHITECTURES)}, received "
                f"{shown(model_type)}",
            )
        for key, expected in _fixed_options(model_type).items():
            if raw.get(key, expected) != expected:
                raise InputError(
                    path, received=f"{key}: expected {expected!r}, received {shown(raw[key])}"
                )
        values: dict[str, Any] = {"model_type": model_type}
        renamed = _DISTILBERT_KEYS if model_type == DISTILBERT else {}
        if model_type in ROBERTAS:
            values["pad_token_id"] = 1
        if model_type == DISTILBERT:
            values["type_vocab_size"] = 0
        for field in dataclasses.fields(cls):
            key = renamed.get(field.name, field.name)
            if field.name == "embedding_size" and model_type != ALBERT:
                continue
            if raw.get(key) is not None:
                values[field.name] = raw[key]
            elif field.default is dataclasses.MISSING and field.name not in values:
                raise InputError(path, received=f"{key}: expected a value, the key is missing")
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(path, received=error) from error

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields by name, in the order of declaration, for a manifest."""
        return dataclasses.asdict(self)

    def to_hf(self) -> dict[str, Any]:
        """Returns the `config.json` from which `transformers` makes the same masked LM."""
        values = self.to_dict()
        if self.model_type == DISTILBERT:
            del values["type_vocab_size"]
            values = {_DISTILBERT_KEYS.get(name, name): value for name, value in values.items()}
        if self.model_type != ALBERT:
            del values["embedding_size"]
        return {
            "architectures": [ARCHITECTURES[self.model_type]],
            **values,
            **_fixed_options(self.model_type),
        }

    def to_google(self) -> dict[str, Any]:
        """Returns the `bert_config.json` from which Google's code makes the same model.

        Its code counts padding by the mask alone, so `pad_token_id` is left out.

        Raises:
            InputError: a value that changes what the model computes cannot be said there.
        """
        expectations = {
            "model_type": (BERT,),
            "hidden_act": _GOOGLE_ACTIVATIONS,
            "layer_norm_eps": (_GOOGLE_LAYER_NORM_EPS,),
        }
        for key, allowed in expectations.items():
            if getattr(self, key) not in allowed:
                raise InputError(
                    key,
                    f"{' or '.join(map(str, allowed))}, as Google's layout has no other",
                    f"{getattr(self, key)!r}",
                )
        return {key: getattr(self, key) for key in _GOOGLE_KEYS}
