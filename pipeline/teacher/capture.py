"""The capture stage: runs the teacher once over masked examples and stores the teacher targets."""

import collections
import dataclasses
import functools
import itertools
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tqdm

from data_specs import records
from pipeline.base import distribution, json_text
from pipeline.base.distribution import DATA_PARALLEL
from pipeline.base.errors import InputError, Setting, naming_setting
from pipeline.base.location import Location
from pipeline.base.prefetch import prefetch
from pipeline.hub import models
from pipeline.models import embeddings, layer_groups, position_blocks
from pipeline.models.config import EncoderConfig
from pipeline.models.formats import model_directory
from pipeline.models.formats.model_directory import ModelSource
from pipeline.models.layer_groups import TeacherGroup, mean_state
from pipeline.models.masked_lm import LOGITS, MaskedLM, gather_positions
from pipeline.models.weight_names import VOCABULARY_ROWS
from pipeline.runners import workers as runners
from pipeline.runners.workers import ShardJob, Workers
from pipeline.storage import arrays, cache_input, cache_tokenizer, output_table, serialization
from pipeline.storage import manifest as manifests
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.codecs import ENCODINGS, HiddenCodec
from pipeline.storage.codecs.base import TargetCodec
from pipeline.storage.manifest import (
    SAMPLED,
    FileInfo,
    Manifest,
    ShardInfo,
    TableInfo,
    TeacherInfo,
)
from pipeline.storage.records import MaskedExample, TeacherTargets, read_examples
from pipeline.teacher import forward, label_scores, truncation
from pipeline.teacher.forward import Arrays
from pipeline.teacher.label_scores import ENTROPIES, MIN_LABELS, LabelScoreAccumulator
from pipeline.teacher.settings import TeacherCacheConfig

# Memory for the targets of a block. The examples of a block are sorted by length, so that a
# larger block gives batches with less padding.
_BLOCK_BYTES = 128 * 2**20
# The teacher is evaluated before any shard is made. Twice the minimum number of labels is used, so
# that the comparison does not depend on a few labels. The number of examples bounds its cost.
_JUDGED_LABELS = 2 * MIN_LABELS
_MAX_JUDGED_EXAMPLES = 1_024
# A capture of at least this many examples refuses a teacher that predicts noise. A smaller one
# takes minutes, so a warning is enough.
_LARGE_CAPTURE = 10_000
# Time between two checks whether the other processes have finished.
_POLL_SECONDS = 5.0


# The teacher and the masked examples.


def find_teacher(config: TeacherCacheConfig) -> ModelSource:
    """Returns the teacher that `teacher` or `bert_config_file` names.

    Raises:
        InputError: the teacher is missing, has no masked-LM head, or has an invalid
            configuration.
    """
    if config.teacher is not None:
        source = model_directory.find_model(config.teacher)
    else:
        source = ModelSource.from_google(config.bert_config_file, config.init_checkpoint)
    source.expect_head()
    return source


def open_examples(
    config: TeacherCacheConfig, source: ModelSource
) -> tuple[CacheInput, ModelSource]:
    """Opens the masked examples and checks that they fit the settings and the teacher.

    Returns:
        the masked examples; the teacher with their vocabulary.

    Raises:
        InputError: the shard directory is incomplete or holds another kind of record, or the
            settings or the teacher do not fit it.
    """
    cache = cache_input.open_cache(config.input_dir, config.input_file)
    if cache.manifest.kind == records.UNMASKED_WINDOWS:
        received = f"{cache.manifest.kind}, whose masks change each epoch and cannot be cached"
        hint = "prepare with `masking`=static, or use a live teacher: run_distill `teacher`"
        raise InputError(cache.directory, records.MASKED_EXAMPLES, received, hint)
    if cache.manifest.kind != records.MASKED_EXAMPLES:
        raise InputError(cache.directory, records.MASKED_EXAMPLES, f"a {cache.manifest.kind}")
    cache_input.expect_settings(
        cache,
        max_seq_length=config.max_seq_length,
        max_predictions_per_seq=config.max_predictions_per_seq,
    )
    return cache, fit_teacher(config, source, cache)


