"""Prepare: turns a corpus into masked examples, or into windows that are masked when read.

    document blocks ─ workers: tokens, windows, masks ─ spill files sorted by key
        └─ workers: each shard takes its range of keys out of every spill file

An example's key is a hash. The copies of a window therefore spread over all shards, and each
shard is shuffled, in an order that depends only on the seed and the text.
"""

import dataclasses
import functools
import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from data_specs import records
from pipeline.base import seeding
from pipeline.base.errors import InputError, InterruptedRunError, Setting, naming_setting
from pipeline.base.location import Location
from pipeline.corpora import corpus
from pipeline.corpora.documents import CorpusFile
from pipeline.masking import document_masker, duplicates, tokenizer_choice
from pipeline.masking.duplicates import LeftOutDocuments
from pipeline.masking.settings import MaskedExamplesConfig
from pipeline.runners import workers as runners
from pipeline.runners.workers import ShardJob, Workers
from pipeline.storage import manifest as manifests
from pipeline.storage import spill, token_counts
from pipeline.storage.manifest import EVAL, TRAIN, Manifest
from pipeline.tokenizers.loading import load_tokenizer
from pipeline.tokenizers.tokens import Tokenizer

_PLAN_FILE = "plan.json"
# Upper bound for a shard of a teacher cache at the usual k. A cache has one shard for each shard
# of masked examples.
_MAX_SHARD_BYTES = 128 * 2**20
_USUAL_TRUNCATION_FACTOR = 128
# A larger fraction of unknown tokens suggests that the vocabulary does not fit the text.
_MANY_UNKNOWN = 0.05


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """The shards of a corpus and the examples of each; made when all blocks are masked.

    Attributes:
        corpus_digest: digest of all blocks.
        fingerprints: fingerprint of each block; each block has a spill file.
        eval_below: a document whose hash is below this is in the eval split.
        num_shards: number of shards of each split.
        record_bytes: size of all records.
        statistics: for the manifest and the summary.
        left_out: the documents that are left out as duplicates.
    """

    corpus_digest: str
    fingerprints: tuple[str, ...]
    eval_below: int
    num_shards: Mapping[str, int]
    record_bytes: int
    statistics: Mapping[str, Any]
    left_out: LeftOutDocuments

    def keys(self, job: ShardJob) -> spill.KeyRange:
        """Returns the keys of a shard's examples."""
        count = self.num_shards[job.split]
        low, high = (spill.KEY_SPACE * number // count for number in (job.index, job.index + 1))
        if job.split == EVAL:
            return spill.KeyRange(low, high, 0, self.eval_below)
        return spill.KeyRange(low, high, self.eval_below, spill.KEY_SPACE)

    def jobs(self) -> tuple[ShardJob, ...]:
        """Returns a job for every shard."""
        return tuple(
            ShardJob(split, index, manifests.shard_file(split, index, count))
            for split, count in self.num_shards.items()
            for index in range(count)
        )


def eval_threshold(fraction: float, lowest: int, highest: int) -> int:
    """Returns the threshold of the split: documents with a smaller hash are eval documents.

    If `fraction` is above 0 and at least two documents differ, the eval split and the train split
    each get at least one. `lowest` and `highest` are the smallest and the largest hash of any
    document.
    """
    threshold = int(fraction * spill.KEY_SPACE)
    if not threshold or lowest == highest:
        return 0
    return min(max(threshold, lowest + 1), highest)


def make_plan(
    config: MaskedExamplesConfig,
    headers: Sequence[Mapping[str, Any]],
    survey: duplicates.DuplicateSurvey,
    corpus_files: Sequence[CorpusFile],
    id_bytes: int,
) -> ShardPlan:
    """Returns the plan of a corpus whose blocks are all masked.

    Args:
        headers: headers of all spill files.
        survey: survey of their documents.
        id_bytes: size of a token id in a record.

    Raises:
        InputError: no document has an example.
    """
    statistics, skipped, by_corpus = (
        _total([*headers, survey.header], name) for name in ("statistics", "skipped", "examples")
    )
    skipped = +skipped
    if survey.groups is None:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(skipped.items()))
        received = f"{statistics['documents']} documents, all skipped: {reasons or 'none'}"
        hint = f"documents with fewer than `min_chars`={config.min_chars} characters are skipped"
        if list(skipped) == [document_masker.BAD_ROWS]:
            hint = "switch `skip_bad_lines` off to see the first of them"
        raise InputError(Setting("input_dir"), "a corpus with text to mask", received, hint)
    eval_below = eval_threshold(config.eval_fraction, *survey.groups)
    record_bytes = sum(header["bytes"] for header in (*headers, survey.header))
    cached_bytes = _USUAL_TRUNCATION_FACTOR * (id_bytes + 2) * statistics["masked_positions"]
    num_shards = _num_shards(config, record_bytes + cached_bytes, has_eval=eval_below > 0)
    counts = dict(statistics) | {
        "skipped": dict(skipped),
        "examples_by_corpus": dict(by_corpus),
        "corpus_files": len(corpus_files),
        "corpus_bytes": sum(file.bytes for file in corpus_files),
    }
    fingerprints = tuple(header["fingerprint"] for header in headers)
    digest = seeding.digest(*fingerprints).hex()
    return ShardPlan(
        digest, fingerprints, eval_below, num_shards, record_bytes, counts, survey.left_out
    )


