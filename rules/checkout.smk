# The folder with the package, the resources and the default configuration: ROOT.
import sys
from pathlib import Path


def unpacked(folder):
    """The repository around a folder on a hosting service (`github(...)` in a module), as a folder on this machine.

    It is unpacked once per commit, next to Snakemake's own clone.
    """
    import tarfile
    import tempfile

    clone = folder.hosted_repo.repo
    commit = clone.commit(folder.ref).hexsha
    found = Path(clone.git_dir).with_suffix(f".{commit}")
    if not found.is_dir():
        with tempfile.TemporaryDirectory(dir=found.parent) as aside, tempfile.TemporaryFile() as archive:
            clone.archive(archive, commit)
            archive.seek(0)
            tarfile.open(fileobj=archive).extractall(aside, filter="data")
            Path(aside).rename(found)
            Path(aside).mkdir()  # for the context to remove
    return found


ROOT = (
    Path(workflow.current_basedir).parent if workflow.current_basedir.is_local else unpacked(workflow.current_basedir)
)

# Scripts import the package from here, whether in a venv, with conda, on a cluster or as a module.
sys.path.insert(0, str(ROOT / "src"))
