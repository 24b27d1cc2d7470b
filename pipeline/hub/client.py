"""Client of the hub: downloads a model's files with `huggingface_hub`, with one-line errors.

The package's environment variables apply: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE. Other
programs share its cache. The package is imported when the first model is looked up.
"""

import contextlib
import dataclasses
import functools
import http
import os
import re
from collections.abc import Iterable, Iterator

from pipeline.base import hub_id
from pipeline.base.errors import InputError
from pipeline.base.hub_id import HubModel
from pipeline.base.location import LocalLocation

_DEFAULT_REVISION = "main"
_TIMEOUT_SECONDS = 10.0
_ETAG = re.compile(r"[\w\-]+", re.ASCII)
# An ETag that is the checksum of the content.
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Packages whose errors mean that the network failed.
_NETWORK_PACKAGES = frozenset(("httpcore", "httpx", "httpx2", "requests", "ssl", "urllib3"))
_LOG_IN = "set HF_TOKEN or run: hf auth login"


class UnreachableHubError(InputError):
    """The hub does not answer, or HF_HUB_OFFLINE is set."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The files of a model at a commit. Each is downloaded when it is first requested.

    Attributes:
        model: the model as the user named it.
        commit: hash of the commit.
        names: relative paths of the files. If the hub is unreachable, only those in the cache.
        folder: folder of the files in the hub's cache.
        failure: the reason why the hub is unreachable; None if it is reachable.
    """

    model: HubModel
    commit: str
    names: frozenset[str]
    folder: LocalLocation
    failure: UnreachableHubError | None = None

    def fetch(self, name: str) -> LocalLocation:
        """Returns a file, and downloads it unless it is in the cache.

        Raises:
            InputError: the hub refuses the file or does not answer.
            OSError: the file cannot be written.
        """
        path = self.folder / name
        # The files of a commit never change.
        if not path.is_file():
            import huggingface_hub

            with _explaining(self.model):
                self._download_content(name)
                huggingface_hub.hf_hub_download(self.model.id, name, revision=self.commit)
        return path

    def _download_content(self, name: str) -> None:
        """Downloads a large file's content, and resumes an interrupted download.

        `huggingface_hub` itself starts each download from the beginning, with a new temporary
        file. This method completes the temporary file that a killed process left. It holds the
        package's lock. On a file system without locks, two processes write the same bytes to the
        same offsets.
        """
        from huggingface_hub import file_download, utils

        url = file_download.hf_hub_url(self.model.id, name, revision=self.commit)
        headers = utils.build_hf_headers()
        metadata = file_download.get_hf_file_metadata(
            url, headers=headers, timeout=_TIMEOUT_SECONDS
        )
        # The ETag becomes the name of a file.
        if not _ETAG.fullmatch(metadata.etag or ""):
            raise ValueError(f"the ETag {metadata.etag!r}")
        # The ETag of a small file is not a SHA-256, so its content could not be checked here.
        if not metadata.size or not _SHA256.fullmatch(metadata.etag):
            return
        blobs = (self.folder.parents[1] / "blobs").make_directory()
        locks = (cache_folder() / ".locks" / self.folder.parts[-3]).make_directory()
        with utils.WeakFileLock(locks / f"{metadata.etag}.lock"):
            partial = _largest(blobs.glob(f"{metadata.etag}*.incomplete"))
            if (blobs / metadata.etag).exists() or (partial is None and metadata.xet_file_data):
                # The package downloads a file in Xet's store faster, in parallel.
                return
            partial = partial or blobs / f"{metadata.etag}.incomplete"
            with partial.open("r+b" if partial.exists() else "wb") as file:
                file.truncate(min(file.seek(0, os.SEEK_END), metadata.size))
                file_download.http_get(
                    url,
                    file,
                    resume_size=file.seek(0, os.SEEK_END),
                    headers=headers,
                    expected_size=metadata.size,
                    displayed_filename=name,
                )
            if partial.sha256() == metadata.etag:
                os.replace(partial, blobs / metadata.etag)
            else:
                # The partial file was not the beginning of this file. The package downloads it.
                partial.unlink()

    def remember(self) -> None:
        """Records the commit of the revision, for runs without access to the hub."""
        revision = self.model.revision or _DEFAULT_REVISION
        if self.failure is None and not hub_id.is_commit(revision):
            path = _reference(self.model, revision)
            path.parent.make_directory()
            path.write_whole(self.commit.encode("ascii"))


def open_snapshot(model: HubModel) -> Snapshot:
    """Finds the commit and the files of a model, in the cache if the hub is unreachable.

    Raises:
        InputError: the model or revision does not exist, or the hub is unreachable and the model
            is not cached.
    """
    try:
        with _explaining(model):
            commit, names = _list_files(model)
    except UnreachableHubError as error:
        return _cached_snapshot(model, error)
    return Snapshot(model, commit, names, _folder(model, commit))


