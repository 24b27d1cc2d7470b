"""The hub's client: files of a model through `huggingface_hub`, with errors in one line.

The package's own settings hold: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE. Its cache is
shared with other programs. The package is imported when a first model is looked up.
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
# Seconds for a first answer.
_ANSWER = 10.0
_TAG = re.compile(r"[\w\-]+", re.ASCII)
# The tag of content whose checksum is known beforehand.
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Packages whose errors say that the network does not carry an answer.
_NETWORK_PACKAGES = frozenset(("httpcore", "httpx", "httpx2", "requests", "ssl", "urllib3"))
_LOG_IN = "set HF_TOKEN or run: hf auth login"


class UnreachableHubError(InputError):
    """The hub does not answer, or must not be asked."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The files of a model at one commit, downloaded one by one as they are asked for.

    Attributes:
        model: as the user named it.
        commit: its hash.
        names: names of files, with folders; of a hub that is not reached, of those in its cache.
        folder: where they lie in the hub's cache.
        failure: why the hub is not reached; None where it is.
    """

    model: HubModel
    commit: str
    names: frozenset[str]
    folder: LocalLocation
    failure: UnreachableHubError | None = None

    def fetch(self, name: str) -> LocalLocation:
        """Returns a file, which is downloaded unless it is in the cache.

        Raises:
            InputError: the hub refuses it or does not answer.
            OSError: it cannot be written.
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
        """Downloads a large file's content, from where a killed or broken download ended.

        `huggingface_hub` begins anew in each process, with a temporary file of its own. The one
        that a killed process has left is completed here. The lock is that of the package. Where
        the file system has no locks, two processes write the same bytes to the same places.
        """
        from huggingface_hub import file_download, utils

        url = file_download.hf_hub_url(self.model.id, name, revision=self.commit)
        headers = utils.build_hf_headers()
        about = file_download.get_hf_file_metadata(url, headers=headers, timeout=_ANSWER)
        # It becomes a file's name.
        if not _TAG.fullmatch(about.etag or ""):
            raise ValueError(f"the ETag {about.etag!r}")
        # Of small files the hub tells no SHA-256.
        if not about.size or not _SHA256.fullmatch(about.etag):
            return
        blobs = (self.folder.parents[1] / "blobs").make_directory()
        locks = (cache_folder() / ".locks" / self.folder.parts[-3]).make_directory()
        with utils.WeakFileLock(locks / f"{about.etag}.lock"):
            partial = _largest(blobs.glob(f"{about.etag}*.incomplete"))
            if (blobs / about.etag).exists() or (partial is None and about.xet_file_data):
                # Parts of a file in Xet's store come together, faster.
                return
            partial = partial or blobs / f"{about.etag}.incomplete"
            with partial.open("r+b" if partial.exists() else "wb") as file:
                file.truncate(min(file.seek(0, os.SEEK_END), about.size))
                file_download.http_get(
                    url,
                    file,
                    resume_size=file.seek(0, os.SEEK_END),
                    headers=headers,
                    expected_size=about.size,
                    displayed_filename=name,
                )
            if partial.sha256() == about.etag:
                os.replace(partial, blobs / about.etag)
            else:
                # Not the beginning of this file: the package downloads it.
                partial.unlink()

    def remember(self) -> None:
        """Notes which commit the revision is, for when the hub cannot be asked."""
        revision = self.model.revision or _DEFAULT_REVISION
        if self.failure is None and not hub_id.is_commit(revision):
            path = _reference(self.model, revision)
            path.parent.make_directory()
            path.write_whole(self.commit.encode("ascii"))


def open_snapshot(model: HubModel) -> Snapshot:
    """Finds the commit and the files of a model; asks the cache where the hub is not reached.

    Raises:
        InputError: there is no such model or revision, or neither hub nor cache has it.
    """
    try:
        with _explaining(model):
            commit, names = _list_files(model)
    except UnreachableHubError as error:
        return _cached_snapshot(model, error)
    return Snapshot(model, commit, names, _folder(model, commit))


def _list_files(model: HubModel) -> tuple[str, frozenset[str]]:
    """Returns the commit that a model's revision is now, and the names of its files."""
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        info = api.model_info(model.id, revision=model.revision, timeout=_ANSWER)
        commit, names = str(info.sha), frozenset(str(file.rfilename) for file in info.siblings)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"a list of files is malformed: {error}") from error
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
        raise failure
    paths = (path.relative_to(folder) for path in folder.find())
    return Snapshot(model, revision, frozenset(map(str, paths)), folder, failure)


@functools.cache
def cache_folder() -> LocalLocation:
    """Returns the folder of the hub's cache, which need not exist."""
    from huggingface_hub import constants

    return LocalLocation(constants.HF_HUB_CACHE).absolute()


def _folder(model: HubModel, commit: str) -> LocalLocation:
    return hub_id.snapshot_folder(cache_folder(), model, commit)


def _reference(model: HubModel, revision: str) -> LocalLocation:
    """Returns the file that holds the commit of a branch or tag."""
    return _folder(model, "").parent / "refs" / revision


def _largest(paths: Iterable[LocalLocation]) -> LocalLocation | None:
    return max(paths, key=lambda path: path.stat().st_size, default=None)


@contextlib.contextmanager
def _explaining(model: HubModel) -> Iterator[None]:
    """Turns what `huggingface_hub` raises in the block into an error that says what to do."""
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
        expected = f"its files in the cache {cache_folder()}, as HF_HUB_OFFLINE is set"
        hint = "unset HF_HUB_OFFLINE, or name a directory that holds the model"
        raise UnreachableHubError(model, expected, "not all of them", hint) from error
    except errors.HfHubHTTPError as error:
        raise _refusal(model, hub, error.response.status_code) from error
    except InputError:
        raise
    except (ValueError, errors.FileMetadataError) as error:
        expected, hint = f"answers of a hub from {constants.ENDPOINT}", "check HF_ENDPOINT"
        raise InputError(model, expected, _one_line(error), hint) from error
    except Exception as error:
        if not _is_of_network(error):
            _name_cache(error)
            raise
        expected = f"an answer of {hub}"
        hint = "check the network, the proxy and HF_ENDPOINT, then re-run the command to resume"
        raise UnreachableHubError(
            model, expected, _one_line(error.__cause__ or error), hint
        ) from error


def _refusal(model: HubModel, hub: str, status: int) -> InputError:
    """Returns the error for an answer of HTTP that is none of the hub's own kinds."""
    wanted = {
        http.HTTPStatus.UNAUTHORIZED: "a token for",
        http.HTTPStatus.FORBIDDEN: "permission of",
    }
    received = f"HTTP status {status}"
    if status in wanted:
        return InputError(model, f"{wanted[status]} {hub}", received, _LOG_IN)
    hint = "try again later, or check HF_ENDPOINT"
    return UnreachableHubError(model, f"an answer of {hub}", received, hint)


def _is_of_network(error: Exception) -> bool:
    package = type(error).__module__.partition(".")[0]
    is_plain = isinstance(error, OSError) and error.errno is None
    is_connection = isinstance(error, ConnectionError | TimeoutError)
    return package in _NETWORK_PACKAGES or is_plain or is_connection


def _name_cache(error: Exception) -> None:
    """Says where a disk is full, or where nothing may be written."""
    if isinstance(error, OSError) and error.filename is None:
        error.filename = str(cache_folder())


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
