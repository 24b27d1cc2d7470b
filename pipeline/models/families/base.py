"""The declaration of a model family: its names in files, and its differences from BERT."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

# Parts of BERT's names of weights and their replacements, applied in this order.
Renames = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class SequenceHead:
    """The head of `transformers`' models for sequence classification.

    It reads the first token's state, or the mean state where a model's configuration says so.

    Attributes:
        dense: the name of the layer before the outputs in `model.safetensors`.
        norm: the name there of the normalisation after the activation; None for none.
        output: the name of the output layer there.
        dropout: the key in `config.json` of the dropout before the outputs, and its rate;
            None for the rate of hidden states.
        activation: `tanh`, `relu` or `gelu`, after the first layer.
        drops_input: whether the dropout is also applied to the first token's state.
        is_pretrained: whether a pre-trained model may hold the layers before the outputs: a
            pooler, or those of its masked-LM head.
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
    """A table whose first row belongs to every token: read into the segment embeddings.

    Attributes:
        key: in `config.json`, true where the files have the table.
        rows: the key there of the table's number of rows, and its default.
        hf: the table's name in `model.safetensors`.
    """

    key: str
    rows: tuple[str, int]
    hf: str


@dataclasses.dataclass(frozen=True)
class Published:
    """Models of the Hugging Face hub that have the same kinds of files.

    Attributes:
        names: on the hub.
        weights: names of the weight files there, without `.index.json` for several.
        tokenizer: names of the tokenizer files there that are read.
        note: a sentence about what a user must know of them; empty for none.
    """

    names: tuple[str, ...]
    weights: tuple[str, ...]
    tokenizer: tuple[str, ...]
    note: str = ""


# Files of published models.
SAFETENSORS, KERAS_H5, TORCH_BIN = "model.safetensors", "tf_model.h5", "pytorch_model.bin"
WORDPIECE = ("vocab.txt", "tokenizer.json")
NO_HEAD = "Without a masked-LM head: a student's start."


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
        hf_names: from BERT's names in `model.safetensors` to this family's. TensorFlow 1
            checkpoints have BERT's names.
        config_keys: from fields of `EncoderConfig` to other keys of `config.json`.
        config_defaults: fields that its `config.json` may lack, besides those that have
            defaults for every family.
        fixed_options: keys of `config.json` that change what a model computes, with the only
            supported value.
        ignored_options: keys of options common to all families that have no meaning here.
        null_settings: keys of `config.json` that are written as null, because their defaults in
            `transformers` are ids of one vocabulary.
        own_fields: fields of `EncoderConfig` that only this family has, each with a value.
        read_settings: from the content of a `config.json` to that in the keys declared here.
        architecture: a key of `architectures.ARCHITECTURES`, the layers that it is made of.
        has_biases: whether dense layers and normalisations have biases.
        has_gated_units: whether the feed-forward block multiplies two dense layers' outputs.
        has_segments: whether there are segment embeddings.
        projects_embeddings: whether embeddings have a width of their own and are projected
            to the hidden size.
        projects_equal_widths: whether they are projected to a hidden size of their own width, too.
        relative_position_buckets: buckets of distances between tokens, each with a bias of the
            attention scores for each head; 0 for none.
        folded_embeddings: embeddings that files may have beside BERT's.
        shares_layers: whether all layers have the same weights.
        counts_positions_from_padding: whether the first position is the padding's id plus 1.
        head_act: the activation of the masked-LM head; None for that of the layers.
        in_google_layout: whether Google's `bert_config.json` can describe a model.
        without_segments: the family of the same model without its segment embeddings.
        doubles_separator: whether two separators stand between the texts of a pair.
        published: known models of the hub, for the page of what opens.
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
    """Returns a family's name of a weight for BERT's.

    Example:
        RoBERTa's for `cls.predictions.bias` is `lm_head.bias`.
    """
    for old, new in renames:
        name = name.replace(old, new)
    return name
