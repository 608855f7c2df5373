"""Downloads large files: resumes, verifies while streaming, and renames to the target only a correct file.

The bytes received so far are in TARGET.part, with a note next to it on the source of each stretch. Only the checksum of
the complete file shows which bytes are correct, so no single response may destroy bytes already received. An address
that does not continue the part is skipped. If no address does, the download starts again in TARGET.part2 and the first
part stays. Requests do not use If-Range: the last bytes are requested again and compared. This also works between
mirrors, and a server whose ETag differs between hosts does not have to send everything again.

Where nobody publishes a checksum (`NO_CHECKSUM`), the first complete file is trusted: its SHA-256 is recorded in
TARGET.sha256, and every later download must have it.
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

from samsvae.config.screens import NO_CHECKSUM
from samsvae.errors import DownloadError
from samsvae.files import atomic, checksum_record, recorded_checksum
from samsvae.screens.partial_file import UNKNOWN, PartialFile, new_hash, progress_bar, read_into

log = logging.getLogger(__name__)

READ = 1 << 14  # bytes per read: small, so that a broken connection loses little

OVERLAP = 1 << 16  # bytes requested again and compared when a download resumes

MAX_CUT = 1 << 28  # most bytes cut off the end of a part as damaged; must be well above SYNC

LONGEST_WAIT = 600.0  # most seconds between two tries, even if the server asks for more

HTML = (b"<!doctype html", b"<html")


class _Unusable(Exception):
    """This address does not serve the file: try the next one."""


class _Conflict(_Unusable):
    """This address does not match the part. Only a complete file shows which of the two is wrong."""


class _NoRange(Exception):
    """This address does not send the requested range: request the complete file."""


class _Broken(Exception):
    """A failure that deserves another try at the same address, after at least `wait` seconds."""

    def __init__(self, message: str, wait: float = 0.0):
        super().__init__(message)
        self.wait = wait


class _Differs(Exception):
    """The source of the part sent the bytes from `start` again, and they differ from the part, first near `at`."""

    def __init__(self, start: int, at: int):
        self.start, self.at = start, at


def fetch(
    urls: str | Sequence[str],
    target: str | Path,
    size: int | None,
    checksum: str,
    *,
    tries: int = 10,
    pause: float = 1.0,
    timeout: float = 60.0,
) -> Path:
    """Download `target` from the first of `urls` that serves `size` bytes with `checksum` ('md5:...', 'sha256:...').

    The bytes received so far are in `target`.part, and this call or a later one resumes from them. An existing correct
    target is left alone; a wrong one is replaced only by the correct file. `checksum` 'none' trusts the first complete
    file and records its checksum (`recorded_checksum`); `size` may then be None, for the size that the server says.
    `tries`: attempts at one address without progress; the first wait is `pause` seconds, and each wait is twice the
    last, up to a minute. `timeout`: seconds without a response. DownloadError gives the response of each address and
    the expected size and checksum.
    """
    target, checksum = Path(target), _check_checksum(checksum, NO_CHECKSUM)
    failures: list[str] = []
    left = [urls] if isinstance(urls, str) else list(urls)
    trusted = ""
    if checksum == NO_CHECKSUM:
        trusted = recorded_checksum(target)
        if trusted and target.is_file() and not _fault(target, size or target.stat().st_size, trusted):
            return target
        checksum, size = trusted or UNKNOWN, size or _ask_size(left, failures, tries, pause, timeout)
    if size is None:
        raise DownloadError(f"{target}: no address gives the size of the file: {'; '.join(failures)}.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as parts:
            for number in ["", *map(str, range(2, len(left) + 2))]:
                part = parts.enter_context(PartialFile(target.with_name(f"{target.name}.part{number}"), size, checksum))
                if not number and target.is_file() and not _fault(target, size, checksum):
                    return _remove_parts(target)
                _check_space(part, failures)
                complete, left = _try_all(left, part, failures, tries, pause, timeout)
                if complete:
                    return _put_in_place(part, target)
                if not left:
                    break
    except KeyboardInterrupt:
        raise DownloadError(f"{target}: interrupted. The next call resumes from the bytes received so far.") from None
    except OSError as error:  # no space or no permission: another address cannot help
        raise DownloadError(
            f"{target}: cannot be written ({error}). The next call resumes from the bytes received so far."
        ) from error
    expected = f"{size:,} bytes" + (f" with {checksum}" if checksum != UNKNOWN else "")
    hint = f" If the file was replaced and you trust the new one, remove {checksum_record(target)}." if trusted else ""
    raise DownloadError(f"{target}: expected {expected}, but received: {'; '.join(failures)}.{hint}")


def _put_in_place(part: PartialFile, target: Path) -> Path:
    """Rename a complete, correct part to `target`; record its checksum first if nobody publishes one."""
    found = part.current_checksum()
    if part.checksum == UNKNOWN:
        with atomic(checksum_record(target)) as path:
            path.write_text(f"{found.removeprefix(UNKNOWN)}  {target.name}\n")
        log.warning(
            "%s: nobody publishes its checksum, so this first download is trusted. From now on it must have %s, which "
            "%s records",
            *(target, found, checksum_record(target)),
        )
    part.move_to(target)
    log.info("%s: downloaded, %s bytes with %s", target, f"{part.size:,}", found)
    return _remove_parts(target)


def _ask_size(urls: Sequence[str], failures: list[str], tries: int, pause: float, timeout: float) -> int | None:
    """The size of the file as the first address that says it; None if none does."""
    headers, hooks = {"Accept-Encoding": "identity", "Range": "bytes=0-"}, {"response": _drop_body}
    for url in urls:
        for again in range(tries):
            try:
                with requests.get(url, headers=headers, hooks=hooks, stream=True, timeout=(20, timeout)) as response:
                    return _size_of(response)
            except _Unusable as error:
                failures.append(f"{url}: {error}")
                break
            except (_Broken, requests.RequestException, ValueError) as error:  # ValueErrors are of invalid addresses
                if isinstance(error, ValueError) or again + 1 == tries:
                    failures.append(f"{url}: {error} (gave up after {again + 1} tries)")
                    break
                time.sleep(min(max(getattr(error, "wait", 0.0), pause * 2**again), LONGEST_WAIT))
    return None


def _size_of(response: requests.Response) -> int:
    """The size of the complete file by the headers of a response; _Unusable if they do not say it."""
    _check_answer(response)
    span = re.fullmatch(r"bytes (?:\d+-\d+)/(\d+)", response.headers.get("Content-Range", ""))
    length = response.headers.get("Content-Length", "") if response.status_code == 200 else ""
    total = span[1] if span else length
    if not total.isdecimal() or int(total) == 0:
        raise _Unusable("the server does not say how large the file is")
    return int(total)


def verify(path: str | Path, size: int, checksum: str) -> Path:
    """`path` if it has `size` bytes and `checksum`; otherwise DownloadError with the actual size or checksum."""
    path, checksum = Path(path), _check_checksum(checksum)
    if not path.is_file():
        raise DownloadError(f"{path}: no such file.")
    if fault := _fault(path, size, checksum):
        raise DownloadError(f"{path}: {fault}.")
    return path


def _check_checksum(checksum: str, *also: str) -> str:
    """The checksum in lower case; DownloadError, before anything is downloaded, if it is neither one nor in `also`."""
    if checksum not in also and not re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", checksum.lower()):
        raise DownloadError(
            f"checksum {checksum!r} is not allowed; allowed: 'md5:' with 32 or 'sha256:' with 64 hexadecimal digits."
        )
    return checksum.lower()


def _fault(path: Path, size: int, checksum: str) -> str:
    """What is wrong with a file, or ''. The size comes first because it costs nothing to check."""
    if (length := path.stat().st_size) != size:
        return f"expected {size:,} bytes, found {length:,}"
    digest = new_hash(checksum)
    with open(path, "rb") as file:
        read_into(digest, file, 0, size, f"verifying {path.name}")
    found = f"{digest.name}:{digest.hexdigest()}"
    return "" if found == checksum else f"expected {checksum}, found {found}"


def _remove_parts(target: Path) -> Path:
    """`target`, which is complete and correct, after its parts and their notes have been removed."""
    for path in target.parent.iterdir():
        if re.fullmatch(re.escape(target.name) + r"\.part\d*(\.json)?", path.name):
            path.unlink()
    return target


def _check_space(part: PartialFile, failures: Sequence[str]) -> None:
    """DownloadError if the disk has less space than the missing bytes need."""
    missing, free = part.size - part.have, shutil.disk_usage(part.path.parent).free
    if missing > free:
        before = f" Earlier failures: {'; '.join(failures)}." if failures else ""
        raise DownloadError(
            f"{part.path}: {missing:,} bytes are missing, but only {free:,} are free on its disk.{before}"
        )


def _try_all(
    urls: Sequence[str], part: PartialFile, failures: list[str], tries: int, pause: float, timeout: float
) -> tuple[bool, list[str]]:
    """Whether `part` is now the complete, correct file, and if not, the addresses that it does not agree with."""
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
    """Fill `part` until it is the complete, correct file; _Unusable if this address does not give it."""
    best, stuck, back, compared, repaired = part.have, 0, OVERLAP, False, False
    while True:
        found = part.current_checksum()  # may take minutes, so not while a connection is open
        if part.have == part.size and (compared or found == part.checksum):
            break
        try:
            _stream(url, part, back, timeout)
            compared = True
        except _NoRange as error:
            if back >= part.have:  # the complete file was requested
                raise _Unusable(str(error)) from error
            back = part.have
        except _Differs as error:
            if error.at - error.start >= OVERLAP and part.have - error.at <= MAX_CUT and not repaired:
                log.warning("%s: damaged from byte %s on; this end is cut off", part.path, f"{error.at:,}")
                part.cut(error.at)
                back, repaired = OVERLAP, True
            elif error.start > 0 and back < MAX_CUT and not repaired:
                back *= 8  # search backwards for the start of the damage
            else:
                raise _Conflict(f"bytes that differ from {part.path.name} near byte {error.at:,}") from error
        except _Broken as error:
            stuck = 0 if part.have > best else stuck + 1
            best, back = max(best, part.have), OVERLAP
            if stuck >= tries:
                raise _Unusable(f"{error} (gave up after {tries} tries without progress)") from error
            wait = min(max(error.wait, min(pause * 2 ** max(stuck - 1, 0), 60.0)), LONGEST_WAIT)
            log.warning("%s from %s: %s; next try in %.0f s", part.path, url, error, wait)
            time.sleep(wait)
    if not part.is_correct(found):
        _reject(part, found)


def _reject(part: PartialFile, found: str) -> None:
    """Raise for a complete but wrong file. With several origins, only the last is cut: the others may be correct."""
    received = f"a file of the correct length, but with {found}"
    if (joint := part.origins[-1][0]) > 0:
        part.cut(joint)
        raise _Conflict(f"{received} (the first {joint:,} bytes came from elsewhere and stay)")
    doubtful = part.earlier  # bytes from earlier calls may have been damaged on the disk: start again
    part.cut(0)
    raise (_Conflict if doubtful else _Unusable)(received)


def _stream(url: str, part: PartialFile, back: int, timeout: float) -> None:
    """Make one request from `back` bytes before the end of the part: compare the known bytes, append the new ones."""
    start = max(part.have - back, 0)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        # Always request the original address: redirects lead to signed addresses that expire.
        hooks = {"response": _drop_body}
        with requests.get(url, headers=headers, hooks=hooks, stream=True, timeout=(20, timeout)) as response:
            at = start = _accept(response, start, part.size)
            etag, name = response.headers.get("ETag", ""), part.path.stem
            if part.checksum == UNKNOWN and part.have and etag and part.origins[-1][2] not in ("", etag):
                raise _Conflict("another version of the file than the bytes received so far (by its ETag)")
            with progress_bar(name, start, part.size) as bar:
                for block in response.iter_content(READ):
                    if at == start and block[:64].lstrip().lower().startswith(HTML):
                        raise _Unusable(f"an HTML page instead of the file (it begins {block[:40]!r})")
                    known = max(min(len(block), part.have - at), 0)
                    if known and not part.agrees(at, block[:known]):
                        if part.comes_from(url, etag):
                            raise _Differs(start, at)
                        raise _Conflict(f"bytes that differ from {part.path.name} near byte {at:,}")
                    if fresh := block[known : part.size - at]:
                        part.append(fresh, url, etag)
                    at += len(block)
                    bar.update(len(block))
                    if at >= part.size:  # ignore anything further
                        return
    except (
        requests.exceptions.MissingSchema,
        requests.exceptions.InvalidSchema,
        requests.exceptions.InvalidURL,
        ValueError,  # a redirect to an invalid address
    ) as e:
        raise _Unusable(f"not a valid address ({e})") from e
    except requests.RequestException as error:
        raise _Broken(f"the connection failed ({error})") from error
    raise _Broken(f"the response ended after {at:,} of {part.size:,} bytes")


def _drop_body(response: requests.Response, **_) -> None:
    """Close a redirect before its body is read: requests would read all of it, also if it never ends."""
    if response.is_redirect:
        response.close()


def _check_answer(response: requests.Response) -> str:
    """The status of a response as text; _Unusable or _Broken if it does not bring the file."""
    status, header = response.status_code, response.headers
    answer = f"HTTP {status} {response.reason or ''}".strip()
    if status in (408, 425, 429) or status >= 500:
        raise _Broken(answer, _retry_after(header.get("Retry-After", "")))
    if status not in (200, 206, 416):
        action = header.get("x-amzn-waf-action")
        raise _Unusable(f"{answer} without the file" + (f" (x-amzn-waf-action: {action})" if action else ""))
    if "html" in header.get("Content-Type", "").lower() and status != 416:
        raise _Unusable(f"{answer} with an HTML page instead of the file (Content-Type {header['Content-Type']})")
    return answer


def _accept(response: requests.Response, start: int, size: int) -> int:
    """The position in the file where the body of this response begins: the requested `start`, or 0."""
    answer, status, header = _check_answer(response), response.status_code, response.headers
    encoded = header.get("Content-Encoding", "identity").strip().lower() not in ("", "identity")
    content_range = header.get("Content-Range", "")
    span = re.fullmatch(r"bytes (?:\*|(\d+)-\d+)/(\*|\d+)", content_range)
    total = (span[2] if span else "") if status != 200 else "" if encoded else header.get("Content-Length", "")
    if total.isdecimal() and int(total) != size:
        raise _Unusable(f"{answer} for a file of {int(total):,} bytes")
    if status == 200:
        return 0
    if status == 416 or encoded or not span or span[1] != str(start):
        raise _NoRange(f"{answer} ({content_range}) to a request for the bytes from {start:,} on")
    return start


def _retry_after(asked: str) -> float:
    """The wait in seconds that a server asks for, as a number or as a date; 0 for anything else."""
    if asked.isdecimal():
        return float(asked)
    with suppress(ValueError):
        return parsedate_to_datetime(asked).timestamp() - time.time()
    return 0.0
