"""Fetch a large file: resumed, verified while it streams, and put in place only when it is the right one.

What came so far waits in TARGET.part, with a note beside it of where each stretch came from. Only the checksum of a
whole file says which bytes are right, so no single answer may cost what is there: an address that does not go on
from the part is passed over, and if none does, the file comes anew into TARGET.part2 while the first part stays.
There is no If-Range: the last bytes are asked for again and compared, which also holds between mirrors, and a server
whose ETag differs from host to host need not send everything again.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path

import requests

from samsvae.errors import DownloadError
from samsvae.screens.partial_file import PartialFile, new_hash, progress_bar, read_into

log = logging.getLogger(__name__)

READ = 1 << 14  # bytes a read: fewer are lost when a connection breaks

OVERLAP = 1 << 16  # bytes asked for again on resuming, and compared

MEND = 1 << 28  # most bytes that are cut off a part as damaged; must be well above SYNC

LONGEST_WAIT = 600.0  # seconds between two tries, whatever the server asks for

HTML = (b"<!doctype html", b"<html")


class _Unusable(Exception):
    """This address does not serve the file: go to the next one."""


class _Conflict(_Unusable):
    """This address does not go with the part. Which of the two is wrong, a whole file will tell."""


class _NoRange(Exception):
    """This address does not send the range asked for: ask for everything."""


class _Broken(Exception):
    """Worth another try at the same address, after at least `wait` seconds."""

    def __init__(self, message: str, wait: float = 0.0):
        super().__init__(message)
        self.wait = wait


class _Differs(Exception):
    """The bytes from `start` on that the part's own source sends again are others in the part, first near `at`."""

    def __init__(self, start: int, at: int):
        self.start, self.at = start, at


def fetch(
    urls: str | Sequence[str],
    target: str | Path,
    size: int,
    checksum: str,
    *,
    tries: int = 10,
    pause: float = 1.0,
    timeout: float = 60.0,
) -> Path:
    """`target`, downloaded from the first of `urls` that serves `size` bytes with `checksum` ('md5:...',
    'sha256:...').

    What came so far waits in `target`.part and is resumed, also by a later call. A target that is there
    already and right is left alone; one that is wrong is replaced only by the right file. `tries`: attempts
    at an address without any progress, `pause` seconds apart at first and twice as long each time, at most a
    minute; `timeout`: seconds of silence. DownloadError says what each address answered and what was expected.
    """
    target, checksum, failures = Path(target), _checked(checksum), []
    left = [urls] if isinstance(urls, str) else list(urls)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as parts:
            for number in ["", *range(2, len(left) + 2)]:
                part = parts.enter_context(PartialFile(target.with_name(f"{target.name}.part{number}"), size, checksum))
                if not number and target.is_file() and not _fault(target, size, checksum):
                    return _cleared(target)
                _need_room(part, failures)
                whole, left = _from_any(left, part, failures, tries, pause, timeout)
                if whole:
                    part.become(target)
                    log.info("%s: %s bytes with %s", target, f"{size:,}", checksum)
                    return _cleared(target)
                if not left:
                    break
    except KeyboardInterrupt:
        raise DownloadError(f"{target}: stopped. What came is kept, and the next call goes on from there.") from None
    except OSError as error:  # no space, no permission: no address can help
        raise DownloadError(f"{target}: cannot be written ({error}). What came is kept.") from error
    raise DownloadError(f"{target}: expected {size:,} bytes with {checksum}; came: {'; '.join(failures)}.")


def verify(path: str | Path, size: int, checksum: str) -> Path:
    """`path` if it has `size` bytes and `checksum`; otherwise DownloadError with what it has instead."""
    path, checksum = Path(path), _checked(checksum)
    if not path.is_file():
        raise DownloadError(f"{path}: no such file.")
    if fault := _fault(path, size, checksum):
        raise DownloadError(f"{path}: {fault}.")
    return path


def _checked(checksum: str) -> str:
    """A checksum in small letters; one that no file can have is told before the download, not after it."""
    if not re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", checksum.lower()):
        raise DownloadError(
            f"checksum {checksum!r} is not understood; allowed: 'md5:' and 32, or 'sha256:' and 64 hexadecimal digits."
        )
    return checksum.lower()


def _fault(path: Path, size: int, checksum: str) -> str:
    """What is wrong with a file, or ''. The size is looked at first: it costs nothing."""
    if (length := path.stat().st_size) != size:
        return f"expected {size:,} bytes, found {length:,}"
    digest = new_hash(checksum)
    with open(path, "rb") as file:
        read_into(digest, file, 0, size, f"verifying {path.name}")
    found = f"{digest.name}:{digest.hexdigest()}"
    return "" if found == checksum else f"expected {checksum}, found {found}"


def _cleared(target: Path) -> Path:
    """`target`, which is there and right: no part is needed any more."""
    for path in target.parent.iterdir():
        if re.fullmatch(re.escape(target.name) + r"\.part\d*(\.json)?", path.name):
            path.unlink()
    return target


def _need_room(part: PartialFile, failures: Sequence[str]) -> None:
    missing, free = part.size - part.have, shutil.disk_usage(part.path.parent).free
    if missing > free:
        before = f" Before this came: {'; '.join(failures)}." if failures else ""
        raise DownloadError(f"{part.path}: {missing:,} bytes are to come, and {free:,} are free on its disk.{before}")


def _from_any(
    urls: Sequence[str], part: PartialFile, failures: list[str], tries: int, pause: float, timeout: float
) -> tuple[bool, list[str]]:
    """Whether `part` is the whole, right file now, and if not, the addresses with which it does not agree."""
    disputed = []
    for url in urls:
        try:
            _download(url, part, tries, pause, timeout)
            return True, []
        except _Unusable as error:
            log.warning("%s from %s: %s", part.path, url, error)
            failures.append(f"{url}: {error}")
            disputed += [url] * isinstance(error, _Conflict)
    return False, disputed


