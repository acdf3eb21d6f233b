"""An address and a SHA-256 → a verified local file.

``fetch`` is the one entry. A file appears under its final name only when it is whole, verified and on disk. On the way
there it survives cut connections, killed processes, several processes at once, and servers that ignore ranges or lie.

All bookkeeping lies in ``.everyclip`` beside the files, on the same file system so that the last step is one rename:

    ViT-B-32.pt                       the file, only ever whole
    .everyclip/ViT-B-32.pt.lock       held by the process that downloads; the system frees it when that process dies
    .everyclip/ViT-B-32.pt.part       the bytes so far
    .everyclip/ViT-B-32.pt.part.json  what they are bytes of: address, expected hash, ETag
    .everyclip/ViT-B-32.pt.verified   hash, size and times of the file when it was last hashed

Needs requests and filelock, and imports them only when something has to be downloaded.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

from clip.checkpoints.verified import RECORDS, file_sha256, is_verified, read_note, record_path, remember, write_note
from clip.errors import ChecksumError, ConfigError, DownloadError

if TYPE_CHECKING:
    import requests

__all__ = [
    "MAX_BYTES",
    "Progress",
    "RetryPolicy",
    "default_directory",
    "fetch",
    "is_offline",
    "mirrored",
]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Called with the bytes done so far and the total, or None while the server does not tell it."""

MAX_BYTES = 64 * 2**30
"""Larger than any published CLIP checkpoint; what bounds a body without an end."""

_CHUNK_BYTES = 64 * 2**10
_STALE_SECONDS = 14 * 24 * 3600
_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How long a download waits, and how often it tries again."""

    connect_seconds: float = 15.0
    """Longest wait for a connection."""
    stall_seconds: float = 30.0
    """Longest silence of a server in the middle of an answer."""
    attempts: int = 6
    """Failures in a row after which it gives up; one that brought ``useful_bytes`` starts the count again."""
    useful_bytes: int = 2**20
    """Bytes that an attempt must add to count as progress. With the size limit, this bounds the attempts in all."""
    backoff_seconds: float = 1.0
    """Wait after the first failure; doubled after each further one."""
    max_wait_seconds: float = 60.0
    """Longest wait between attempts, whatever the server asks for in ``Retry-After``."""

    def __post_init__(self) -> None:
        for name in ("connect_seconds", "stall_seconds", "attempts", "useful_bytes"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive")
        for name in ("backoff_seconds", "max_wait_seconds"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative")


_DEFAULT_POLICY = RetryPolicy()


# --- Places and switches ----------------------------------------------------------------------------------------------


def default_directory() -> Path:
    """``.cache/clip`` in the user's home, as in OpenAI's package, whose files are found there."""
    return Path.home() / ".cache" / "clip"


def is_offline() -> bool:
    """Whether ``EVERYCLIP_OFFLINE`` forbids every request. Raises ConfigError if it says neither yes nor no."""
    value = os.environ.get("EVERYCLIP_OFFLINE", "").strip().lower()
    if value in ("", "0", "false", "no", "off"):
        return False
    if value in ("1", "true", "yes", "on"):
        return True
    raise ConfigError(f"EVERYCLIP_OFFLINE is {value!r}; use 1 (no request at all) or 0")


def mirrored(url: str) -> str:
    """``url`` with its scheme and host replaced by ``EVERYCLIP_MIRROR``, or as it is when that is not set.

    With ``https://mirror.example/weights``, ``https://host/clip/models/HASH/RN50.pt`` becomes
    ``https://mirror.example/weights/clip/models/HASH/RN50.pt``.
    """
    mirror = os.environ.get("EVERYCLIP_MIRROR", "").strip().rstrip("/")
    if not mirror:
        return url
    _split(mirror, "EVERYCLIP_MIRROR")
    parts = urlsplit(url)
    return mirror + urlunsplit(("", "", parts.path, parts.query, ""))


def _split(url: str, whose: str) -> SplitResult:
    """The parts of a web address. Raises ConfigError if it is none."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:  # reading the port checks it
            return parts
    raise ConfigError(f"{whose} {_shown(url)!r} is not a web address; it must be of the form https://HOST/PATH")


