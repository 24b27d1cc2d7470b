"""What the teacher's runs start from: a model on disk, and masked examples that fit it."""

from data_specs import records
from pipeline.base.errors import InputError, naming_setting
from pipeline.models.formats import model_directory
from pipeline.storage import cache_input, cache_tokenizer
from pipeline.storage.cache_input import CacheInput
from pipeline.teacher.settings import TeacherCacheConfig
from pipeline.tokenizers import loading


def find_teacher(config: TeacherCacheConfig) -> model_directory.ModelSource:
    """Returns the teacher that `--teacher` or `--bert_config_file` names.

    Raises:
        InputError: it is not there, or its configuration is not valid.
    """
    if config.teacher is not None:
        return model_directory.find_model(config.teacher)
    return model_directory.ModelSource.from_google(config.bert_config_file, config.init_checkpoint)


def open_examples(config: TeacherCacheConfig, source: model_directory.ModelSource) -> CacheInput:
    """Opens the masked examples and refuses what does not fit them.

    Args:
        config: names them, and the teacher.
        source: the teacher.

    Raises:
        InputError: they are not complete or of another kind, or the flags or the
            teacher do not fit them.
    """
    cache = cache_input.open_cache(config.input_dir, config.input_file)
    if cache.manifest.kind == records.UNMASKED_WINDOWS:
        raise InputError(
            cache.directory,
            records.MASKED_EXAMPLES,
            f"{records.UNMASKED_WINDOWS}: masks change each epoch, so that there is "
            "nothing to cache",
            hint="use `masking`=static for a cache, or a live teacher: run_distill `teacher`",
        )
    if cache.manifest.kind != records.MASKED_EXAMPLES:
        raise InputError(cache.directory, records.MASKED_EXAMPLES, f"a {cache.manifest.kind}")
    cache_input.expect_settings(
        cache,
        max_seq_length=config.max_seq_length,
        max_predictions_per_seq=config.max_predictions_per_seq,
    )
    expect_fitting(config, source, cache)
    return cache


def expect_fitting(
    config: TeacherCacheConfig, source: model_directory.ModelSource, cache: CacheInput
) -> None:
    """Checks that a teacher has a cache's vocabulary, and room for its inputs.

    Args:
        config: how the teacher was named.
        source: the teacher.
        cache: masked examples, or a teacher cache.

    Raises:
        InputError: it does not fit; prints both values.
    """
    vocab_files = () if config.teacher is None else loading.tokenizer_files(config.teacher)
    with naming_setting("teacher" if config.teacher is not None else "bert_config_file"):
        cache_tokenizer.expect_vocab(cache, source.config.vocab_size, vocab_files)
        cache_input.expect_positions(cache, source.config.max_input_length)
        cache_input.expect_segments(cache, source.config.type_vocab_size)
