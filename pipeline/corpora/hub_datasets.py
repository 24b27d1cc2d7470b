"""Datasets of the Hugging Face hub as corpora, read through `huggingface_hub`'s file system.

`hf://datasets/ORG/NAME@REVISION/PATTERN` names files of a dataset. Without a pattern, or as
`ORG/NAME` with `hf_split`, the files of a split are read. The front matter of the dataset's
README.md assigns files to splits; without it, their names do. All files are read at the commit
that the revision has at the start, even if the dataset changes during the run.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from data_specs.corpora import CorpusSource
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import BucketLocation, Location

_SETTING = "input_dir"
_TRAIN = "train"
_DATASET = re.compile(
    r"(?:hf://datasets/)?([\w.\-]+/[\w.\-]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(.*))?"
)
_README = "README.md"
_MAX_README_BYTES = 2**22
_FRONT_MATTER = re.compile(r"---\r?\n(.*?)\n---", re.DOTALL)
_DEFAULT = "default"
# Words in file names that identify a split.
_SPLIT_WORDS: Mapping[str, tuple[str, ...]] = {
    _TRAIN: (_TRAIN, "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_TIMEOUT_SECONDS = 10.0


def locate(source: CorpusSource, is_data: Callable[[str], bool]) -> Location:
    """Returns the location of a source's files. A dataset of the hub is pinned to a commit.

    Args:
        source: the source.
        is_data: a function that returns whether a file with a given name contains documents.

    Raises:
        InputError: the name is malformed, or the dataset, the revision or the split is missing.
    """
    if not source.is_hub:
        return Location.parse(source.input_dir, _SETTING)
    match = _DATASET.fullmatch(source.input_dir)
    if match is None or ".." in source.input_dir:
        raise InputError(Setting(_SETTING), "hf://datasets/ORG/NAME@REVISION", source.input_dir)
    name, revision, pattern = match.groups()
    key = pathlib.PurePosixPath(f"datasets/{name}@{_find_commit(name, revision)}")
    root = BucketLocation("hf", key, _SETTING)
    if not pattern:
        return _Split.of(root, source.hf_split or _TRAIN, is_data)
    if source.hf_split is not None:
        expected = "unset if `input_dir` names the files of a dataset"
        raise InputError(Setting("hf_split"), expected, source.hf_split)
    return root / pattern


def _find_commit(name: str, revision: str | None) -> str:
    """Returns the current commit of a dataset's revision."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/datasets/{name}"
    api = huggingface_hub.HfApi()
    try:
        info = api.dataset_info(name, revision=revision, timeout=_TIMEOUT_SECONDS)
        # A gated dataset's list of files is public, but the files are not.
        api.auth_check(name, repo_type="dataset")
    except errors.GatedRepoError as error:
        hint = f"accept the terms at {page}, then set HF_TOKEN or run: hf auth login"
        raise InputError(name, "access to this gated dataset", "none", hint) from error
    except errors.RepositoryNotFoundError as error:
        hint = "check the spelling; for a private dataset set HF_TOKEN or run: hf auth login"
        raise InputError(name, f"a dataset of {constants.ENDPOINT}", "none", hint) from error
    except errors.RevisionNotFoundError as error:
        expected = f"a branch, tag or commit of the dataset {name}"
        raise InputError(Setting(_SETTING), expected, revision, f"see {page}/tree/main") from error
    except errors.HFValidationError as error:
        raise InputError(Setting(_SETTING), "the id of a dataset, ORG/NAME", name) from error
    # Network errors and HF_HUB_OFFLINE raise many kinds of exceptions.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        hint = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        raise InputError(name, f"a response from {constants.ENDPOINT}", reason, hint) from error
    return str(info.sha)


