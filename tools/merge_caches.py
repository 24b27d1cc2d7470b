"""Averages teacher caches over the same masked examples into one: several teachers, one cache.

offline_distill merge_caches --input_dirs=CACHE_A,CACHE_B --weights=0.5,0.5 --output_dir=MERGED

The probabilities are averaged at temperature 1, the only temperature of the
merged cache, which has a top-k. Killed at any moment, the same command finishes the rest.
"""

import collections
import dataclasses
import functools
import math
import platform
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm
from absl import flags as absl_flags

from data_specs import records
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, parse_numbers, parse_words, setting
from pipeline.commands import flags, running
from pipeline.storage import cache_input, serialization
from pipeline.storage import manifest as manifests
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.codecs import CODECS
from pipeline.storage.manifest import Manifest, ShardInfo, TeacherInfo
from pipeline.teacher import summary
from tools.cache_analysis import merging


@dataclasses.dataclass(frozen=True)
class MergeConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    input_dirs: tuple[Location, ...] = setting(
        dataclasses.MISSING,
        "Teacher caches over the same masked examples, separated by commas.",
        parse=parse_words,
    )
    output_dir: Location = setting(
        dataclasses.MISSING, "Directory for the merged cache: empty, or of an interrupted run."
    )
    weights: tuple[float, ...] | None = setting(
        None,
        "A number above 0 for each cache, for example 2,1. Equal by default.",
        parse=parse_numbers,
    )
    truncation_factor: int | None = setting(
        None,
        "k, the number of tokens stored at a masked position; the largest of the caches by "
        "default. Required where one holds head states.",
        low=1,
    )
    logit_encoding: str = setting("float16", "Codec of the logits.", choices=tuple(CODECS))
    verify: str = setting(
        "full",
        "Check of the input before the run: full reads every byte, sizes compares file sizes.",
        choices=("full", "sizes"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.input_dirs) < 2:
            received = ",".join(map(str, self.input_dirs))
            expected = "two caches or more, separated by commas"
            raise InputError(Setting("input_dirs"), expected, received)
        if self.weights is None:
            return
        if len(self.weights) != len(self.input_dirs):
            expected = f"{len(self.input_dirs)}, one for each of `input_dirs`"
            raise InputError(Setting("weights"), expected, len(self.weights))
        if not all(weight > 0.0 for weight in self.shares):
            received = ",".join(f"{weight:g}" for weight in self.weights)
            raise InputError(Setting("weights"), "numbers above 0", received)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, of sum 1."""
        weights = self.weights or (1.0,) * len(self.input_dirs)
        total = math.fsum(weights)
        # A sum of 0 is of weights that are refused.
        return tuple(weight / total if total > 0.0 else 0.0 for weight in weights)


def _teacher_info(config: MergeConfig, caches: Sequence[CacheInput]) -> TeacherInfo:
    """Returns what the merged cache will hold."""
    infos = [cache.manifest.teacher_info for cache in caches]
    if config.truncation_factor is None and any(info.holds_states for info in infos):
        expected = "a number, as a cache of head states has all tokens and the merged one a top-k"
        raise InputError(Setting("truncation_factor"), expected, "none")
    # More than the longest list may not be there everywhere.
    longest = max(info.truncation_factor for info in infos)
    wanted = min(config.truncation_factor or longest, caches[0].manifest.vocab.size)
    if wanted > longest:
        expected = f"at most {longest}, the largest of `input_dirs`"
        raise InputError(Setting("truncation_factor"), expected, config.truncation_factor)
    teachers = [
        {**info.teacher, "weight": weight}
        for info, weight in zip(infos, config.shares, strict=True)
    ]
    masses = [info.truncation_mass for info in infos if info.truncation_mass is not None]
    return TeacherInfo(
        truncation_factor=wanted,
        logit_encoding=config.logit_encoding,
        temperatures=(merging.TEMPERATURE,),
        teacher={"merged": teachers},
        parent=infos[0].parent,
        truncation_mass=min(masses, default=None),
    )


def _run_configuration(
    config: MergeConfig, caches: Sequence[CacheInput], info: TeacherInfo
) -> dict[str, Any]:
    """Returns the settings that decide the output, as JSON values."""
    mass = info.truncation_mass
    return {
        "kind": records.TEACHER_CACHE,
        "merged": [
            {"manifest": cache.manifest.sha256(), "weight": weight}
            for cache, weight in zip(caches, config.shares, strict=True)
        ],
        "parent": info.parent,
        "shards": [shard.file for shard in caches[0].manifest.shards],
        "truncation_factor": info.truncation_factor,
        "temperatures": list(info.temperatures),
        "logit_encoding": info.logit_encoding,
        **({} if mass is None else {"truncation_mass": mass}),
    }


def merge_caches(config: MergeConfig) -> Manifest:
    """Merges teacher caches, or finishes a merge that was killed; returns the manifest.

    Raises:
        InputError: the caches or the directory are invalid. Shards that are whole stay.
    """
    caches = [CacheInput(path, manifests.load(path)) for path in config.input_dirs]
    merging.expect_same_examples(caches)
    info = _teacher_info(config, caches)
    settings = _run_configuration(config, caches, info)
    manifests.check_output_dir(config.output_dir, settings)
    if (config.output_dir / manifests.MANIFEST_FILE).is_file():
        return manifests.load(config.output_dir)
    for cache in caches:
        manifests.verify(cache.directory, cache.manifest, full=config.verify == "full")
    manifests.reserve_output_dir(config.output_dir, settings)
    source, inputs = caches[0].directory, [cache.manifest for cache in caches]
    # Before the first shard: the codec may need them.
    counts = cache_input.count_tokens(config.output_dir, info, source, inputs[0])
    splits = _merge_shards(config, caches, info)
    # A byte-equal repetition needs it besides the run configuration.
    environment = {"machine": platform.machine(), "numpy": np.__version__}
    environment |= CODECS[info.logit_encoding].environment
    statistics = _in_common([manifest.statistics for manifest in inputs])
    manifest = dataclasses.replace(
        inputs[0],
        flags={**_in_common([manifest.flags for manifest in inputs]), **settings},
        splits=splits,
        statistics={**statistics, "environment": environment},
        teacher_info=info,
        token_counts=counts,
        output_table=None,
    )
    manifests.copy_tokenizer(source, manifest, config.output_dir)
    manifests.publish(config.output_dir, manifest)
    return manifest


def _merge_shards(
    config: MergeConfig, caches: Sequence[CacheInput], info: TeacherInfo
) -> dict[str, tuple[ShardInfo, ...]]:
    inputs, done = caches[0].manifest, {}
    for shard in inputs.shards:
        done[shard.file] = manifests.completed_shard(config.output_dir, shard.file)
    total = sum(shard.num_examples for shard in inputs.shards if done[shard.file] is None)
    with tqdm.tqdm(total=total, unit=" examples", desc="merge", smoothing=0.1) as bar:
        merger = merging.CacheMerger(
            caches=caches,
            weights=config.shares,
            codec=cache_input.make_codec(config.output_dir, info, inputs.vocab.size),
            on_examples=bar.update,
        )
        for file in [file for file, whole in done.items() if whole is None]:
            measured = collections.Counter() if manifests.varies_in_size(info) else None
            merged = merger.records(file, measured)
            sums = functools.partial(dict, measured=measured)
            done[file] = serialization.write_shard(config.output_dir, file, merged, sums)
    return {
        split: tuple(done[shard.file] for shard in shards)
        for split, shards in inputs.splits.items()
    }


def _in_common(mappings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the entries that all have: of flags, those of the masked examples at least."""
    first, *others = mappings
    return {
        name: value
        for name, value in first.items()
        if all(name in other and other[name] == value for other in others)
    }


def _merge(values: absl_flags.FlagValues) -> None:
    manifest = merge_caches(flags.read_config(values, MergeConfig))
    print("\n".join(summary.describe(manifest)))
    print(f"teacher cache: {values.output_dir}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(MergeConfig), _merge, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