def _shown(url: str) -> str:
    """The address for messages and notes: without credentials and query, either of which may be secret."""
    return re.sub(r"(?<=//)[^/]*@", "", re.split(r"[?#]", url, maxsplit=1)[0])


def _filename(url: str, filename: str | None) -> str:
    parts = _split(url, "the address")
    name = unquote(parts.path).rsplit("/", 1)[-1] if filename is None else filename
    if name in ("", ".", "..", RECORDS) or re.search(r"[/\\\x00-\x1f]", name):
        raise ConfigError(f"{name!r} cannot be the name of a downloaded file; pass filename=")
    return name


# --- Fetch ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """What to bring where, and under which limits."""

    source: str
    """The address asked, mirror applied."""
    target: Path
    expected: str | None
    """SHA-256, if known."""
    max_bytes: int
    policy: RetryPolicy
    progress: Progress

    @property
    def by_hand(self) -> str:
        """The remedy that always works, for messages."""
        return f"put the file at {self.target} by hand" + (f" (SHA-256 {self.expected})" if self.expected else "")


def fetch(
    url: str,
    *,
    sha256: str | None,
    directory: str | os.PathLike[str],
    filename: str | None = None,
    progress: Progress | None = None,
    max_bytes: int = MAX_BYTES,
    policy: RetryPolicy = _DEFAULT_POLICY,
) -> Path:
    """Path of the file that lies at ``url``, downloaded into ``directory`` unless it is there already.

    sha256: what the file must have; with None, a file under that name is taken as it is.
    filename: name in ``directory``; by default the last path element of the address.
    Raises DownloadError if it cannot be had, is larger than ``max_bytes`` or does not fit on the disk; ChecksumError if
    the server's file, or offline the local one, is another; ConfigError for an address, hash or name that cannot be.
    """
    name = _filename(url, filename)
    expected = None if sha256 is None else sha256.lower()
    if expected is not None and not re.fullmatch(r"[0-9a-f]{64}", expected):
        raise ConfigError(f"{sha256!r} is not a SHA-256; it must be 64 hexadecimal digits")
    job = _Job(
        source=mirrored(url),
        target=Path(directory).expanduser() / name,
        expected=expected,
        max_bytes=max_bytes,
        policy=policy,
        progress=progress or (lambda done, total: None),
    )
    try:
        if not _is_here(job):
            if is_offline():
                raise _offline_error(job)
            _download(job)
    except OSError as error:
        raise DownloadError(f"cannot read or write {job.target}: {error}; choose another folder") from error
    return job.target


def _is_here(job: _Job) -> bool:
    if not job.target.exists():
        return False
    if not job.target.is_file():
        raise DownloadError(f"{job.target} exists and is not a regular file; move it away, or choose another folder")
    return job.expected is None or is_verified(job.target, job.expected)


def _offline_error(job: _Job) -> ChecksumError | DownloadError:
    if job.target.exists():
        return ChecksumError(
            f"{job.target} has the SHA-256 {file_sha256(job.target)}, expected {job.expected}, and EVERYCLIP_OFFLINE "
            f"forbids to download it again; replace it by the file from {_shown(job.source)}"
        )
    return DownloadError(f"EVERYCLIP_OFFLINE forbids to download {_shown(job.source)}; {job.by_hand}")