def fit_teacher(config: TeacherCacheConfig, source: ModelSource, cache: CacheInput) -> ModelSource:
    """Returns the teacher with the vocabulary of a shard directory.

    Raises:
        InputError: the teacher has another vocabulary, or too few positions or segments for the
            examples.
    """
    with naming_setting("teacher" if config.teacher is not None else "bert_config_file"):
        source = cache_tokenizer.fit_vocab(cache, source)
        cache_input.expect_positions(cache, source.config.max_input_length)
        cache_input.expect_segments(cache, source.config.type_vocab_size)
    return source


# The run configuration.


def find_groups(config: TeacherCacheConfig, teacher: EncoderConfig) -> tuple[TeacherGroup, ...]:
    """Returns the groups of layers whose hidden states are stored; none by default."""
    if config.cache_hidden_states is None:
        return ()
    with naming_setting("cache_hidden_states"):
        return layer_groups.parse_teacher_groups(
            config.cache_hidden_states, teacher.num_hidden_layers
        )


def run_configuration(
    config: TeacherCacheConfig, cache: CacheInput, source: ModelSource
) -> dict[str, Any]:
    """Returns the run configuration, as JSON values; hashes the teacher's files for it."""
    settings = config.output_settings()
    groups = find_groups(config, source.config)
    del settings["cache_hidden_states"]
    if config.cache_embedding is not None:
        settings["embedding"] = settings.pop("cache_embedding")
        settings["hidden_size"] = source.config.hidden_size
    if groups:
        settings["hidden_groups"] = [str(group) for group in groups]
        settings["hidden_size"] = source.config.hidden_size
    else:
        # It has no effect here, and directories of older versions do not record it.
        del settings["hidden_encoding"]
    factor = config.truncation_factor
    if config.holds_states:
        factor, settings["state_size"] = source.config.vocab_size, source.config.embedding_width
    return {
        **settings,
        "kind": records.TEACHER_CACHE,
        "parent": {"sha256": manifests.load(cache.directory).sha256()},
        "shards": [shard.file for shard in cache.manifest.shards],
        "teacher": describe_teacher(source),
        "truncation_factor": min(factor, source.config.vocab_size),
        "temperatures": list(config.temperatures),
        "backend": keras.config.backend(),
    }


def describe_teacher(source: ModelSource) -> dict[str, Any]:
    """Returns the manifest's entry of a teacher; it counts unused rows only if there are any."""
    unused = {"unused_rows": source.unused_rows} if source.unused_rows else {}
    return {"config": source.stored_config.to_dict(), "sha256": source.sha256(), **unused}


def read_output_layer(source: ModelSource) -> tuple[np.ndarray, np.ndarray]:
    """Reads a teacher's output table, float32 [V, E], and its bias [V]."""
    weights = source.read_weights()
    # A decoder is present only where the word embeddings are not the output table too.
    word_embeddings, bias, *decoders = (
        weights[name] for name in VOCABULARY_ROWS if name in weights
    )
    return (decoders or [word_embeddings])[0], bias


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of a capture: the settings, the teacher and the masked examples.

    `hub` holds the id and the commit of a teacher from the hub. It is not part of the run
    configuration, so that a run resumes with the same weights from elsewhere.
    """

    config: TeacherCacheConfig
    source: ModelSource
    cache: CacheInput
    run_configuration: Mapping[str, Any]
    hub: Mapping[str, str] | None = None

    @classmethod
    def open(cls, config: TeacherCacheConfig) -> "Inputs":
        """Finds the teacher and the masked examples, and checks that they fit each other."""
        cache, source = open_examples(config, find_teacher(config))
        hub = config.hub_models().get("teacher")
        return cls(config, source, cache, run_configuration(config, cache, source), hub)

    @property
    def teacher_info(self) -> TeacherInfo:
        """The manifest's description of the teacher targets."""
        names = {field.name for field in dataclasses.fields(TeacherInfo)}
        values = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in self.run_configuration.items()
            if name in names
        }
        if self.hub is not None:
            values["teacher"] = {**values["teacher"], "hub": dict(self.hub)}
        return TeacherInfo(**values)

    def count_tokens(self) -> FileInfo | None:
        """Writes the file of token counts, if the codec needs it."""
        return cache_input.count_tokens(
            self.config.output_dir, self.teacher_info, self.cache.directory, self.cache.manifest
        )

    def write_table(self) -> TableInfo | None:
        """Writes the file of the teacher's output table, if the codec needs it."""
        if not self.config.holds_states:
            return None
        teacher = self.source.config
        return output_table.ensure_table(
            self.config.output_dir,
            teacher.vocab_size,
            teacher.embedding_width,
            read_layer=lambda: read_output_layer(self.source),
        )

    def open_workers(self) -> Workers:
        """Returns the workers that run the jobs."""
        return runners.open_workers(self.config.ray, self.config.output_dir)