@dataclasses.dataclass(frozen=True, order=True)
class _Split(BucketLocation):
    """A location of a dataset at which `find` returns only the files of a split."""

    sizes: Mapping[BucketLocation, int] = dataclasses.field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, root: BucketLocation, split: str, is_data: Callable[[str], bool]) -> "_Split":
        """Returns a split of the dataset at a location.

        Raises:
            InputError: the dataset has no such split, or several configurations.
        """
        sizes = {str(path.relative_to(root)): (path, size) for path, size in root.find().items()}
        names = sorted(sizes)
        config = _read_config(root / _README) if _README in sizes else {}
        splits = _by_patterns(config, names) or _by_names(
            [name for name in names if is_data(name) and _is_below(name, config.get("data_dir"))]
        )
        if not splits.get(split):
            known = ", ".join(name for name, files in sorted(splits.items()) if files) or "none"
            raise InputError(Setting("hf_split"), f"one of the splits of {root} ({known})", split)
        files = dict(sizes[name] for name in splits[split])
        return cls(root.scheme, root.key, root.setting, files)

    def is_dir(self) -> bool:
        """Returns True: a split is a folder of files."""
        return True

    def find(self) -> dict[BucketLocation, int]:
        """Returns the sizes of the split's files."""
        return dict(self.sizes)


def _read_config(readme: BucketLocation) -> Mapping[str, Any]:
    """Returns the default configuration that a dataset's README.md declares.

    A single configuration is the default. Without one, the result is empty.

    Raises:
        InputError: it declares several configurations and no default.
    """
    match = _FRONT_MATTER.match(readme.read_limited(_MAX_README_BYTES).decode("utf-8", "replace"))
    try:
        content = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError as error:
        raise InputError(readme, received=f"its front matter is not YAML ({error})") from error
    entries = content.get("configs") if isinstance(content, dict) else None
    configs = [entry for entry in entries or () if isinstance(entry, dict)] if entries else []
    if len(configs) <= 1:
        return configs[0] if configs else {}
    for config in configs:
        if config.get("default") is True or config.get("config_name") == _DEFAULT:
            return config
    names = ", ".join(str(config.get("config_name")) for config in configs)
    expected = f"the files of one of its configurations ({names})"
    hint = f"set `{_SETTING}` to the files of one configuration: {readme.parent}/PATTERN"
    raise InputError(Setting(_SETTING), expected, "a dataset with several configurations", hint)


def _by_patterns(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[str]]:
    """Returns the files that a configuration's `data_files` assign to each split.

    Without `data_files`, the result is empty.
    """
    from fsspec.utils import glob_translate

    splits: dict[str, list[str]] = {}
    for split, pattern in _data_files(config.get("data_files")):
        matches = re.compile(glob_translate(pattern.removeprefix("./"))).match
        splits.setdefault(split, []).extend(filter(matches, names))
    return splits


def _data_files(value: object) -> Iterator[tuple[str, str]]:
    """Yields the pairs of split and pattern in `data_files`.

    Args:
        value: a pattern, a list of patterns, or a list of objects with a split and its patterns.
    """
    for item in value if isinstance(value, list) else [value]:
        split, paths = _TRAIN, item
        if isinstance(item, dict):
            split, paths = str(item.get("split", _TRAIN)), item.get("path")
        for path in paths if isinstance(paths, list) else [paths]:
            if isinstance(path, str):
                yield split, path


def _is_below(name: str, folder: object) -> bool:
    return not isinstance(folder, str) or name.startswith(f"{folder.strip('./')}/")


def _by_names(names: Sequence[str]) -> dict[str, list[str]]:
    """Returns the files of each split, assigned by the words in their names.

    If no name has such a word, all files belong to `train`.

    Example:
        `data/train-00000-of-00001.parquet` and `en/train/a.jsonl` belong to `train`.
    """
    splits: dict[str, list[str]] = {}
    for split, words in _SPLIT_WORDS.items():
        pattern = re.compile(rf"(?:^|[/._\- ])(?:{'|'.join(words)})(?:[/._\- \d]|$)")
        splits[split] = [name for name in names if pattern.search(name)]
    return splits if any(splits.values()) else {_TRAIN: list(names)}