def _num_shards(
    config: MaskedExamplesConfig, total_bytes: int, *, has_eval: bool
) -> dict[str, int]:
    shards = total_bytes / _MAX_SHARD_BYTES
    eval_share = config.eval_fraction if has_eval else 0.0
    counts = {TRAIN: config.num_shards or max(1, math.ceil(shards * (1.0 - eval_share)))}
    if has_eval:
        counts[EVAL] = max(1, math.ceil(shards * eval_share))
    return counts


def _total(headers: Sequence[Mapping[str, Any]], name: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for header in headers:
        total.update(header[name])
    return total


def _plan_path(config: MaskedExamplesConfig) -> Location:
    """Returns the path of the plan.

    It is next to the shards even in a bucket, so that no other machine mixes two corpora.
    """
    return config.output_dir / document_masker.SPILL_FOLDER / _PLAN_FILE


def _remove_spill(config: MaskedExamplesConfig) -> None:
    shutil.rmtree(document_masker.spill_folder(config), ignore_errors=True)
    _plan_path(config).unlink(missing_ok=True)


def _mask_corpus(
    config: MaskedExamplesConfig,
    corpus_files: Sequence[CorpusFile],
    workers: Workers,
    *,
    divides_text: bool,
) -> list[Mapping[str, Any]]:
    """Masks every block into its spill file and returns their headers: the first half."""
    mask = functools.partial(
        document_masker.mask_block,
        config,
        is_only_writer=not workers.may_repeat_jobs,
        divides_text=divides_text,
    )
    headers = []
    total = sum(file.bytes for file in corpus_files)
    # Nodes of a cluster may not see the files, and a single process need not split them.
    is_parallel = config.ray is None and config.max_workers > 1
    blocks = corpus.read_blocks(corpus_files, workers.run if is_parallel else None)
    with tqdm.tqdm(total=total, unit="B", unit_scale=True, desc="masking") as bar:
        for header, bytes_read in workers.run(mask, blocks):
            headers.append(header)
            bar.update(bytes_read - bar.n)
    return headers


def _mask_and_survey(
    config: MaskedExamplesConfig,
    corpus_files: Sequence[CorpusFile],
    workers: Workers,
    *,
    divides_text: bool,
) -> tuple[list[Mapping[str, Any]], duplicates.DuplicateSurvey]:
    """Masks the corpus and finds its duplicates.

    Blocks that relied on a text that has changed since are masked again.
    """
    while True:
        headers = _mask_corpus(config, corpus_files, workers, divides_text=divides_text)
        survey = _find_duplicates(config, headers)
        if not survey.incomplete:
            return headers, survey
        for index in survey.incomplete:
            document_masker.spill_path(config, index).unlink()


def _find_duplicates(
    config: MaskedExamplesConfig, headers: Sequence[Mapping[str, Any]]
) -> duplicates.DuplicateSurvey:
    firsts = np.cumsum([0, *(header["statistics"]["documents"] for header in headers)])
    return duplicates.find_duplicates(
        [document_masker.table_path(config, index) for index in range(len(headers))],
        LeftOutDocuments(document_masker.left_out_path(config), tuple(firsts.tolist())),
        [source.label for source in config.corpora],
    )


def _make_records(
    config: MaskedExamplesConfig, plan: ShardPlan, job: ShardJob
) -> tuple[Iterator[bytes], None]:
    return spill.read_sorted(
        document_masker.expect_blocks(config, plan.fingerprints),
        plan.keys(job),
        expected_bytes=plan.record_bytes // plan.num_shards[job.split],
        left_out=plan.left_out.of_blocks(),
    ), None


def _write_shards(
    config: MaskedExamplesConfig, plan: ShardPlan, workers: Workers
) -> dict[str, tuple[manifests.ShardInfo, ...]]:
    """Writes every shard from the spill files: the second half."""
    jobs = plan.jobs()
    done = {job: manifests.completed_shard(config.output_dir, job.file) for job in jobs}
    missing = [job for job in jobs if done[job] is None]
    _expect_same_corpus(config, plan, is_begun=len(missing) < len(jobs))
    make = functools.partial(_make_records, config, plan)
    new_shards = runners.make_shards(workers, config.output_dir, make, missing)
    splits: dict[str, list[manifests.ShardInfo]] = {split: [] for split in plan.num_shards}
    for job in tqdm.tqdm(jobs, unit="shard", desc="writing"):
        splits[job.split].append(done[job] or next(new_shards))
    return {split: tuple(shards) for split, shards in splits.items()}


def _expect_same_corpus(config: MaskedExamplesConfig, plan: ShardPlan, *, is_begun: bool) -> None:
    """Raises an error if the text has changed between two runs: shards of two texts never mix."""
    path = _plan_path(config)
    started = path.read_json().get("corpus") if path.is_file() else plan.corpus_digest
    if is_begun and started != plan.corpus_digest:
        changed = f"the text has changed since the first run into {config.output_dir}"
        digests = f"expected digest {started}, received {plan.corpus_digest}"
        hint = "restore the original text, or choose another `output_dir`"
        raise InputError(Setting("input_dir"), received=f"{changed}: {digests}", hint=hint)
    path.write_json({"corpus": plan.corpus_digest})


def create_masked_examples(config: MaskedExamplesConfig) -> Manifest:
    """Makes a directory of masked examples or unmasked windows, or resumes an interrupted run.

    Returns:
        the manifest of `config.output_dir`.

    Raises:
        InputError: the corpus, the vocabulary or the directory is invalid. The directory is
            restored if this call began to write it and no shard is complete.
    """
    corpus.expect_outside(config.output_dir, config.corpora)
    config = config.absolute()
    corpora = corpus.resolve(config.corpora)
    # An invalid vocabulary is reported before the corpus is read.
    with naming_setting("vocab_file"):
        tokenizer = load_tokenizer(config.vocab_file, do_lower_case=config.do_lower_case)
    corpus_files = corpus.open_corpora(config.corpora, corpora)
    config, tokenizer = tokenizer_choice.choose_tokenizer(config, tokenizer, corpus_files)
    run_config = config.run_config(tokenizer, corpora)
    is_new = manifests.reserve_output_dir(config.output_dir, run_config)
    if is_new:
        # Temporary files of a bucket may be left from a directory that was deleted since.
        _remove_spill(config)
    if (config.output_dir / manifests.MANIFEST_FILE).is_file():
        manifest = manifests.load(config.output_dir)
        _expect_corpus_size(config, manifest, corpus_files)
        print(f"already complete: {config.output_dir}", file=sys.stderr)
    else:
        try:
            manifest = _make(config, corpus_files, tokenizer, run_config)
        except InputError as error:
            # Complete shards stay, together with the run configuration that they belong to.
            is_empty = is_new and not any(config.output_dir.glob("*.tfrecord"))
            if is_empty and not isinstance(error, InterruptedRunError):
                _withdraw(config, tokenizer)
            raise
    _remove_spill(config)
    return manifest


def _make(
    config: MaskedExamplesConfig,
    corpus_files: Sequence[CorpusFile],
    tokenizer: Tokenizer,
    run_config: Mapping[str, Any],
) -> Manifest:
    for name, content in tokenizer.files().items():
        (config.output_dir / name).write_whole(content)
    folder = document_masker.spill_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    workers = runners.open_workers(
        config.ray, config.output_dir, max_workers=config.max_workers, shared=folder
    )
    with workers:
        divides_text = config.eval_fraction > 0.0 and not document_masker.has_two_documents(
            config, corpus_files
        )
        headers, survey = _mask_and_survey(config, corpus_files, workers, divides_text=divides_text)
        id_bytes = records.id_dtype(tokenizer.info.size).itemsize
        plan = make_plan(config, headers, survey, corpus_files, id_bytes)
        splits = _write_shards(config, plan, workers)
        counts = _write_token_counts(config, plan, workers, tokenizer.info.size)
    unusual: dict[str, Any] = {}
    if divides_text and EVAL in splits:
        unusual[manifests.HELD_OUT_TEXT] = config.eval_fraction
    if (divides_text or EVAL not in splits) and not corpus.ends_at_blank_lines(corpus_files):
        unusual[manifests.ROWS] = True
    manifest = Manifest(
        kind=config.kind,
        vocab=tokenizer.info,
        special_ids=tokenizer.special_ids,
        max_seq_length=config.max_seq_length,
        max_predictions_per_seq=config.max_predictions_per_seq,
        dupe_factor=config.copies,
        seed=config.random_seed,
        flags=run_config,
        splits=splits,
        tokenizer_files=tuple(sorted(tokenizer.files())),
        statistics={**plan.statistics, **unusual},
        token_counts=counts,
    )
    manifests.publish(config.output_dir, manifest)
    return manifest


def _write_token_counts(
    config: MaskedExamplesConfig, plan: ShardPlan, workers: Workers, vocab_size: int
) -> manifests.FileInfo | None:
    if not config.is_dynamic:
        return None
    blocks = range(len(plan.fingerprints))
    count = functools.partial(document_masker.count_block, config, plan.left_out)
    for _ in workers.run(count, blocks):
        pass
    paths = [document_masker.counts_path(config, index) for index in blocks]
    path = config.output_dir / token_counts.TOKEN_COUNTS_FILE
    return token_counts.write_counts(path, token_counts.sum_counts(paths, vocab_size))


def _withdraw(config: MaskedExamplesConfig, tokenizer: Tokenizer) -> None:
    """Removes the files that were written, so that a corrected command can use the directory."""
    _remove_spill(config)
    for name in (*tokenizer.files(), manifests.RUN_CONFIG_FILE):
        (config.output_dir / name).unlink(missing_ok=True)


def _expect_corpus_size(
    config: MaskedExamplesConfig, manifest: Manifest, corpus_files: Sequence[CorpusFile]
) -> None:
    recorded = tuple(manifest.statistics[name] for name in ("corpus_files", "corpus_bytes"))
    present = len(corpus_files), sum(file.bytes for file in corpus_files)
    if recorded != present:
        text = "{} files and {} bytes".format
        expected = f"the corpus that it was made from ({text(*recorded)})"
        hint = "choose an empty directory"
        raise InputError(config.output_dir, expected, text(*present), hint)


def describe(manifest: Manifest) -> Iterator[str]:
    """Yields the lines of the summary."""
    counts = manifest.statistics
    skipped = counts["skipped"]
    tokens = counts.get("tokens", 0)
    rate = counts.get("unknown_tokens", 0) / max(1, tokens)
    yield f"documents  {counts['documents']:,} read, {sum(skipped.values()):,} of them skipped"
    for reason, count in sorted(skipped.items()):
        yield f"             {count:,} {reason}"
    yield f"tokens     {tokens:,}, {rate:.3%} [UNK]"
    if rate > _MANY_UNKNOWN:
        yield "           high rate: check the text's language, case and Unicode form (NFC)"
    yield f"windows    {counts['windows']:,}"
    by_corpus = counts["examples_by_corpus"]
    if len(by_corpus) > 1:
        for label, count in sorted(by_corpus.items()):
            yield f"             {count:,} examples of {label}"
    for split, shards in manifest.splits.items():
        size = sum(shard.bytes for shard in shards)
        yield (
            f"{split:<10} {manifest.num_examples(split):,} examples, {size:,} bytes, "
            f"{len(shards):,} shard{'s' * (len(shards) != 1)}"
        )
    yield from (f"{'':<10} {line}" for line in manifest.evaluation_notes())
    if manifest.kind == records.UNMASKED_WINDOWS:
        yield "masked     by run_distill, differently in each epoch"
    else:
        yield f"masked     {counts['masked_positions']:,} positions"
