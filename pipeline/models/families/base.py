"""The declaration of a model family: its names in files, and its differences from BERT."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

# Parts of BERT's names of weights and their replacements, applied in this order.
Renames = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class SequenceHead:
    """The head of `transformers`' models for sequence classification.

    It reads the first token's state, or the mean state if the model's configuration says so.
    Names are those in `model.safetensors`.

    Attributes:
        dense: the name of the layer before the output layer.
        norm: the name of the normalization after the activation; None without one.
        output: the name of the output layer.
        dropout: the key in `config.json` of the dropout before the outputs, and its rate;
            None for the rate of hidden states.
        activation: `tanh`, `relu` or `gelu`, after the first layer.
        drops_input: whether the dropout is also applied to the first token's state.
        is_pretrained: whether a pre-trained model may hold the layers before the output layer,
            as a pooler or as part of its masked-LM head.
    """

    dense: str
    norm: str | None = None
    output: str = "classifier"
    dropout: tuple[str, float] | None = ("classifier_dropout", 0.1)
    activation: str = "tanh"
    drops_input: bool = False
    is_pretrained: bool = False


@dataclasses.dataclass(frozen=True)
class FoldedEmbeddings:
    """An embedding table whose first row is added to every token.

    Loading adds that row to the segment embeddings.

    Attributes:
        key: the key of `config.json` that is true if the files have the table.
        rows: the key of `config.json` for the table's number of rows, and its default.
        hf: the table's name in `model.safetensors`.
    """

    key: str
    rows: tuple[str, int]
    hf: str


@dataclasses.dataclass(frozen=True)
class Published:
    """Models of the Hugging Face hub that have the same kinds of files.

    Attributes:
        names: ids on the hub.
        weights: names of the weight files on the hub, without `.index.json` if sharded.
        tokenizer: names of the tokenizer files that are read.
        note: a sentence that a user of these models must know; empty without one.
    """

    names: tuple[str, ...]
    weights: tuple[str, ...]
    tokenizer: tuple[str, ...]
    note: str = ""


# Files of published models.
SAFETENSORS, KERAS_H5, TORCH_BIN = "model.safetensors", "tf_model.h5", "pytorch_model.bin"
WORDPIECE = ("vocab.txt", "tokenizer.json")
NO_HEAD = "No masked-LM head: use it only to initialize a student."


@dataclasses.dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        model_type: its name in `config.json`.
        title: its name in texts.
        class_prefix: the beginning of its class names in `transformers`.
        sequence_head: the head of tasks that label an input.
        span_dropout: the key and the rate of the dropout in the head that finds spans.
        token_dropout: the key and the rate of the dropout in the head that classifies tokens;
            None for the rate of hidden states.
        has_sequence_head_over_tokens: whether these two heads have the layers of the sequence
            head, and its dropout.
        hf_names: replacements that map BERT's names in `model.safetensors` to this family's.
            TensorFlow 1 checkpoints have BERT's names.
        config_keys: keys of `config.json` by fields of `EncoderConfig`, where they differ.
        config_defaults: defaults of fields that its `config.json` may lack, besides the
            defaults of every family.
        fixed_options: keys of `config.json` that change what a model computes, with the only
            supported value.
        ignored_options: keys of options common to all families that have no meaning here.
        null_settings: keys of `config.json` that are written as null, because their defaults in
            `transformers` are ids of one vocabulary.
        own_fields: fields of `EncoderConfig` that only this family has, each with a value.
        read_settings: a function that converts the content of a `config.json` to the keys
            declared here.
        architecture: the architecture of its layers, a key of `architectures.ARCHITECTURES`.
        has_biases: whether dense layers and normalizations have biases.
        has_gated_units: whether the feed-forward block multiplies two dense layers' outputs.
        has_segments: whether it has segment embeddings.
        projects_embeddings: whether embeddings have a separate width and are projected to the
            hidden size.
        projects_equal_widths: whether they are also projected if this width equals the hidden
            size.
        relative_position_buckets: the number of buckets of distances between tokens. Each has
            a bias of the attention scores for each head. 0 without such biases.
        folded_embeddings: embeddings that files may have in addition to BERT's.
        shares_layers: whether all layers have the same weights.
        counts_positions_from_padding: whether the first position is the padding's id plus 1.
        head_act: the activation of the masked-LM head; None for the activation of the layers.
        in_google_layout: whether Google's `bert_config.json` can describe a model.
        without_segments: the family of the same model without its segment embeddings.
        doubles_separator: whether a pair of texts has two separators between them.
        published: known models of the hub, for the table of models that open.
    """

    model_type: str
    title: str
    class_prefix: str
    sequence_head: SequenceHead
    span_dropout: tuple[str, float] | None = None
    token_dropout: tuple[str, float] | None = ("classifier_dropout", 0.1)
    has_sequence_head_over_tokens: bool = False
    hf_names: Renames = ()
    config_keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    config_defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ignored_options: tuple[str, ...] = ()
    null_settings: tuple[str, ...] = ()
    own_fields: tuple[str, ...] = ()
    read_settings: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    architecture: str = "bert"
    has_biases: bool = True
    has_gated_units: bool = False
    has_segments: bool = True
    projects_embeddings: bool = False
    projects_equal_widths: bool = False
    relative_position_buckets: int = 0
    folded_embeddings: FoldedEmbeddings | None = None
    shares_layers: bool = False
    counts_positions_from_padding: bool = False
    head_act: str | None = None
    in_google_layout: bool = False
    without_segments: str | None = None
    doubles_separator: bool = False
    published: tuple[Published, ...] = ()


def rename(name: str, renames: Renames) -> str:
    """Returns a family's name of a weight, given BERT's name.

    Example:
        RoBERTa's for `cls.predictions.bias` is `lm_head.bias`.
    """
    for old, new in renames:
        name = name.replace(old, new)
    return name
