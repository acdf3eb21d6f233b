"""A hub-style id, ``organisation/name``, → a local folder with the configuration and weights of that repository.

The transfer and the cache are huggingface_hub's (extra ``hub``), shared with other programs that use it. Decided here
is which files are wanted: configurations, and one set of weights, safetensors first. Never code.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip.checkpoints.download import is_offline
from clip.checkpoints.verified import file_sha256
from clip.errors import CheckpointError, ChecksumError, ConfigError, DownloadError, MissingDependencyError

__all__ = ["choose_files", "fetch_repository", "is_repository_id"]

logger = logging.getLogger(__name__)

_PREFIX = "hf-hub:"
_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_CONFIGS = ("open_clip_config.json", "config.json", "preprocessor_config.json")
_WEIGHTS = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""In order of preference: safetensors cannot hold code, and one file is simpler than shards."""


def is_repository_id(name: str) -> bool:
    """Whether ``name`` can be a repository: ``hf-hub:…``, or ``organisation/name`` with or without ``@revision``.

    ``ViT-B/32`` has that form too: ask the registry and the file system first.
    """
    return name.startswith(_PREFIX) or _ID.fullmatch(name) is not None


def choose_files(names: Iterable[str]) -> list[str]:
    """The files to read, out of those that a repository has: its configurations and one set of weights.

    Weights whose own configuration is there come before those without. An index of shards brings its shards.
    Raises CheckpointError if there are no weights that we read.
    """
    present = set(names)
    configs = [name for name in _CONFIGS if name in present]
    weights = sorted((name for name in _WEIGHTS if name in present), key=lambda name: _config_of(name) not in present)
    if not weights:
        files = ", ".join(sorted(present)) or "nothing"
        raise CheckpointError(f"no weights that can be read: there is {files}, but none of {', '.join(_WEIGHTS)}")
    chosen = weights[0]
    shards = []
    if chosen.endswith(".index.json"):
        stem, suffix = chosen.removesuffix(".index.json").rsplit(".", 1)
        shard = re.compile(rf"{re.escape(stem)}-\d+-of-\d+\.{suffix}")
        shards = sorted(name for name in present if shard.fullmatch(name))
    return [*configs, chosen, *shards]


def _config_of(weights: str) -> str:
    return "open_clip_config.json" if weights.startswith("open_clip_") else "config.json"


def fetch_repository(repo_id: str, *, revision: str | None = None, cache: Path | None = None) -> Path:
    """Folder with the configuration and weights of a repository, downloaded unless the cache has them.

    repo_id: ``organisation/name``, also with the prefix ``hf-hub:`` and with ``@revision`` behind it.
    revision: branch, tag or commit; by default the repository's main branch. A commit never changes.
    cache: huggingface_hub's cache folder, by default its own (``HF_HUB_CACHE``).

    With ``EVERYCLIP_OFFLINE`` or ``HF_HUB_OFFLINE`` set, only the cache is read. When the hub cannot be reached, the
    cached files are used and a warning is logged. Weights are checked against the hub's SHA-256 when they arrive.
    Raises DownloadError for what is not there, not permitted or not reachable, ChecksumError for damaged weights,
    CheckpointError for a repository without weights, MissingDependencyError without huggingface_hub.
    """
    repository = _parse(repo_id, revision)
    cached = _cached_folder(repository, cache)
    if is_offline() or _hub().constants.HF_HUB_OFFLINE:
        if cached is None:
            raise DownloadError(
                f"{repository} is not in the local cache, and EVERYCLIP_OFFLINE or HF_HUB_OFFLINE forbids to download "
                "it; fetch it once with a network, or pass the path of a folder with its configuration and weights"
            )
        return cached
    return _download(repository, cache, cached)


@dataclass(frozen=True, slots=True)
class _Repository:
    id: str
    revision: str | None

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


def _parse(repo_id: str, revision: str | None) -> _Repository:
    hub = _hub()
    match = _ID.fullmatch(repo_id.removeprefix(_PREFIX))
    if match is None:
        raise ConfigError(f"{repo_id!r} is not the id of a repository; it must look like organisation/name")
    try:
        hub.utils.validate_repo_id(match["id"])
    except hub.errors.HFValidationError as error:
        raise ConfigError(f"{repo_id!r} is not the id of a repository: {error}") from error
    if revision is not None and match["revision"] not in (None, revision):
        raise ConfigError(f"{repo_id!r} names the revision {match['revision']!r}, the argument {revision!r}")
    revision = revision or match["revision"]
    if revision is not None and ".." in revision:  # git allows none either, and the cache would read it as a path
        raise ConfigError(f"{revision!r} is not a branch, tag or commit")
    return _Repository(match["id"], revision)


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise MissingDependencyError(
            "reading models from the hub needs huggingface_hub: pip install everyclip[hub]"
        ) from error
    return huggingface_hub