def _download(url: str, part: PartialFile, tries: int, pause: float, timeout: float) -> None:
    """Fill `part` until it is the whole, right file."""
    best, stuck, back, compared, mended = part.have, 0, OVERLAP, False, False
    while True:
        found = part.found()  # may take minutes: not while a server waits
        if part.have == part.size and (compared or found == part.checksum):
            break
        try:
            _stream(url, part, back, timeout)
            compared = True
        except _NoRange as error:
            if back >= part.have:  # everything was asked for
                raise _Unusable(str(error)) from error
            back = part.have
        except _Differs as error:
            if error.at - error.start >= OVERLAP and part.have - error.at <= MEND and not mended:
                log.warning("%s: damaged from byte %s on, which is cut off", part.path, f"{error.at:,}")
                part.cut(error.at)
                back, mended = OVERLAP, True
            elif error.start > 0 and back < MEND and not mended:
                back *= 8  # where does the damage begin?
            else:
                raise _Conflict(f"other bytes than {part.path.name} has, near byte {error.at:,}") from error
        except _Broken as error:
            stuck = 0 if part.have > best else stuck + 1
            best, back = max(best, part.have), OVERLAP
            if stuck >= tries:
                raise _Unusable(f"{error} (given up after {tries} tries without progress)") from error
            wait = min(max(error.wait, min(pause * 2 ** max(stuck - 1, 0), 60.0)), LONGEST_WAIT)
            log.warning("%s from %s: %s; going on in %.0f s", part.path, url, error, wait)
            time.sleep(wait)
    if found != part.checksum:
        _reject(part, found)


def _reject(part: PartialFile, found: str) -> None:
    """A whole file, but not the right one. Of several origins the last is dropped: the others may be right."""
    came = f"a file of the right length, but with {found}"
    if (joint := part.origins[-1][0]) > 0:
        part.cut(joint)
        raise _Conflict(f"{came} (its first {joint:,} bytes were there before and are kept)")
    doubtful = part.earlier  # what lay on the disk may have gone bad there: worth a clean start
    part.cut(0)
    raise (_Conflict if doubtful else _Unusable)(came)


def _stream(url: str, part: PartialFile, back: int, timeout: float) -> None:
    """One request, from `back` bytes before the end of the part: compare what it has, append what it lacks."""
    start = max(part.have - back, 0)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        # Always the address itself: what it redirects to is signed, and expires.
        with requests.get(url, headers=headers, stream=True, timeout=(20, timeout)) as response:
            at = start = _accept(response, start, part.size)
            etag, name = response.headers.get("ETag", ""), part.path.stem
            with progress_bar(name, start, part.size) as bar:
                for block in response.iter_content(READ):
                    if at == start and block[:64].lstrip().lower().startswith(HTML):
                        raise _Unusable(f"an HTML page in place of the file (it begins {block[:40]!r})")
                    known = max(min(len(block), part.have - at), 0)
                    if known and not part.agrees(at, block[:known]):
                        if part.comes_from(url, etag):
                            raise _Differs(start, at)
                        raise _Conflict(f"other bytes than {part.path.name} has, near byte {at:,}")
                    if fresh := block[known : part.size - at]:
                        part.append(fresh, url, etag)
                    at += len(block)
                    bar.update(len(block))
                    if at >= part.size:  # whatever else a server sends
                        return
    except (
        requests.exceptions.MissingSchema,
        requests.exceptions.InvalidSchema,
        requests.exceptions.InvalidURL,
        ValueError,  # a redirect to what is no address
    ) as e:
        raise _Unusable(f"not an address that can be fetched ({e})") from e
    except requests.RequestException as error:
        raise _Broken(f"the connection failed ({error})") from error
    raise _Broken(f"the file ended after {at:,} of {part.size:,} bytes")


def _accept(response: requests.Response, start: int, size: int) -> int:
    """The byte of the file that the body of this answer begins with: `start` as asked for, or 0."""
    status, header = response.status_code, response.headers
    told = f"HTTP {status} {response.reason or ''}".strip()
    if status in (408, 425, 429) or status >= 500:
        raise _Broken(told, _retry_after(header.get("Retry-After", "")))
    if status not in (200, 206, 416):
        action = header.get("x-amzn-waf-action")
        raise _Unusable(f"{told} without the file" + (f" (x-amzn-waf-action: {action})" if action else ""))
    if "html" in header.get("Content-Type", "").lower() and status != 416:
        raise _Unusable(f"{told} with an HTML page in place of the file (Content-Type {header['Content-Type']})")
    encoded = header.get("Content-Encoding", "identity").strip().lower() not in ("", "identity")
    told_range = header.get("Content-Range", "")
    span = re.fullmatch(r"bytes (?:\*|(\d+)-\d+)/(\*|\d+)", told_range)
    total = (span[2] if span else "") if status != 200 else "" if encoded else header.get("Content-Length", "")
    if total.isdecimal() and int(total) != size:
        raise _Unusable(f"{told} of a file of {int(total):,} bytes")
    if status == 200:
        return 0
    if status == 416 or encoded or not span or span[1] != str(start):
        raise _NoRange(f"{told} ({told_range}) to a request for the bytes from {start:,} on")
    return start


def _retry_after(asked: str) -> float:
    """The seconds that a server asks to wait for, as a number or as a date; 0 for anything else."""
    if asked.isdecimal():
        return float(asked)
    with suppress(ValueError):
        return parsedate_to_datetime(asked).timestamp() - time.time()
    return 0.0
