"""What a job has made, kept in a hidden folder beside its outputs, under a stamp of all that it depends on.

Snakemake deletes the outputs of a job before it runs it anew; what is kept here survives, and is taken again where
the stamp is the same. Neither torch nor numpy is imported: a job that only takes what is there is over at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from samsvae.files import atomic


def stamp_of(values: object, *files: str | Path) -> str:
    """One digest of plain values and of the content of files."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for path in files:
        state = os.stat(path)
        digest.update(_content(str(path), state.st_mtime_ns, state.st_size))
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _content(path: str, mtime_ns: int, size: int) -> bytes:
    """Digest of a file; asked for again in one process it is not read again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@dataclass(frozen=True)
class Kept:
    """A folder of files that belong to a stamp."""

    folder: Path
    stamp: str

    def whole(self, out: Mapping[str, Path]) -> bool:
        """Whether all files of ``out`` are there, under this stamp, and with the content that was stamped.

        They share their bytes with the outputs: what damages one damages the other.
        """
        try:
            return (self.folder / "stamp").read_text() == self._text(out)
        except FileNotFoundError:
            return False

    @property
    def begun(self) -> bool:
        """Whether something was on its way here and did not come to its end."""
        return self.folder.is_dir() and not (self.folder / "stamp").is_file()

    def _text(self, out: Mapping[str, Path]) -> str:
        """The stamp, and a digest of every file."""
        lines = [self.stamp]
        for path in out.values():
            with open(self.folder / path.name, "rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()} {path.name}")
        return "\n".join(lines)

    def fill(self, out: Mapping[str, Path], make: Callable[[dict[str, Path]], None]) -> None:
        """Have ``make`` write the files of ``out`` here, and stamp them; from here to the stamp none is valid."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "stamp").unlink(missing_ok=True)
        make({name: self.folder / path.name for name, path in out.items()})
        with atomic(self.folder / "stamp") as aside:
            aside.write_text(self._text(out))

    def take(self, out: Mapping[str, Path]) -> None:
        """The same files as outputs: under a second name, at no cost of space; copies where links are not to be had."""
        for path in out.values():
            with atomic(path) as aside:
                try:
                    os.link(self.folder / path.name, aside)
                except OSError:
                    shutil.copyfile(self.folder / path.name, aside)
