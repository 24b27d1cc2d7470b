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
            f"a tokenizer of at most {source.config.vocab_size} tokens, as the model has",
            f"{len(tokenizer.vocab)} in {source.directory}",
        )
    return tokenizer