def _download(job: _Job) -> None:
    """Downloads under the lock, verifies, and gives the file its name."""
    lock = record_path(job.target, "lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with _locked(lock):
        if _is_here(job):  # another process was faster
            return
        if job.target.exists():
            logger.warning("%s does not have the SHA-256 %s; it is downloaded again", job.target, job.expected)
        _remove_stale(job.target)
        with _Partial(job) as partial:
            _complete(partial, job)
        partial.move()
        if job.expected is not None:
            remember(job.target, job.expected)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock file; waits as long as another live process does."""
    import filelock

    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        logger.info("another process downloads %s; waiting for it", path.stem)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_stale(target: Path) -> None:
    """Removes partial files beside that of ``target`` that nobody continued for two weeks."""
    import filelock

    own = record_path(target, "part")
    for part in own.parent.glob("*.part"):
        with contextlib.suppress(OSError, filelock.Timeout):
            if part != own and time.time() - part.stat().st_mtime > _STALE_SECONDS:
                with filelock.FileLock(part.with_suffix(".lock"), timeout=0):
                    part.unlink()
                    part.with_name(part.name + ".json").unlink(missing_ok=True)
                    logger.info("removed %s, which nobody continued for two weeks", part)


# --- The partial file -------------------------------------------------------------------------------------------------


class _Partial:
    """The bytes so far, their running hash, and what tells whether the server's file is still the same one.

    Used by the holder of the lock only. The hash of bytes that an earlier process left is computed once, on entering.
    """

    def __init__(self, job: _Job) -> None:
        self._target = job.target
        self.path = record_path(job.target, "part")
        self._note_path = record_path(job.target, "part.json")
        self._url = _shown(job.source)
        self._expected = job.expected
        self._hash = hashlib.sha256()
        self.etag: str | None = None
        """Of the answer that the bytes came from, if it was a strong one."""
        self.size = 0
        self.is_spliced = False
        """Whether it may hold bytes of more than one answer."""

    def __enter__(self) -> Self:
        note = read_note(self._note_path)
        is_same_url = note.get("url") == self._url
        self._file = self.path.open("a+b")
        if note.get("sha256") == self._expected and (self._expected is not None or is_same_url):
            self.etag = note.get("etag") if is_same_url else None  # another server's ETag says nothing
            self._file.seek(0)
            while chunk := self._file.read(2**20):
                self._hash.update(chunk)
                self.size += len(chunk)
            self.is_spliced = self.size > 0
        else:
            self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def can_resume(self) -> bool:
        """Without a strong ETag, only the hash can tell whether two halves belong together."""
        return self.size > 0 and (self._expected is not None or self.etag is not None)

    def digest(self) -> str:
        return self._hash.hexdigest()

    def restart(self, etag: str | None = None) -> None:
        """Drops all bytes; those to come belong to the file with this ETag."""
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self.size = 0
        self.is_spliced = False
        # A weak ETag promises the same meaning, not the same bytes (RFC 9110, section 8.8.1).
        self.etag = None if etag is None or etag.startswith("W/") else etag
        write_note(self._note_path, {"url": self._url, "sha256": self._expected, "etag": self.etag})

    def append(self, chunk: bytes) -> None:
        try:
            self._file.write(chunk)
            self._file.flush()  # what a killed process received is there for the next one
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            raise DownloadError(
                f"no space for {self._target.name} after {self.size} bytes ({error.strerror}); free some on the "
                f"disk of {self._target.parent} and call again to continue, or remove {self.path}"
            ) from error
        self._hash.update(chunk)
        self.size += len(chunk)

    def flush_to_disk(self) -> None:
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)
        self._note_path.unlink(missing_ok=True)

    def move(self) -> None:
        """Gives the file its final name, in one step."""
        self.path.replace(self._target)
        self._note_path.unlink(missing_ok=True)
        if os.name == "posix":  # the new name must survive a power cut too; Windows cannot open a folder
            folder = os.open(self._target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


# --- Over the network -------------------------------------------------------------------------------------------------


class _TransientError(Exception):
    """An attempt failed in a way that the next one may not; ``wait_seconds`` is what the server asked for."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


def _complete(partial: _Partial, job: _Job) -> None:
    """Brings the partial file to its whole, verified content."""
    may_restart = True
    while partial.digest() != job.expected:
        _receive_rest(partial, job)
        found = partial.digest()
        if job.expected in (None, found):
            break
        if not (partial.is_spliced and may_restart):
            partial.remove()
            raise ChecksumError(
                f"{_shown(job.source)} has the SHA-256 {found}, expected {job.expected}: the server, or a proxy "
                f"between, sends another file, which was discarded. Use another server with EVERYCLIP_MIRROR, or "
                f"{job.by_hand}"
            )
        # The server may be right, and the two halves of different files: once more, in one piece.
        logger.warning("%s: wrong SHA-256 after resuming; starting again from the beginning", _shown(job.source))
        partial.restart()
        may_restart = False
    partial.flush_to_disk()


def _receive_rest(partial: _Partial, job: _Job) -> None:
    """Receives what is missing, over as many connections as the policy allows."""
    import requests

    policy = job.policy
    failures = 0
    best = partial.size
    with requests.Session() as session:
        session.max_redirects = 10
        session.headers["User-Agent"] = "everyclip"
        session.headers["Accept-Encoding"] = "identity"  # a range counts the bytes of the file, not of its compression
        while True:
            try:
                _receive(session, partial, job)
                return
            except _TransientError as error:
                if partial.size >= best + policy.useful_bytes:
                    best = partial.size
                    failures = 0
                failures += 1
                if failures >= policy.attempts:
                    kept = f" {partial.size} bytes are kept: call again to continue." if partial.size else ""
                    raise DownloadError(
                        f"{_shown(job.source)}: {error}; gave up after {failures} failures in a row.{kept} Check the "
                        f"network, use another server with EVERYCLIP_MIRROR, or {job.by_hand}"
                    ) from error
                wait = error.wait_seconds
                if wait is None:  # spread, so that the nodes of a cluster do not all come back at once
                    wait = policy.backoff_seconds * 2 ** (failures - 1) * random.uniform(0.75, 1.25)
                wait = min(wait, policy.max_wait_seconds)
                logger.info("%s: %s; trying again in %.1f s", _shown(job.source), error, wait)
                time.sleep(wait)


def _receive(session: requests.Session, partial: _Partial, job: _Job) -> None:
    """Appends what one answer brings beyond the bytes at hand. Raises _TransientError if another may bring more."""
    import requests
    import urllib3

    with _request(session, partial, job) as response:
        total = _begin(response, partial, job)
        if partial.size == total:
            return
        _check_room(partial, job, total)
        job.progress(partial.size, total)
        limit = job.max_bytes if total is None else total
        try:
            # Not iter_content, which would undo a Content-Encoding: the hash is that of the bytes as sent.
            for chunk in response.raw.stream(_CHUNK_BYTES, decode_content=False):
                if partial.size + len(chunk) > limit:
                    partial.remove()
                    raise DownloadError(f"{_shown(response.url)}: the body does not end at the limit of {limit} bytes")
                partial.append(chunk)
                job.progress(partial.size, total)
        except (urllib3.exceptions.HTTPError, requests.RequestException) as error:
            raise _TransientError(f"cut after {partial.size} bytes ({_reason(error)})") from error
    if total is not None and partial.size < total:
        raise _TransientError(f"ended after {partial.size} of {total} bytes")


def _request(session: requests.Session, partial: _Partial, job: _Job) -> requests.Response:
    """The answer to one request for the missing bytes, or for all of them, its body not yet read."""
    import requests

    headers: dict[str, str] = {}
    if partial.can_resume:
        headers["Range"] = f"bytes={partial.size}-"
        if partial.etag is not None:
            headers["If-Range"] = partial.etag
    try:
        return session.get(
            job.source,
            headers=headers,
            stream=True,
            timeout=(job.policy.connect_seconds, job.policy.stall_seconds),
            hooks={"response": _refuse_downgrade},
        )
    except (requests.TooManyRedirects, requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL) as error:
        raise DownloadError(f"{_shown(job.source)}: {error}; use another address, or {job.by_hand}") from error
    except requests.exceptions.ProxyError as error:
        raise _TransientError(f"no connection to the proxy ({_reason(error)})") from error
    except requests.RequestException as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):  # does not heal by trying again
            raise DownloadError(
                f"{_shown(job.source)}: the server's certificate is not accepted ({_reason(error)}); name your "
                f"network's authorities with REQUESTS_CA_BUNDLE, or {job.by_hand}"
            ) from error
        raise _TransientError(_reason(error)) from error


