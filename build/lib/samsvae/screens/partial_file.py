"""A partly downloaded file: the bytes received so far, the source of each stretch, and a running checksum."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from samsvae.errors import DownloadError
from samsvae.files import write_json

log = logging.getLogger(__name__)

UNKNOWN = "sha256:"  # in place of a checksum that nobody publishes: only the type of the hash

SYNC = 1 << 26  # bytes between two fsyncs: the most that a power cut can damage

LOG_EVERY = 30.0  # seconds between two log lines


def new_hash(checksum: str):
    """An empty hash object of the type that a checksum such as 'md5:...' names."""
    return hashlib.new(checksum.partition(":")[0], usedforsecurity=False)


def read_into(digest, file: BinaryIO, start: int, end: int, what: str) -> None:
    """Read bytes `start` to `end` of an open file into a hash object, with a progress bar named `what`."""
    file.seek(start)
    with progress_bar(what, start, end) as bar:
        while start < end and (block := file.read(min(1 << 20, end - start))):
            digest.update(block)
            start += len(block)
            bar.update(len(block))


class _LogLines:
    """A file for a progress bar that writes each update as a log line."""

    def write(self, text: str) -> None:
        if text := text.strip():
            log.info("%s", text)

    def flush(self) -> None:
        pass


def progress_bar(what: str, start: int, end: int) -> tqdm:
    """A progress bar on a terminal; elsewhere a log line every `LOG_EVERY` seconds."""
    options: dict[str, Any] = {"mininterval": 0.5}
    if not sys.stderr.isatty():
        options = {"file": _LogLines(), "mininterval": LOG_EVERY, "miniters": 1}
        options["bar_format"] = "{desc}: {percentage:.1f} % of {total_fmt}B, {rate_fmt}, {remaining} left"
    return tqdm(total=end, initial=start, desc=what, unit="B", unit_scale=True, leave=False, **options)


class PartialFile:
    """The bytes received so far, in this call and earlier ones, and their hash, locked for this process.

    The file itself carries the lock, so the lock ends with the process in every case. `origins`: first byte, address
    and ETag of each stretch, also saved in a note (JSON) next to the file; the address is '' if there is no note.
    """

    def __init__(self, path: Path, size: int, checksum: str):
        self.path, self.size, self.checksum = path, size, checksum
        self.note = path.with_name(f"{path.name}.json")
        self.file = _open_locked(path)
        self.have = min(self.file.seek(0, os.SEEK_END), size)  # surplus bytes are cut when the file is complete
        self.earlier = self.synced = self.have  # bytes from earlier calls; bytes safely on the disk
        self.origins = _origins(self.note, self.have)
        self.hashed, self.digest = 0, new_hash(checksum)

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(self, *_) -> None:
        self.file.close()
        if not self.have:
            self.path.unlink(missing_ok=True)
            self.note.unlink(missing_ok=True)

    def current_checksum(self) -> str:
        """The checksum of the bytes received so far; only bytes from earlier calls have to be read."""
        if self.hashed < self.have:
            read_into(self.digest, self.file, self.hashed, self.have, f"reading {self.path.name} again")
            self.hashed = self.have
        return f"{self.digest.name}:{self.digest.hexdigest()}"

    def is_correct(self, found: str) -> bool:
        """Whether `found` is the checksum of the complete file; an unknown checksum allows any."""
        return self.checksum in (found, UNKNOWN)

    def agrees(self, at: int, block: bytes) -> bool:
        """Whether the file has these bytes at position `at`."""
        self.file.seek(at)
        return self.file.read(len(block)) == block

    def comes_from(self, url: str, etag: str) -> bool:
        """Whether the last stretch came from the same file at the same source, as far as is known."""
        _, address, before = self.origins[-1]
        return not address or (etag == before if etag and before else url == address)

    def append(self, block: bytes, url: str, etag: str) -> None:
        """Write and hash the next bytes; their source is noted before they are written."""
        if [origin[1:] for origin in self.origins[-1:]] != [(url, etag)]:
            self.origins.append((self.have, url, etag))
            write_json(self.origins, self.note)
        self.file.seek(self.have)
        self.file.write(block)
        self.file.flush()  # to the operating system, so that the bytes survive this process
        self.digest.update(block)
        self.have = self.hashed = self.have + len(block)
        if self.have - self.synced >= SYNC:
            self.sync()

    def sync(self) -> None:
        """Make sure that all bytes are on the disk."""
        os.fsync(self.file.fileno())
        self.synced = self.have

    def cut(self, at: int) -> None:
        """Keep only the first `at` bytes."""
        self.file.truncate(at)
        self.have, self.hashed, self.digest = at, 0, new_hash(self.checksum)
        self.earlier, self.synced = min(self.earlier, at), min(self.synced, at)
        self.origins = [origin for origin in self.origins if origin[0] < at]
        write_json(self.origins, self.note)

    def move_to(self, target: Path) -> None:
        """Rename the file to `target` once its bytes are on the disk, then make sure that the rename is too."""
        self.file.truncate(self.size)
        self.sync()
        os.replace(self.path, target)
        folder = os.open(target.parent, os.O_RDONLY)
        with suppress(OSError):  # some network file systems cannot fsync a folder
            os.fsync(folder)
        os.close(folder)


def _open_locked(path: Path) -> BinaryIO:
    """Open `path` for reading and writing, create it if needed, and lock it; DownloadError if it is locked already."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise DownloadError(f"{path}: another process is downloading this file. Wait for it to end.") from error
        except OSError as error:
            log.warning(
                "%s: cannot be locked on this file system (%s); do not run two downloads of it at once", path, error
            )
        with suppress(FileNotFoundError):  # another process may have renamed or removed it before we got the lock
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _origins(note: Path, have: int) -> list[tuple[int, str, str]]:
    """The origins of the first `have` bytes, from the note next to the file if it is usable."""
    try:
        origins = [(int(first), str(url), str(etag)) for first, url, etag in json.loads(note.read_text())]
    except (OSError, ValueError, TypeError):
        origins = []
    if not origins or origins[0][0] != 0:
        origins = [(0, "", "")]
    return [origin for origin in origins if origin[0] < have]
