"""Fetch a large file: resumed, verified while it streams, and put in place only when it is the right one."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import requests
from tqdm import tqdm

from samsvae.errors import DownloadError

READ = 1 << 16  # small reads: little is lost when a connection breaks
HTML = (b"<!doctype html", b"<html")


class _Unusable(Exception):
    """This address does not serve the file: go to the next one."""


class _Broken(Exception):
    """Worth another try at the same address, after at least `wait` seconds."""

    def __init__(self, message: str, wait: float = 0.0):
        super().__init__(message)
        self.wait = wait


def fetch(
    urls: str | Sequence[str],
    target: str | Path,
    size: int,
    checksum: str,
    *,
    tries: int = 5,
    pause: float = 1.0,
    timeout: float = 60.0,
) -> Path:
    """`target`, downloaded from the first of `urls` that serves `size` bytes with `checksum` ('md5:...',
    'sha256:...').

    What came so far waits in `target`.part and is resumed, also by a later call. A target that is there
    already and right is left alone; one that is wrong is replaced only by the right file. `tries`: attempts
    at an address without any progress, `pause` seconds apart at first and twice as long each time; `timeout`:
    seconds of silence. DownloadError says what each address answered and what was expected.
    """
    urls, target = [urls] if isinstance(urls, str) else list(urls), Path(target)
    _algorithm(checksum)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with _alone(target):
        if target.is_file() and not _fault(target, size, checksum):
            return target
        failures = []
        for url in urls:
            try:
                _download(url, part, size, checksum, tries, pause, timeout)
            except _Unusable as error:
                failures.append(f"{url}: {error}")
            except OSError as error:  # no space, no permission: no address can help
                raise DownloadError(f"{part}: cannot be written ({error}).") from error
            else:
                os.replace(part, target)
                return target
    raise DownloadError(f"{target}: expected {size:,} bytes with {checksum}; came: {'; '.join(failures)}.")


def verify(path: str | Path, size: int, checksum: str) -> Path:
    """`path` if it has `size` bytes and `checksum`; otherwise DownloadError with what it has instead."""
    path = Path(path)
    if not path.is_file():
        raise DownloadError(f"{path}: no such file.")
    if fault := _fault(path, size, checksum):
        raise DownloadError(f"{path}: {fault}.")
    return path


def _algorithm(checksum: str) -> str:
    name, _, digest = checksum.partition(":")
    if name not in ("md5", "sha256") or not digest:
        raise DownloadError(f"checksum {checksum!r} is not understood; allowed: 'md5:...' or 'sha256:...'.")
    return name


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _hash(path: Path, algorithm: str):
    """The hash object after the bytes of `path` (none if it is not there)."""
    digest = hashlib.new(algorithm)
    if path.exists():
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest


def _fault(path: Path, size: int, checksum: str) -> str:
    """What is wrong with a file, or ''. The size is looked at first: it costs nothing."""
    if _size(path) != size:
        return f"expected {size:,} bytes, found {_size(path):,}"
    algorithm = _algorithm(checksum)
    found = f"{algorithm}:{_hash(path, algorithm).hexdigest()}"
    return "" if found == checksum.lower() else f"expected {checksum}, found {found}"


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One download of a file at a time: two that append to one part would spoil it."""
    with open(target.with_name(f".{target.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DownloadError(f"{target}: another process is downloading it now.") from error
        yield


def _download(url: str, part: Path, size: int, checksum: str, tries: int, pause: float, timeout: float) -> None:
    """Fill `part` until it is the whole, right file."""
    algorithm, best, stuck, may_restart = _algorithm(checksum), _size(part), 0, True
    while True:
        resumed = _size(part) > 0
        try:
            found = f"{algorithm}:{_stream(url, part, size, algorithm, timeout)}"
        except _Broken as error:
            stuck = 0 if _size(part) > best else stuck + 1
            best = max(best, _size(part))
            if stuck >= tries:
                raise _Unusable(f"{error} (given up after {tries} tries without progress)") from error
            time.sleep(max(error.wait, pause * 2 ** max(stuck - 1, 0)))
            continue
        if found == checksum.lower():
            return
        part.unlink()
        if not (resumed and may_restart):
            raise _Unusable(f"a file of the right length, but with {found}")
        best, may_restart = 0, False  # the older half may be of another file: once more, from the start


def _stream(url: str, part: Path, size: int, algorithm: str, timeout: float) -> str:
    """One request: append to `part` (or start it anew) and return the digest of the whole file."""
    if _size(part) > size:
        part.unlink()
    have, digest = _size(part), _hash(part, algorithm)
    if have == size:
        return digest.hexdigest()
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(20, timeout)) as response:
            have = _accept(response, part, have, size)
            if not have:
                digest = hashlib.new(algorithm)
            blocks = response.iter_content(READ)
            first = next(blocks, b"")
            if not have and first[:64].lstrip().lower().startswith(HTML):
                raise _Unusable(f"an HTML page in place of the file (it begins {first[:40]!r})")
            # Where to: a terminal is redrawn often, a log gets a line every half minute.
            seldom = 0.5 if sys.stderr.isatty() else 30
            bar = tqdm(total=size, initial=have, unit="B", unit_scale=True, desc=part.stem, mininterval=seldom)
            with bar, open(part, "ab" if have else "wb") as file:
                block = first
                while block:
                    have += len(block)
                    if have > size:
                        file.truncate(0)
                        raise _Unusable(f"more than {size:,} bytes")
                    file.write(block)
                    digest.update(block)
                    bar.update(len(block))
                    block = next(blocks, b"")
                file.flush()
                os.fsync(file.fileno())
    except (
        requests.exceptions.MissingSchema,
        requests.exceptions.InvalidSchema,
        requests.exceptions.InvalidURL,
    ) as e:
        raise _Unusable(f"not an address that can be fetched ({e})") from e
    except requests.RequestException as error:
        raise _Broken(f"the connection failed ({error})") from error
    if have < size:
        raise _Broken(f"the file ended after {have:,} of {size:,} bytes")
    return digest.hexdigest()


def _accept(response: requests.Response, part: Path, have: int, size: int) -> int:
    """Where the body of this answer starts in the file: `have` if the server resumes, 0 if it starts
    again."""
    status, header = response.status_code, response.headers
    told = f"HTTP {status} {response.reason or ''}".strip()
    if status == 416:  # the part is not a beginning of this file
        part.unlink(missing_ok=True)
        raise _Broken(f"{told} on resuming at byte {have:,}")
    if status in (408, 425, 429) or status >= 500:
        wait = header.get("Retry-After", "")
        raise _Broken(told, min(float(wait), 300.0) if wait.isdigit() else 0.0)
    if status not in (200, 206):
        action = header.get("x-amzn-waf-action")
        raise _Unusable(f"{told} without the file" + (f" (x-amzn-waf-action: {action})" if action else ""))
    if "html" in header.get("Content-Type", ""):
        raise _Unusable(f"{told} with an HTML page in place of the file (Content-Type {header['Content-Type']})")
    length = header.get("Content-Length", "")
    total = int(length) if status == 200 and length.isdigit() and "Content-Encoding" not in header else size
    if status == 206:
        span, _, whole = header.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if span.split("-")[0] != str(have):
            part.unlink(missing_ok=True)
            raise _Broken(f"{told} with another range than asked (Content-Range {span!r})")
        total = int(whole) if whole.isdigit() else size
    if total != size:
        raise _Unusable(f"a file of {total:,} bytes")
    return have if status == 206 else 0
