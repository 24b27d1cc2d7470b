"""The tokenizer in a model's directory."""

from typing import TYPE_CHECKING

from pipeline.base.errors import InputError, Setting

if TYPE_CHECKING:
    from pipeline.models.formats.model_directory import ModelSource
    from pipeline.tokenizers.tokens import Tokenizer


def load_model_tokenizer(source: "ModelSource") -> "Tokenizer":
    """Loads the tokenizer of a model, which the setting `model` names.

    Raises:
        InputError: there is none, or it has more tokens than the model.
    """
    from pipeline.tokenizers import loading

    tokenizer = loading.load_tokenizer(source.directory, do_lower_case=None)
    if len(tokenizer.vocab) > source.config.vocab_size:
        raise InputError(
            Setting("model"),
            f"a model with at least {len(tokenizer.vocab)} rows in its embedding table, one for "
            f"each token of the tokenizer in {source.directory}",
            f"{source.config.vocab_size} rows",
        )
    return tokenizer
