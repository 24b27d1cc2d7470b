"""Checks of a run before training: its cache, student, teacher and objective."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from data_specs import records
from pipeline.base import seeding
from pipeline.base.errors import InputError, Setting, naming_setting
from pipeline.distill.comparison import CAPTURE_STATES
from pipeline.distill.losses import load_loss
from pipeline.distill.losses.base import (
    ATTENTION,
    ATTENTION_NEEDS,
    HIDDEN,
    POSITION_NEEDS,
    RELATIONS,
    SCORES,
    TOPK,
)
from pipeline.distill.objective import Objective, choose_objective
from pipeline.distill.settings import ENCODER, NUM_DATA_STREAMS, DistillConfig
from pipeline.distill.student import StudentStart, find_student
from pipeline.models import position_blocks
from pipeline.models.config import EncoderConfig
from pipeline.models.formats import model_directory
from pipeline.storage import cache_input, cache_tokenizer, topk_mass
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.manifest import EVAL, HUB, SAMPLED, TRAIN, TeacherInfo

# The longest inputs whose attention maps are compared. At 1,024 tokens the maps of a model of 12
# layers and 12 heads take 0.6 GB for an example. The size grows with the square of the length.
_MAX_MAP_LENGTH = 1024


@dataclasses.dataclass(frozen=True)
class Preparation:
    """A checked run that is ready to start.

    Attributes:
        config: the run's settings.
        cache: the run's input.
        start: the source of the student's initial weights.
        teacher: the live teacher; None without one.
        objective: the training objective.
        teacher_hidden_size: the size of the hidden states that the student's are compared
            with; None if unknown.
        teacher_embedding_size: the same for embeddings.
    """

    config: DistillConfig
    cache: CacheInput
    start: StudentStart
    teacher: model_directory.ModelSource | None
    objective: Objective
    teacher_hidden_size: int | None
    teacher_embedding_size: int | None

    def block_size(self, num_devices: int = 1) -> int | None:
        """Returns the maximum number of positions whose logits are computed at once.

        None means all at once.

        Args:
            num_devices: the number of devices that share a batch. Each has the logits of its
                part.
        """
        config, manifest = self.config, self.cache.manifest
        over_all = self.objective.comparison.loss_positions == "all"
        vocab_size = self.start.config.vocab_size
        if self.objective.comparison.from_states:
            # With a reduced-vocabulary student, the teacher has more logits than the student.
            vocab_size = max(vocab_size, manifest.vocab.size)
        return position_blocks.block_size(
            batch_size=max(config.train_batch_size, config.eval_batch_size) // num_devices,
            num_positions=manifest.max_seq_length if over_all else manifest.max_predictions_per_seq,
            vocab_size=vocab_size,
        )

    def temperature_warnings(self) -> Iterator[str]:
        """Yields warnings about a cached top-k that holds little mass at the temperature."""
        comparison, cache = self.objective.comparison, self.cache
        temperatures = {
            loss.temperature
            for loss in comparison.losses(self.objective.weights)
            if loss.needs == TOPK
        }
        if comparison.topk_cached:
            fits = topk_mass.measure(cache.directory, cache.manifest, sorted(temperatures))
            yield from topk_mass.warnings(fits, cache.manifest.teacher_info.truncation_factor)

    def run_config(self) -> dict[str, Any]:
        """Returns the run configuration: the settings that decide the student, as JSON values."""
        settings = self.config.output_settings()
        if self.config.num_data_streams == 1:
            # The default without `distribution`.
            del settings[NUM_DATA_STREAMS]
        comparison, subset = self.objective.comparison, self.cache.vocab_subset
        run_config = {
            "kind": "student",
            "cache": self.cache.manifest.sha256(),
            "student": self.start.describe(),
            # A reduced vocabulary; None if the student has the whole vocabulary of the cache.
            "vocab": subset and subset.vocab.sha256,
            "teacher": None if self.teacher is None else self.teacher.sha256(),
            "backend": keras.config.backend(),
            **settings,
            "hidden_groups": comparison.describe_groups(HIDDEN),
            "attention_groups": comparison.describe_groups(ATTENTION),
            **{
                name: groups
                for name, need in (("score_groups", SCORES), ("relation_groups", RELATIONS))
                if (groups := comparison.describe_groups(need))
            },
            "losses": self.objective.weights,
            "num_warmup_steps": self.config.warmup_steps,
            "truncation_factor": comparison.truncation_factor,
        }
        if self.cache.manifest.kind == records.UNMASKED_WINDOWS:
            run_config["random_numbers"] = seeding.STREAMS
        if hub := self.config.hub_models():
            run_config[HUB] = hub
        return json.loads(json.dumps(run_config, default=vars))


def prepare(config: DistillConfig) -> Preparation:
    """Finds and checks everything that the settings name.

    Raises:
        InputError: an input is missing, or inputs do not fit together.
    """
    start = find_student(config.student)
    cache, start = _open(config, start)
    teacher = _find_teacher(config, cache)
    info = cache.manifest.teacher_info
    known = _known_teacher(info) if teacher is None else teacher.config
    k = _truncation_factor(config, cache, info, start.config.vocab_size)
    objective = choose_objective(
        config, info, student=start.config, teacher=known, truncation_factor=k
    )
    _expect_trained_losses(config, objective)
    _expect_short_maps(cache, objective)
    size = None if known is None else known.hidden_size
    cached_size = None if info is None else info.hidden_size
    hidden, embedding = (
        cached_size if is_cached else size
        for is_cached in (objective.comparison.hidden_cached, objective.comparison.embedding_cached)
    )
    return Preparation(config, cache, start, teacher, objective, hidden, embedding)


def _expect_trained_losses(config: DistillConfig, objective: Objective) -> None:
    """Raises InputError if a loss depends only on frozen weights."""
    if ENCODER not in config.freeze:
        return
    for name in objective.weights:
        if load_loss(name).needs not in POSITION_NEEDS:
            received = f"{name} trains only the encoder, which `freeze`={ENCODER} keeps fixed"
            hint = "use losses on the output distribution"
            raise InputError(Setting("losses"), received=received, hint=hint)


def _expect_short_maps(cache: CacheInput, objective: Objective) -> None:
    """Refuses losses on attention for inputs so long that the maps need too much memory."""
    names = [name for name in objective.weights if load_loss(name).needs in ATTENTION_NEEDS]
    length = cache.manifest.max_seq_length
    if names and length > _MAX_MAP_LENGTH:
        received = (
            f"{names[0]} compares {load_loss(names[0]).needs}, and supports inputs of at most "
            f"{_MAX_MAP_LENGTH:,} tokens; max_seq_length of {cache.directory} is {length:,}"
        )
        hint = (
            "memory grows with the square of the length for each head and layer; compare hidden "
            "states instead"
        )
        raise InputError(Setting("losses"), received=received, hint=hint)


def _open(config: DistillConfig, start: StudentStart) -> tuple[CacheInput, StudentStart]:
    """Opens the cache, fits the student to its vocabulary, and refuses what does not fit."""
    cache = cache_input.open_cache(config.input_dir, config.input_file)
    length, positions = config.max_seq_length, config.max_predictions_per_seq
    cache_input.expect_settings(cache, max_seq_length=length, max_predictions_per_seq=positions)
    with naming_setting(start.setting):
        source, subset = cache_tokenizer.fit_student(cache, start.source)
        start = start.with_source(source)
        cache = dataclasses.replace(cache, vocab_subset=subset)
        _expect_inputs_fit(cache, start.config)
    if config.do_train and not cache.manifest.num_examples(TRAIN):
        raise InputError(cache.directory, "train examples", "none")
    if config.do_eval and not config.do_train and not cache.manifest.num_examples(EVAL):
        raise InputError(cache.directory, "eval examples", "none")
    return cache, start


def _expect_inputs_fit(cache: CacheInput, config: EncoderConfig) -> None:
    cache_input.expect_positions(cache, config.max_input_length)
    cache_input.expect_segments(cache, config.type_vocab_size)


def _find_teacher(config: DistillConfig, cache: CacheInput) -> model_directory.ModelSource | None:
    """Finds the live teacher, if there is one, and refuses one that cannot read the inputs."""
    if config.teacher is None:
        return None
    source = model_directory.find_model(config.teacher)
    source.expect_head()
    if cache.vocab_subset is not None:
        expected = "unset with a reduced-vocabulary student, because both read the same token ids"
        hint = "train from a teacher cache instead"
        raise InputError(Setting("teacher"), expected, config.teacher, hint)
    with naming_setting("teacher"):
        source = cache_tokenizer.fit_vocab(cache, source)
        _expect_inputs_fit(cache, source.config)
    return source


def _known_teacher(info: TeacherInfo | None) -> EncoderConfig | None:
    """Returns the configuration of the teacher that made a cache; None if not recorded."""
    settings = None if info is None else info.teacher.get("config")
    if not isinstance(settings, Mapping):
        return None
    try:
        return EncoderConfig(**settings)
    except (TypeError, InputError):
        # It describes several teachers or a family of a later version. Only losses on layers need
        # it.
        return None


def _truncation_factor(
    config: DistillConfig, cache: CacheInput, info: TeacherInfo | None, vocab_size: int
) -> int | None:
    """Returns k: the cached value, or the setting if it is smaller.

    None means the whole distribution, which a live teacher and head states give. `vocab_size`
    is the student's.
    """
    setting, given = Setting("truncation_factor"), config.truncation_factor
    requested = None if given is None else min(given, cache.manifest.vocab.size)
    if info is not None and info.holds_states:
        return None if given is None else min(given, vocab_size)
    if info is None or config.loss_positions == "all":
        if requested is not None and config.teacher is None:
            received = f"{cache.directory} holds {cache.manifest.kind}, which have no top-k"
            hint = "unset `truncation_factor`, or train from a teacher cache"
            raise InputError(setting, received=received, hint=hint)
        return requested
    cached = info.truncation_factor
    if requested is not None and requested > cached:
        hint = f"a cache of {CAPTURE_STATES} supports any k"
        raise InputError(setting, f"at most {cached}, as in {cache.directory}", given, hint)
    if info.truncation == SAMPLED and (given or cached) < cached:
        expected = f"{cached}, all draws of a cache of `truncation`=sampled"
        raise InputError(setting, expected, given)
    return requested or cached