def _refuse_downgrade(response: requests.Response, *_: object, **__: object) -> None:
    """Stops a redirect from https to anything else; requests calls it for each answer before it follows one."""
    location = response.headers.get("Location")
    if not response.is_redirect or location is None:
        return
    response.close()  # or requests would read the body of the redirect, however long, into memory
    try:
        following = urljoin(response.url, location)
    except ValueError as error:
        raise DownloadError(f"{_shown(response.url)} redirects to a malformed address: {error}") from error
    if urlsplit(response.url).scheme == "https" and urlsplit(following).scheme != "https":
        raise DownloadError(
            f"{_shown(response.url)} redirects to {_shown(following)}, which is not encrypted, and that is never "
            "followed; use another server with EVERYCLIP_MIRROR"
        )


def _begin(response: requests.Response, partial: _Partial, job: _Job) -> int | None:
    """Reads status and headers and prepares ``partial`` for the body; the size of the whole file, if told."""
    status = response.status_code
    etag = response.headers.get("ETag")
    content_range = response.headers.get("Content-Range", "").strip()
    if status == 200:
        if partial.size:
            logger.info("%s: the server sends the whole file; starting again", _shown(job.source))
        partial.restart(etag)
        return _whole_number(response.headers.get("Content-Length"))
    if status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range)
        is_same = partial.etag is None or etag is None or etag == partial.etag
        if match is None or int(match[1]) != partial.size or not is_same:
            partial.restart()
            raise _TransientError("another part than the one asked for; starting again", wait_seconds=0)
        partial.is_spliced = True
        return _whole_number(match[2])
    if status == 416:
        if partial.size and content_range == f"bytes */{partial.size}":
            return partial.size  # nothing is missing
        partial.restart()
        raise _TransientError("no bytes beyond those at hand; starting again", wait_seconds=0)
    reason = f"HTTP status {status} {response.reason or ''}".rstrip()
    if status in _RETRIED_STATUSES:
        raise _TransientError(reason, _retry_after(response.headers.get("Retry-After")))
    raise DownloadError(
        f"{_shown(response.url)}: {reason}; use a server that has the file with EVERYCLIP_MIRROR, or {job.by_hand}"
    )