def _list_files(model: HubModel) -> tuple[str, frozenset[str]]:
    """Returns the current commit of a model's revision, and the names of its files."""
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        info = api.model_info(model.id, revision=model.revision, timeout=_TIMEOUT_SECONDS)
        commit, names = str(info.sha), frozenset(str(file.rfilename) for file in info.siblings)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"the list of files is malformed: {error}") from error
    if not hub_id.is_commit(commit):
        raise ValueError(f"the commit {commit!r}")
    return commit, names


def _cached_snapshot(model: HubModel, failure: UnreachableHubError) -> Snapshot:
    revision = model.revision or _DEFAULT_REVISION
    reference = _reference(model, revision)
    if not hub_id.is_commit(revision) and reference.is_file():
        revision = reference.read_text(encoding="utf-8").strip()
    folder = _folder(model, revision)
    if not hub_id.is_commit(revision) or not folder.is_dir():
        if not os.path.exists(model.id):
            # The text may be a misspelled path.
            failure.expected = f"a directory on this machine, or {failure.expected}"
            failure.received = f"no such directory; the hub: {failure.received}"
        raise failure
    paths = (path.relative_to(folder) for path in folder.find())
    return Snapshot(model, revision, frozenset(map(str, paths)), folder, failure)


@functools.cache
def cache_folder() -> LocalLocation:
    """Returns the folder of the hub's cache, which may not exist yet."""
    from huggingface_hub import constants

    return LocalLocation(constants.HF_HUB_CACHE).absolute()


def _folder(model: HubModel, commit: str) -> LocalLocation:
    return hub_id.snapshot_folder(cache_folder(), model, commit)


def _reference(model: HubModel, revision: str) -> LocalLocation:
    """Returns the file that records the commit of a branch or tag."""
    return _folder(model, "").parent / "refs" / revision


def _largest(paths: Iterable[LocalLocation]) -> LocalLocation | None:
    return max(paths, key=lambda path: path.stat().st_size, default=None)


@contextlib.contextmanager
def _explaining(model: HubModel) -> Iterator[None]:
    """Converts exceptions of `huggingface_hub` to errors with a hint for the user."""
    from huggingface_hub import constants, errors

    hub, page = f"the hub {constants.ENDPOINT}", f"{constants.ENDPOINT}/{model.id}"
    try:
        yield
    except errors.GatedRepoError as error:
        hint = f"accept the terms at {page}, then {_LOG_IN}"
        raise InputError(model, "access to this gated model", "none", hint) from error
    except errors.RepositoryNotFoundError as error:
        expected = f"a path on this machine or a model of {hub}"
        hint = f"check the spelling; for a private model {_LOG_IN}"
        raise InputError(model, expected, "neither", hint) from error
    except errors.RevisionNotFoundError as error:
        expected, hint = f"a branch, tag or commit of {model.id}", f"see {page}/tree/main"
        raise InputError(model, expected, model.revision, hint) from error
    except errors.OfflineModeIsEnabled as error:
        expected = (
            f"every file of the model in the cache {cache_folder()}, because HF_HUB_OFFLINE is set"
        )
        hint = "unset HF_HUB_OFFLINE, or name a directory that contains the model"
        raise UnreachableHubError(model, expected, "missing files", hint) from error
    except errors.HfHubHTTPError as error:
        raise _refusal(model, hub, error.response.status_code) from error
    except InputError:
        raise
    except (ValueError, errors.FileMetadataError) as error:
        expected, hint = f"a valid response from {hub}", "check HF_ENDPOINT"
        raise InputError(model, expected, _one_line(error), hint) from error
    except Exception as error:
        if not _is_network_error(error):
            _name_cache(error)
            raise
        expected = f"a response from {hub}"
        hint = "check the network, the proxy and HF_ENDPOINT, then re-run the command to resume"
        raise UnreachableHubError(
            model, expected, _one_line(error.__cause__ or error), hint
        ) from error


def _refusal(model: HubModel, hub: str, status: int) -> InputError:
    """Returns the error for an HTTP status that `huggingface_hub` has no exception for."""
    required = {
        http.HTTPStatus.UNAUTHORIZED: "a token for",
        http.HTTPStatus.FORBIDDEN: "permission from",
    }
    received = f"HTTP status {status}"
    if status in required:
        return InputError(model, f"{required[status]} {hub}", received, _LOG_IN)
    hint = "try again later, or check HF_ENDPOINT"
    return UnreachableHubError(model, f"a response from {hub}", received, hint)


def _is_network_error(error: Exception) -> bool:
    package = type(error).__module__.partition(".")[0]
    is_plain = isinstance(error, OSError) and error.errno is None
    is_connection = isinstance(error, ConnectionError | TimeoutError)
    return package in _NETWORK_PACKAGES or is_plain or is_connection


def _name_cache(error: Exception) -> None:
    """Adds the cache's folder to an error without a file name, for example of a full disk."""
    if isinstance(error, OSError) and error.filename is None:
        error.filename = str(cache_folder())


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