# One shard.


class ShardTotals:
    """Sums over the records of a shard, updated as the records are made."""

    def __init__(self, vocab_size: int) -> None:
        # The content of `ShardInfo.measured`.
        self.measured: collections.Counter[str] = collections.Counter()
        self.labels = LabelScoreAccumulator(vocab_size)

    def shard_fields(self, is_measured: bool) -> dict[str, Any]:
        """Returns the values of the fields of `ShardInfo` that hold the sums."""
        measured = dict(self.measured) if is_measured else None
        return {"measured": measured, "labels": self.labels.sums()}


@dataclasses.dataclass(frozen=True)
class Capture:
    """Turns records of masked examples into records of the teacher cache.

    Attributes:
        manifest: of the masked examples.
        info: of the teacher cache.
        batch_size: B.
        codec: packs the top-k or the head states.
        forward: the compiled teacher. It returns the part of the output that is stored: the
            top-k, all logits if tokens are drawn, or head states.
        on_examples: called with the number of examples just finished.
    """

    manifest: Manifest
    info: TeacherInfo
    batch_size: int
    codec: TargetCodec
    forward: forward.CompiledForward
    on_examples: Callable[[int], None]

    @functools.cached_property
    def hidden_codec(self) -> HiddenCodec | None:
        """The codec of the hidden states; None if none are stored."""
        return self.info.hidden_codec()

    def records(self, examples: Iterator[MaskedExample], totals: "ShardTotals") -> Iterator[bytes]:
        """Yields the cache's record for each masked example, in order.

        A record is added to the totals of its shard before it is yielded.
        """
        # Reading, the teacher's forward pass, and packing with writing overlap.
        blocks = prefetch(self._read_blocks(examples), depth=1)
        finished: list[tuple[int, bytes]] = []
        for block, indices, output in prefetch(self._run_teacher(blocks)):
            batched = [block[index] for index in indices]
            features = self._features(output, batched, totals.labels)
            for index, example, added in zip(indices, batched, features, strict=True):
                manifests.measure_record(totals.measured, added, self.codec.truncation_factor)
                record = serialization.encode_example({**example.features, **added})
                finished.append((index, record))
            self.on_examples(len(batched))
            if len(finished) == len(block):
                yield from (record for _, record in sorted(finished))
                finished = []

    def _read_blocks(self, examples: Iterator[MaskedExample]) -> Iterator[list[MaskedExample]]:
        """Yields blocks of consecutive examples; a block is sorted by length later."""
        position_bytes = 4 * (self.info.state_size or 2 * self.info.truncation_factor)
        if self.hidden_codec is not None:
            position_bytes += self.hidden_codec.num_groups * self.hidden_codec.hidden_size * 4
        example_bytes = self.manifest.max_predictions_per_seq * position_bytes
        batches = max(1, _BLOCK_BYTES // (example_bytes * self.batch_size))
        while block := list(itertools.islice(examples, batches * self.batch_size)):
            yield block

    def _run_teacher(
        self, blocks: Iterable[list[MaskedExample]]
    ) -> Iterator[tuple[list[MaskedExample], np.ndarray, Arrays]]:
        """Yields a block, the indices of a batch's examples in it, and the output for them."""
        for block in blocks:
            for indices, output in forward.run_examples(
                self.forward, block, self.manifest, batch_size=self.batch_size
            ):
                yield block, indices, output

    def _features(
        self,
        output: Mapping[str, np.ndarray],
        examples: Sequence[MaskedExample],
        scores: LabelScoreAccumulator,
    ) -> list[dict[str, bytes]]:
        """Returns the features that the cache adds to each example; scores their labels."""
        embedding_features = self._embeddings(output, len(examples))
        stored, row_splits = forward.real_positions(output, examples)
        sampled = self.info.truncation == SAMPLED
        exact = stored.pop(LOGITS) if sampled else stored[records.TOPK_LOGITS]
        forward.expect_finite(exact)
        scores.add(np.concatenate([example.masked_lm_ids for example in examples]), stored)
        if sampled:
            seed, num_draws = self.manifest.seed, self.info.truncation_factor
            stored |= truncation.sample_positions(exact, examples, seed=seed, num_draws=num_draws)
        targets = TeacherTargets(
            ids=stored[records.TOPK_IDS],
            logits=stored[records.TOPK_LOGITS],
            log_tail_masses=stored[records.LOG_TAIL_MASSES][:, : len(self.info.temperatures)],
            label_log_probs=stored[records.LABEL_LOG_PROBS],
            temperatures=self.info.temperatures,
            hidden_states=stored.get(records.HIDDEN_STATES),
            head_states=stored.get(records.HEAD_STATES),
        )
        features = targets.to_features(self.codec, row_splits, self.hidden_codec)
        return [
            {**of_positions, **of_example}
            for of_positions, of_example in zip(features, embedding_features, strict=True)
        ]

    def _embeddings(self, output: Mapping[str, np.ndarray], count: int) -> list[dict[str, bytes]]:
        """Returns each example's feature with its embedding; empty if none are stored."""
        if self.info.embedding is None:
            return [{}] * count
        values = output[records.EMBEDDING][:count]
        if not (np.abs(values) <= np.finfo(np.float16).max).all():
            received = "NaN, infinity or numbers beyond float16"
            expected = "a model whose embeddings fit float16"
            hint = "try `compute_dtype`=float32, or unset `cache_embedding`"
            raise InputError(Setting("teacher"), expected, received, hint)
        feature, size = records.EMBEDDING_FEATURE, self.manifest.vocab.size
        return [{feature.name: arrays.encode(feature, vector, size)} for vector in values]


def select_states(
    config: TeacherCacheConfig,
    model: MaskedLM,
    outputs: Mapping[str, Any],
    batch: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the hidden states and the embeddings of a batch that a cache stores.

    Args:
        config: settings of the capture.
        model: the teacher.
        outputs: of the teacher for the batch.
        batch: the features of a batch.

    Returns:
        by the name of the array: hidden states [B, P, G, D], embeddings [B, D]; neither by default.
    """
    selected = {}
    if groups := find_groups(config, model.config):
        selected[records.HIDDEN_STATES] = select_hidden_states(groups, outputs, batch)
    if config.cache_embedding is not None:
        labels, pooling = batch[records.MASKED_LM_IDS], config.cache_embedding
        selected[records.EMBEDDING] = embeddings.embed(model, batch, labels, pooling)
    return selected


def select_hidden_states(
    groups: Sequence[TeacherGroup], outputs: Mapping[str, Any], batch: Mapping[str, Any]
) -> Any:
    """Returns the mean state of each group of layers at the masked positions, [B, P, G, D]."""
    positions = batch[records.MASKED_LM_POSITIONS]
    means = [mean_state(outputs[records.HIDDEN_STATES], group) for group in groups]
    return keras.ops.stack([gather_positions(mean, positions) for mean in means], axis=2)


def make_selector(
    config: TeacherCacheConfig, model: MaskedLM, *, max_positions: int
) -> forward.Selector:
    """Returns the function that selects the values to store from the teacher's outputs.

    Args:
        config: settings of the capture.
        model: the teacher.
        max_positions: the most masked positions of an example.
    """
    vocab_size = model.config.vocab_size
    sampled = config.truncation == SAMPLED
    # With random draws or head states, only the most probable token is needed, for the scores.
    k = 1 if sampled or config.holds_states else min(config.truncation_factor, vocab_size)
    size = position_blocks.block_size(
        batch_size=config.predict_batch_size, num_positions=max_positions, vocab_size=vocab_size
    )

    def truncate(output: Sequence[Any], block: Mapping[str, Any]) -> dict[str, Any]:
        logits = model.vocabulary_logits(block[records.HEAD_STATES], *output)
        stored = truncation.truncate(
            logits,
            block[records.MASKED_LM_IDS],
            truncation_factor=k,
            temperatures=config.temperatures or (1.0,),
            truncation_mass=config.truncation_mass,
        )
        return {**stored, ENTROPIES: truncation.entropies(logits)}

    def select(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        states = {records.HEAD_STATES: outputs[records.HEAD_STATES]}
        states[records.MASKED_LM_IDS] = batch[records.MASKED_LM_IDS]
        stored = position_blocks.over_positions(truncate, model.output_layer(), states, size=size)
        if sampled:
            # NumPy draws the tokens from the logits, so that all backends draw the same.
            stored[LOGITS] = outputs[LOGITS]
        if config.holds_states:
            stored[records.HEAD_STATES] = keras.ops.cast(outputs[records.HEAD_STATES], "float32")
        return {**stored, **select_states(config, model, outputs, batch)}

    return select


def _first_examples(path: Location, manifest: Manifest) -> list[MaskedExample]:
    """Returns the first examples of a shard, on which the teacher is evaluated."""
    examples, num_labels = [], 0
    for example in itertools.islice(read_examples(path, manifest), _MAX_JUDGED_EXAMPLES):
        examples.append(example)
        num_labels += len(example.masked_lm_ids)
        if num_labels >= _JUDGED_LABELS:
            break
    return examples


class _ShardMaker:
    """The job that makes the records of a shard; loads the teacher once.

    Pickling keeps only the settings. A worker process on another node opens the teacher and the
    masked examples itself.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._is_evaluated = False

    def __reduce__(self) -> tuple[Any, ...]:
        config, expected = self._inputs.config, self._inputs.run_configuration
        return _open_maker, (config.absolute(), json_text.dump(expected))

    @functools.cached_property
    def model(self) -> MaskedLM:
        """The teacher with its weights."""
        config, source = self._inputs.config, self._inputs.source
        return model_directory.load_masked_lm(
            source, dtype=config.compute_dtype, logits_dtype="float32"
        )

    @functools.cached_property
    def _forward(self) -> forward.CompiledForward:
        """The compiled teacher; see `Capture.forward`."""
        inputs = self._inputs
        most = inputs.cache.manifest.max_predictions_per_seq
        select = make_selector(inputs.config, self.model, max_positions=most)
        return forward.compile_forward(self.model, select, devices=_devices(inputs.config))

    def evaluate_teacher(self, job: ShardJob) -> None:
        """Prints how well the teacher predicts the labels of a shard's first examples.

        Raises:
            InputError: the teacher predicts the labels significantly worse than their
                frequencies do, the capture is large, and `force` is off.
        """
        config, manifest = self._inputs.config, self._inputs.cache.manifest
        self._is_evaluated = True
        examples = _first_examples(self._inputs.cache.directory / job.file, manifest)
        accumulator = LabelScoreAccumulator(manifest.vocab.size)
        for indices, output in forward.run_examples(
            self._forward, examples, manifest, batch_size=config.predict_batch_size
        ):
            batched = [examples[index] for index in indices]
            stored, _ = forward.real_positions(output, batched)
            forward.expect_finite(stored[records.TOPK_LOGITS])
            accumulator.add(np.concatenate([example.masked_lm_ids for example in batched]), stored)
        if (scores := accumulator.scores()) is None:
            return
        num_examples = sum(map(manifest.num_examples, manifest.splits))
        if num_examples >= _LARGE_CAPTURE and not config.force:
            scores.expect_useful("bert_config_file" if config.teacher is None else "teacher")
        print("\n".join(scores.describe()), file=sys.stderr)

    @functools.cached_property
    def _capture(self) -> Capture:
        """The capture; the output directory must hold the files that the codec needs."""
        inputs, info = self._inputs, self._inputs.teacher_info
        config, vocab_size = inputs.config, inputs.source.config.vocab_size
        return Capture(
            manifest=inputs.cache.manifest,
            info=info,
            batch_size=config.predict_batch_size,
            codec=cache_input.make_codec(config.output_dir, info, vocab_size),
            forward=self._forward,
            on_examples=lambda count: None,
        )

    def __call__(
        self, job: ShardJob, on_examples: Callable[[int], None]
    ) -> tuple[Iterator[bytes], serialization.Sums]:
        """Returns a shard's records, and a function that returns the sums over them."""
        cache = self._inputs.cache
        splits = {job.split: (cache.manifest.splits[job.split][job.index],)}
        of_shard = dataclasses.replace(cache.manifest, splits=splits, token_counts=None)
        manifests.verify(cache.directory, of_shard, full=False)
        if not self._is_evaluated:
            self.evaluate_teacher(job)
        capture = dataclasses.replace(self._capture, on_examples=on_examples)
        examples = read_examples(cache.directory / job.file, capture.manifest)
        totals = ShardTotals(capture.manifest.vocab.size)
        is_measured = manifests.varies_in_size(capture.info)
        sums = functools.partial(totals.shard_fields, is_measured)
        return capture.records(examples, totals), sums


@functools.lru_cache(maxsize=1)
def _open_maker(config: TeacherCacheConfig, expected: bytes) -> _ShardMaker:
    """Returns the job in a worker process.

    Raises:
        InputError: the run configuration on this node differs from the command's.
    """
    inputs = Inputs.open(models.relocate_to_host(config))
    difference = manifests.describe_difference(
        json_text.load(expected), inputs.run_configuration, ("command", "this node")
    )
    if difference:
        raise InputError(
            Setting("runner"),
            "used with the same teacher and masked examples under the same paths on each node",
            f"different ones on {socket.gethostname()}: {difference}",
        )
    return _ShardMaker(inputs)


# Devices and processes.


def _devices(config: TeacherCacheConfig) -> Sequence[Any] | None:
    """Returns the devices that share each batch; None without data parallelism."""
    if config.distribution != DATA_PARALLEL:
        return None
    import jax

    return jax.local_devices()


def _find_share(config: TeacherCacheConfig) -> TeacherCacheConfig:
    """Returns the settings with this process's share of the shards.

    Raises:
        InputError: the backend cannot divide a batch, or the devices cannot share it equally.
    """
    if keras.config.backend() != "jax":
        expected = f"jax with `distribution`={DATA_PARALLEL}"
        raise InputError(Setting("backend"), expected, keras.config.backend())
    import jax

    count, size = len(_devices(config)), config.predict_batch_size
    if size % count:
        expected = f"a multiple of {count}, the number of devices that share a batch equally"
        raise InputError(Setting("predict_batch_size"), expected, size)
    if config.num_tasks is not None:
        return config
    tasks = {"num_tasks": jax.process_count(), "task_index": jax.process_index()}
    return dataclasses.replace(config, **tasks)


def _wait_for_others(config: TeacherCacheConfig) -> Manifest:
    """Returns the manifest once another process has published it.

    Joined processes must end together: JAX treats a process that ends early as lost.
    """
    print("waiting for the shards of other processes", file=sys.stderr)
    while not (config.output_dir / manifests.MANIFEST_FILE).is_file():
        distribution.check_other_processes()
        time.sleep(_POLL_SECONDS)
    return manifests.load(config.output_dir)


# The whole cache.


def create_teacher_cache(config: TeacherCacheConfig) -> Manifest | None:
    """Makes a teacher cache, or resumes one, or makes this task's share of it.

    With `distribution`=data_parallel, the joined processes share the shards, and each returns
    when all shards are complete.

    Returns:
        the manifest, or None if shards of other tasks are still missing.

    Raises:
        InputError: the masked examples, the teacher or the directory is invalid. Complete
            shards stay.
        InterruptedRunError: a joined process has failed.
    """
    if config.distribution != DATA_PARALLEL:
        return _make(config)
    shares_shards = config.num_tasks is None
    config = _find_share(config)
    with distribution.reporting_failure():
        manifest = _make(config)
        return _wait_for_others(config) if manifest is None and shares_shards else manifest


def _make(config: TeacherCacheConfig) -> Manifest | None:
    inputs = Inputs.open(config)
    inputs.source.print_unused()
    return finish_teacher_cache(inputs)


def finish_teacher_cache(inputs: Inputs) -> Manifest | None:
    """Makes the missing shards of a teacher cache and publishes it if it is complete.

    See `create_teacher_cache`.
    """
    config, cache = inputs.config, inputs.cache
    manifests.check_output_dir(config.output_dir, inputs.run_configuration)
    if (config.output_dir / manifests.MANIFEST_FILE).is_file():
        manifest = manifests.load(config.output_dir)
        print(f"already complete: {config.output_dir}", file=sys.stderr)
        return manifest
    manifests.verify(cache.directory, cache.manifest, full=config.verify == "full")
    _make_missing_shards(inputs)
    return _publish_when_complete(inputs)


def _make_missing_shards(inputs: Inputs) -> None:
    """Makes this task's shards that are missing or incomplete."""
    config, splits = inputs.config, inputs.cache.manifest.splits
    jobs = [
        ShardJob(split, index, shard.file)
        for split, shards in splits.items()
        for index, shard in enumerate(shards)
    ][config.task_index or 0 :: config.num_tasks or 1]
    jobs = [job for job in jobs if not manifests.completed_shard(config.output_dir, job.file)]
    if not jobs:
        return
    counts = {job: splits[job.split][job.index].num_examples for job in jobs}
    maker = _ShardMaker(inputs)
    with inputs.open_workers() as workers:
        # If the teacher is refused, the directory must still be free for a corrected command.
        workers.warm_up(lambda: maker.evaluate_teacher(max(jobs, key=counts.get)))
        manifests.reserve_output_dir(config.output_dir, inputs.run_configuration)
        inputs.count_tokens()
        inputs.write_table()
        with tqdm.tqdm(
            total=sum(counts.values()), unit=" examples", desc="teacher", smoothing=0.1
        ) as bar:

            def count(examples: int) -> None:
                bar.update(examples)
                if config.distribution == DATA_PARALLEL:
                    distribution.check_other_processes()

            shards = runners.make_shards(workers, config.output_dir, maker, jobs, count)
            collections.deque(shards, maxlen=0)


def _publish_when_complete(inputs: Inputs) -> Manifest | None:
    """Publishes the cache if no shard is missing."""
    config, cache = inputs.config, inputs.cache
    splits: dict[str, tuple[ShardInfo, ...]] = {}
    for split, shards in cache.manifest.splits.items():
        completed = [manifests.completed_shard(config.output_dir, shard.file) for shard in shards]
        if None in completed:
            return None
        splits[split] = tuple(completed)
    # A file that is present stays, as its settings may have been changed on purpose.
    files = [
        name for name in cache.manifest.tokenizer_files if not (config.output_dir / name).is_file()
    ]
    missing = dataclasses.replace(cache.manifest, tokenizer_files=files)
    manifests.copy_tokenizer(cache.directory, missing, config.output_dir)
    # To reproduce the bytes, a run needs the same environment and run configuration.
    environment = {
        "machine": platform.machine(),
        "threads": inputs.open_workers().cpus_per_job,
        "keras": keras.__version__,
        **ENCODINGS[config.logit_encoding].environment,
    }
    if devices := _devices(config):
        environment["devices"] = len(devices)
    manifest = dataclasses.replace(
        cache.manifest,
        kind=records.TEACHER_CACHE,
        flags={**cache.manifest.flags, **inputs.run_configuration},
        splits=splits,
        statistics={**cache.manifest.statistics, "environment": environment},
        teacher_info=inputs.teacher_info,
        token_counts=inputs.count_tokens(),
        output_table=inputs.write_table(),
    )
    if (scores := label_scores.of_cache(manifest)) is not None:
        # This is for readers of the manifest: programs compute it from the shards' sums.
        figures = {label_scores.STATISTICS_KEY: dataclasses.asdict(scores)}
        manifest = dataclasses.replace(manifest, statistics={**manifest.statistics, **figures})
    manifests.publish(config.output_dir, manifest)
    return manifest
