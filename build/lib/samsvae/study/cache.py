"""Cache of what a job has computed: a hidden folder next to its outputs, with a stamp of everything it depends on.

Snakemake deletes the outputs of a job before it reruns the job. The cache survives and is used again if the stamp is
still the same. Neither torch nor numpy is imported: a job that finds everything in its cache ends at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from samsvae.files import atomic, digest_of


def stamp_of(values: object, *files: str | Path) -> str:
    """One SHA-256 digest of plain values and of the contents of files."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for path in files:
        digest.update(bytes.fromhex(digest_of(path)))
    return digest.hexdigest()


@dataclass(frozen=True)
class Cache:
    """A folder of files that belong to one stamp.

    ``outputs``: the output files of the job by name. The cached file has the same file name.
    """

    folder: Path
    stamp: str
    outputs: Mapping[str, Path]

    def is_complete(self) -> bool:
        """Whether all files are cached with this stamp and still have the content that was stamped.

        Outputs are hard links to the cached files, so damage to one is damage to the other.
        """
        try:
            return (self.folder / "stamp").read_text() == self._stamp_text()
        except FileNotFoundError:
            return False

    @property
    def was_interrupted(self) -> bool:
        """Whether a job started to fill this cache and did not finish."""
        return self.folder.is_dir() and not (self.folder / "stamp").is_file()

    @property
    def files(self) -> dict[str, Path]:
        """The cached files by name."""
        return {name: self.folder / path.name for name, path in self.outputs.items()}

    def _stamp_text(self) -> str:
        """The stamp, then a line with digest and name for every file."""
        lines = [f"{digest_of(path)} {path.name}" for path in self.files.values()]
        return "\n".join([self.stamp, *lines])

    def fill(self, write: Callable[[dict[str, Path]], None]) -> None:
        """Call ``write`` with the paths of the cached files, then stamp them. Until then the cache is not valid."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "stamp").unlink(missing_ok=True)
        write(self.files)
        with atomic(self.folder / "stamp") as aside:
            aside.write_text(self._stamp_text())

    def link(self) -> None:
        """Hard-link the cached files to the outputs; copy them where links are not supported."""
        for path in self.outputs.values():
            with atomic(path) as aside:
                try:
                    os.link(self.folder / path.name, aside)
                except OSError:
                    shutil.copyfile(self.folder / path.name, aside)