def _whole_number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,18}", text.strip()) else None


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait by a ``Retry-After`` header, which is a number of seconds or a date."""
    seconds = _whole_number(value)
    if value is None or seconds is not None:
        return seconds
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _check_room(partial: _Partial, job: _Job, total: int | None) -> None:
    """Refuses a body that is announced as larger than the limit, or than the disk has room for."""
    if total is None:
        return
    if total > job.max_bytes:
        partial.remove()
        raise DownloadError(f"{_shown(job.source)} has {total} bytes, the limit is {job.max_bytes}; pass max_bytes=")
    missing = total - partial.size
    free = shutil.disk_usage(partial.path.parent).free
    if missing > free:
        raise DownloadError(
            f"no space for {job.target.name}: {missing} bytes are still to come, {free} are free on the disk of "
            f"{job.target.parent}; free some, or choose another folder"
        )


def _reason(error: Exception) -> str:
    """The innermost words of an error: the outer ones quote addresses, which may hold secrets, and object ids."""
    inner = error
    while (following := _cause(inner)) is not None:
        inner = following
    # urllib3 puts the connection first: "<HTTPSConnection(…) at 0x…>: Failed to …", "HTTPConnectionPool(…): Read …"
    return re.sub(r"^\(?'?(<[^>]*>|\w+\([^)]*\)): ", "", str(inner)) or type(inner).__name__


def _cause(error: Exception) -> Exception | None:
    """What an error of requests or urllib3 wraps; they keep it in one of these places."""
    places = (getattr(error, "reason", None), getattr(error, "original_error", None), *error.args[:1])
    return next((place for place in places if isinstance(place, Exception)), None)
