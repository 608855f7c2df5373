"""A download on its way: what has arrived, where each stretch came from, and its running checksum."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from samsvae.errors import DownloadError
from samsvae.files import write_json

log = logging.getLogger(__name__)


SYNC = 1 << 26  # bytes between two fsyncs: what a power cut can damage

LOG_EVERY = 30.0  # seconds between two lines of the log


def new_hash(checksum: str):
    return hashlib.new(checksum.partition(":")[0], usedforsecurity=False)


def read_into(digest, file: BinaryIO, start: int, end: int, what: str) -> None:
    """Bytes `start` to `end` of an open file, read into a hash object."""
    file.seek(start)
    with progress_bar(what, start, end) as bar:
        while start < end and (block := file.read(min(1 << 20, end - start))):
            digest.update(block)
            start += len(block)
            bar.update(len(block))


class _LogLines:
    """The file of a progress bar that is to become lines of the log."""

    def write(self, text: str) -> None:
        if text := text.strip():
            log.info("%s", text)

    def flush(self) -> None:
        pass


def progress_bar(what: str, start: int, end: int) -> tqdm:
    """A bar on a terminal; elsewhere a line of the log each half minute."""
    how = {"file": _LogLines(), "mininterval": LOG_EVERY, "miniters": 1}
    how["bar_format"] = "{desc}: {percentage:.1f} % of {total_fmt}B, {rate_fmt}, {remaining} left"
    how = {"mininterval": 0.5} if sys.stderr.isatty() else how
    return tqdm(total=end, initial=start, desc=what, unit="B", unit_scale=True, leave=False, **how)


class PartialFile:
    """The bytes that came so far, in this call and earlier ones, with their hash, for this process alone.

    The lock is that of the file itself: it goes with the process, however that ends. `origins`: of each stretch its
    first byte, address and ETag, as in the note beside the file; address '' where there is no note.
    """

    def __init__(self, path: Path, size: int, checksum: str):
        self.path, self.size, self.checksum = path, size, checksum
        self.note = path.with_name(f"{path.name}.json")
        self.file = _open_alone(path)
        self.have = min(self.file.seek(0, os.SEEK_END), size)  # a longer one is cut when it proves right
        self.earlier = self.synced = self.have  # bytes of earlier calls; bytes that are safely on the disk
        self.origins = _origins(self.note, self.have)
        self.hashed, self.digest = 0, new_hash(checksum)

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(self, *_) -> None:
        self.file.close()
        if not self.have:
            self.path.unlink(missing_ok=True)
            self.note.unlink(missing_ok=True)

    def found(self) -> str:
        """The checksum of what is here. Read for it is only what this process did not write itself."""
        if self.hashed < self.have:
            read_into(self.digest, self.file, self.hashed, self.have, f"reading {self.path.name} again")
            self.hashed = self.have
        return f"{self.digest.name}:{self.digest.hexdigest()}"

    def agrees(self, at: int, block: bytes) -> bool:
        self.file.seek(at)
        return self.file.read(len(block)) == block

    def comes_from(self, url: str, etag: str) -> bool:
        """Whether the last stretch is of the same file at its source, as far as is known."""
        _, address, before = self.origins[-1]
        return not address or (etag == before if etag and before else url == address)

    def append(self, block: bytes, url: str, etag: str) -> None:
        """Write and hash the next bytes; where they come from is noted before they are written."""
        if [origin[1:] for origin in self.origins[-1:]] != [(url, etag)]:
            self.origins.append((self.have, url, etag))
            write_json(self.origins, self.note)
        self.file.seek(self.have)
        self.file.write(block)
        self.file.flush()  # to the system: it outlives this process
        self.digest.update(block)
        self.have = self.hashed = self.have + len(block)
        if self.have - self.synced >= SYNC:
            self.sync()

    def sync(self) -> None:
        os.fsync(self.file.fileno())
        self.synced = self.have

    def cut(self, at: int) -> None:
        """Keep the first `at` bytes."""
        self.file.truncate(at)
        self.have, self.hashed, self.digest = at, 0, new_hash(self.checksum)
        self.earlier, self.synced = min(self.earlier, at), min(self.synced, at)
        self.origins = [origin for origin in self.origins if origin[0] < at]
        write_json(self.origins, self.note)

    def become(self, target: Path) -> None:
        """Put in place by rename, once it is on the disk; the rename then too."""
        self.file.truncate(self.size)
        self.sync()
        os.replace(self.path, target)
        folder = os.open(target.parent, os.O_RDONLY)
        with suppress(OSError):  # some network file systems know no fsync of a folder
            os.fsync(folder)
        os.close(folder)


def _open_alone(path: Path) -> BinaryIO:
    """`path`, made if need be, open to read and write, under a lock."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise DownloadError(f"{path}: another process is downloading it now.") from error
        except OSError as error:
            log.warning("%s: cannot be locked here (%s); do not download it twice at once", path, error)
        with suppress(FileNotFoundError):  # another process may have put it in place before the lock was ours
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _origins(note: Path, have: int) -> list[tuple[int, str, str]]:
    """The origins of the first `have` bytes, as far as the note beside them tells."""
    try:
        origins = [(int(first), str(url), str(etag)) for first, url, etag in json.loads(note.read_text())]
    except (OSError, ValueError, TypeError):
        origins = []
    if not origins or origins[0][0] != 0:
        origins = [(0, "", "")]
    return [origin for origin in origins if origin[0] < have]
