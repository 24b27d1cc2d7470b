"""Checks of a run before training: its cache, student, teacher and objective."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from pipeline.base.errors import InputError, Setting, naming_setting
from pipeline.distill.comparison import CAPTURE_STATES
from pipeline.distill.losses import load_loss
from pipeline.distill.losses.base import (
    ATTENTION,
    HIDDEN,
    OF_ATTENTION,
    OF_POSITIONS,
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
from pipeline.storage import cache_input, cache_tokenizer, list_mass
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.manifest import EVAL, HUB, SAMPLED, TRAIN, TeacherInfo

# The longest inputs whose attention maps are compared: at 1,024 tokens a model of 12 layers
# and 12 heads has 0.6 GB of maps for an example, which grow with the square.
_MAX_MAP_LENGTH = 1024


@dataclasses.dataclass(frozen=True)
class Preparation:
    """A run that may begin.

    Attributes:
        config: of the run.
        cache: its input.
        start: where the student comes from.
        teacher: a live one; None without.
        objective: of the training.
        teacher_hidden_size: of the states that are compared with the student's; None if unknown.
        teacher_embedding_size: of the embeddings, likewise.
    """

    config: DistillConfig
    cache: CacheInput
    start: StudentStart
    teacher: model_directory.ModelSource | None
    objective: Objective
    teacher_hidden_size: int | None
    teacher_embedding_size: int | None

    def block_size(self, num_devices: int = 1) -> int | None:
        """Returns the most positions whose logits are computed at once; None for all.

        Args:
            num_devices: that share a batch, each of which has the logits of its part.
        """
        config, manifest = self.config, self.cache.manifest
        over_all = self.objective.comparison.loss_positions == "all"
        vocab_size = self.start.config.vocab_size
        if self.objective.comparison.from_states:
            # Of a student that knows only some of the tokens, the teacher's logits are more.
            vocab_size = max(vocab_size, manifest.vocab.size)
        return position_blocks.block_size(
            batch_size=max(config.train_batch_size, config.eval_batch_size) // num_devices,
            num_positions=manifest.max_seq_length if over_all else manifest.max_predictions_per_seq,
            vocab_size=vocab_size,
        )

    def temperature_warnings(self) -> Iterator[str]:
        """Yields a line where a cached top-k holds little of the teacher at the temperature."""
        comparison, cache = self.objective.comparison, self.cache
        temperatures = {
            loss.temperature
            for loss in comparison.losses(self.objective.weights)
            if loss.needs == TOPK
        }
        if comparison.topk_cached:
            fits = list_mass.measure(cache.directory, cache.manifest, sorted(temperatures))
            yield from list_mass.warnings(fits, cache.manifest.teacher_info.truncation_factor)

    def request(self) -> dict[str, Any]:
        """Returns the settings that decide the student, as JSON values."""
        settings = self.config.decisive()
        if self.config.num_data_streams == 1:
            # The default without `distribution`.
            del settings[NUM_DATA_STREAMS]
        comparison, subset = self.objective.comparison, self.cache.vocab_subset
        request = {
            "kind": "student",
            "cache": self.cache.manifest.sha256(),
            "student": self.start.describe(),
            # A part of the cache's vocabulary; None where it is all of it.
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
        if hub := self.config.hub_models():
            request[HUB] = hub
        return json.loads(json.dumps(request, default=vars))


def prepare(config: DistillConfig) -> Preparation:
    """Finds and checks everything that the flags name.

    Raises:
        InputError: something is missing or does not fit.
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
    """Raises InputError where a loss depends on nothing that is trained."""
    if ENCODER not in config.freeze:
        return
    for name in objective.weights:
        if load_loss(name).needs not in OF_POSITIONS:
            expected = f"losses of the output distribution together with `freeze`={ENCODER}"
            raise InputError(Setting("losses"), expected, f"{name}, which trains the encoder")


def _expect_short_maps(cache: CacheInput, objective: Objective) -> None:
    """Refuses losses of attention maps over inputs for which maps need too much memory."""
    names = [name for name in objective.weights if load_loss(name).needs in OF_ATTENTION]
    length = cache.manifest.max_seq_length
    if names and length > _MAX_MAP_LENGTH:
        received = f"{names[0]} for inputs of {length} tokens (max_seq_length of {cache.directory})"
        hint = "they take the square of that for each head and layer; compare hidden states instead"
        needs = load_loss(names[0]).needs
        expected = f"losses without {needs} above {_MAX_MAP_LENGTH} tokens"
        raise InputError(Setting("losses"), expected, received, hint)


def _open(config: DistillConfig, start: StudentStart) -> tuple[CacheInput, StudentStart]:
    """Opens the cache and refuses what does not fit it; the student gets its vocabulary."""
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
        expected = "unset with a student of a part of the vocabulary, as both read the same inputs"
        hint = "train from a teacher cache instead"
        raise InputError(Setting("teacher"), expected, config.teacher, hint)
    with naming_setting("teacher"):
        source = cache_tokenizer.fit_vocab(cache, source)
        _expect_inputs_fit(cache, source.config)
    return source


def _known_teacher(info: TeacherInfo | None) -> EncoderConfig | None:
    """Returns the configuration of the teacher that a cache was made with, if it says so."""
    settings = None if info is None else info.teacher.get("config")
    if not isinstance(settings, Mapping):
        return None
    try:
        return EncoderConfig(**settings)
    except (TypeError, InputError):
        # Of a family that came later, or several teachers': only layers need it.
        return None


def _truncation_factor(
    config: DistillConfig, cache: CacheInput, info: TeacherInfo | None, vocab_size: int
) -> int | None:
    """Returns k: the cached one, or the smaller one given; None for the whole distribution.

    That is of a live teacher or of head states; `vocab_size` is the student's.
    """
    setting, given = Setting("truncation_factor"), config.truncation_factor
    wanted = None if given is None else min(given, cache.manifest.vocab.size)
    if info is not None and info.holds_states:
        return None if given is None else min(given, vocab_size)
    if info is None or config.loss_positions == "all":
        if wanted is not None and config.teacher is None:
            received = f"{cache.manifest.kind}, which hold no top-k"
            raise InputError(setting, f"a teacher cache in {cache.directory}", received)
        return wanted
    cached = info.truncation_factor
    if wanted is not None and wanted > cached:
        hint = f"a cache of {CAPTURE_STATES} gives any"
        raise InputError(setting, f"at most {cached}, as in {cache.directory}", given, hint)
    if info.truncation == SAMPLED and (given or cached) < cached:
        expected = f"{cached}, all draws of a cache of `truncation`=sampled"
        raise InputError(setting, expected, given)
    return wanted or cached
