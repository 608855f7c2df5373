"""The command ``samsvae``: progress, time and preview of a study, scores of any method, imported checkpoints, exports.

    samsvae progress --configfile config/core.yaml
    samsvae estimate --configfile config/core.yaml --jobs 8
    samsvae import best.ckpt results/data/replogle/arrays.npz model.pt

Heavy packages are imported only by the subcommand that needs them.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from samsvae.config.vocabulary import ENCODINGS
from samsvae.errors import ConfigError, SamsvaeError
from samsvae.version import VERSION

#: The checkout that this file belongs to, unless the package was copied to site-packages.
CHECKOUT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return the exit status: 1, with one sentence on stderr, for an error of the user's input."""
    given = _parser().parse_args(arguments)
    try:
        given.handler(given)
    except (SamsvaeError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("samsvae", description="Commands for a study and its models.")
    parser.add_argument("--version", action="version", version=f"samsvae {VERSION}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, handler, description: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=description, description=f"{description[0].upper()}{description[1:]}.")
        added.set_defaults(handler=handler)
        return added

    progress = command("progress", _progress, "list finished, running and failed runs of a study, and the time left")
    _add_study(progress)

    estimate = command("estimate", _estimate, "estimate how long a study will take by timing a few steps")
    _add_study(estimate)
    estimate.add_argument(
        "--jobs", type=int, default=1, help="number of trainings that run at the same time (default: 1)"
    )

    convert = command("import", _import, "convert a Lightning checkpoint of the SAMS-VAE release")
    convert.add_argument("checkpoint", help="the .ckpt file")
    convert.add_argument("arrays", help="arrays.npz of the screen it was trained on (results/data/SCREEN/arrays.npz)")
    convert.add_argument("out", help="the file to write, which samsvae.load reads")
    convert.add_argument("--encoding", choices=ENCODINGS, default="sum",
                         help="sum (default): a combination is the sum of its parts; unique: it is a perturbation of "
                              "its own")  # fmt: skip

    score = command("score", _score, "score what any method predicts, next to baselines and ceiling")
    score.add_argument("predictions",
                       help="an .h5ad: conditions x genes, effects in log2(1 + counts per 10,000); or cells x genes, "
                            "counts (--cells)")  # fmt: skip
    score.add_argument("--cells", metavar="COLUMN", help="rows are cells; the column of obs with their conditions")
    score.add_argument("--arrays", required=True, metavar="FILE", help="results/data/SCREEN/arrays.npz")
    score.add_argument("--split", required=True, metavar="FILE",
                       help="results/EXPERIMENT/splits/SCREEN/SPLIT/cells.tsv")  # fmt: skip
    score.add_argument("--out", default="scored", metavar="DIR", help="folder of tables and figure (default: scored)")

    export = command("export", _export, "write effects, masks and profiles of finished runs as Parquet and AnnData")
    export.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="default: all experiments of the study")
    _add_study(export)

    preview = command("preview", _preview, "draw the report from the runs of a study that have finished so far")
    _add_study(preview)
    return parser


def _add_study(parser: argparse.ArgumentParser) -> None:
    """Add the options that select a study, with the same names as in Snakemake."""
    parser.add_argument("--configfile", "--configfiles", nargs="+", action="extend", default=[], metavar="FILE",
                        help="configuration files, as passed to snakemake; later ones win")  # fmt: skip
    parser.add_argument("--snakefile", "-s", metavar="FILE", help="the Snakefile (default: that of this checkout)")
    parser.add_argument("--directory", "-d", default=".", metavar="DIR",
                        help="the working directory of the study (default: the current folder)")  # fmt: skip


def _config_files(given: argparse.Namespace) -> list[Path]:
    """The configuration files of the study as absolute paths, first the one that the Snakefile reads itself."""
    snakefile = Path(given.snakefile) if given.snakefile else CHECKOUT / "Snakefile"
    if not snakefile.is_file():
        missing = f"{snakefile}: no such file." if given.snakefile else "The installed package is not in a checkout."
        raise ConfigError(f"{missing} Pass --snakefile with the path of the Snakefile of the workflow.")
    base = snakefile.parent / "config" / "config.yaml"
    return [path.absolute() for path in (base, *map(Path, given.configfile))]


def _progress(given: argparse.Namespace) -> None:
    from samsvae.study.configuration import read_study
    from samsvae.study.progress import study_progress

    study = read_study(_config_files(given))
    with contextlib.chdir(given.directory):
        print(study_progress(study))


def _estimate(given: argparse.Namespace) -> None:
    from samsvae.study.configuration import read_study
    from samsvae.study.estimate import study_estimate

    study = read_study(_config_files(given))
    with contextlib.chdir(given.directory):
        print(study_estimate(study, max(1, given.jobs)))


def _import(given: argparse.Namespace) -> None:
    from samsvae.interop.runs import convert_checkpoint

    convert_checkpoint(given.checkpoint, given.arrays, given.out, encoding=given.encoding)


def _score(given: argparse.Namespace) -> None:
    from samsvae.study.score_predictions import score_predictions

    verdicts = score_predictions(given.predictions, given.arrays, given.split, given.out, cells=given.cells)
    for row in verdicts.itertuples():
        print(f"{row.metric}, {row.set} conditions: {row.verdict}")
    print(Path(given.out, "worth.png").absolute())


def _preview(given: argparse.Namespace) -> None:
    from samsvae.study.configuration import read_config
    from samsvae.study.preview import write_preview

    files = _config_files(given)
    config = read_config(files)
    logging.basicConfig(format="%(message)s")  # to stderr: which figures are not drawn yet
    logging.getLogger("samsvae").setLevel(logging.INFO)
    with contextlib.chdir(given.directory):
        print(write_preview(config, resources=files[0].parents[1] / "resources").absolute())


def _export(given: argparse.Namespace) -> None:
    from samsvae.study.configuration import read_config
    from samsvae.study.export import write_export

    config = read_config(_config_files(given))
    with contextlib.chdir(given.directory):
        for folder in write_export(config, given.experiments):
            print(folder.absolute())