def _cached_folder(repository: _Repository, cache: Path | None) -> Path | None:
    """The folder of the revision as last seen, if all the files that would be chosen of it are in the cache."""
    hub = _hub()
    for name in (*_WEIGHTS, *_CONFIGS):
        path = hub.try_to_load_from_cache(repository.id, name, cache_dir=cache, revision=repository.revision)
        if isinstance(path, str) and _is_complete(Path(path).parent):
            return Path(path).parent
    return None


def _is_complete(folder: Path) -> bool:
    """Whether a folder of the cache, which an earlier download may have left half filled, has weights in full."""
    names = {path.name for path in folder.iterdir() if path.exists()}  # false for a link whose blob is gone
    try:
        chosen = choose_files(names)
    except CheckpointError:
        return False
    return all(_shards(folder / name) <= names for name in chosen if name.endswith(".index.json"))


def _shards(index: Path) -> set[str]:
    """The names of the shards that an index lists. Raises CheckpointError if it is not an index."""
    try:
        return set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of shards: it has no weight_map from keys to files") from error


def _download(repository: _Repository, cache: Path | None, cached: Path | None) -> Path:
    """Lists the repository, downloads what is chosen of it, checks the weights that are new."""
    hub = _hub()
    errors = hub.errors
    # Transport errors have the class of the HTTP library, which changed from version to version. Its base is found as
    # that of the hub's own error; the older one, and what happens to files, are OSErrors.
    transport_errors = (OSError, *errors.HfHubHTTPError.__bases__)
    try:
        info = hub.HfApi().model_info(repository.id, revision=repository.revision, timeout=15, files_metadata=True)
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{repository} is gated: accept its conditions at {hub.constants.ENDPOINT}/{repository.id}, then log in "
            "with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(
            f"{repository} is not on {hub.constants.ENDPOINT}, or is private; check the name, or log in with "
            "`hf auth login` or HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{repository.id} has no branch, tag or commit {repository.revision!r}") from error
    except transport_errors as error:
        if cached is not None:
            logger.warning("%s: the hub does not answer (%s); using the cache", repository, type(error).__name__)
            return cached
        raise _unreachable(repository, error) from error
    sha256s = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in info.siblings or ()}
    try:
        chosen = choose_files(sha256s)
    except CheckpointError as error:
        raise CheckpointError(f"{repository}: {error}") from error
    configs = [name for name in chosen if name in _CONFIGS]
    weights = [name for name in chosen if name not in _CONFIGS]
    new = [name for name in weights if not _has(repository.id, name, info.sha, cache)]
    try:
        # By commit, so that files of two commits never mix. Configurations first: where the cache has weights, it then
        # has what says how to read them.
        for names in filter(None, (configs, weights)):
            folder = Path(
                hub.snapshot_download(repository.id, revision=info.sha, cache_dir=cache, allow_patterns=names)
            )
        _check(folder, new, sha256s)
        if folder != cached:  # asked for by its name once, the branch is also found offline
            hub.snapshot_download(
                repository.id, revision=repository.revision, cache_dir=cache, allow_patterns=configs or weights
            )
    except transport_errors as error:
        raise _unreachable(repository, error) from error
    if not _is_complete(folder):
        raise DownloadError(f"{repository} lacks shards that its index names; ask its owner, or name another @revision")
    return folder


def _has(repo_id: str, name: str, commit: str | None, cache: Path | None) -> bool:
    return isinstance(_hub().try_to_load_from_cache(repo_id, name, cache_dir=cache, revision=commit), str)


def _unreachable(repository: _Repository, error: Exception) -> DownloadError:
    return DownloadError(
        f"{repository} could not be downloaded: {type(error).__name__}: {error}; check the network and proxy, set "
        "HF_ENDPOINT to a mirror, or pass the path of a folder with its configuration and weights"
    )


def _check(folder: Path, new: Collection[str], sha256s: dict[str, str | None]) -> None:
    """Hashes what just arrived: huggingface_hub itself compares sizes. Removes what is damaged."""
    for name in new:
        path = folder / name
        expected = sha256s[name]
        if expected is None or not path.exists():
            continue
        found = file_sha256(path)
        if found != expected:
            path.resolve().unlink()  # the blob, or it would be taken for good the next time
            path.unlink(missing_ok=True)
            raise ChecksumError(f"{name} has the SHA-256 {found}, expected {expected}; it was removed: call again")
