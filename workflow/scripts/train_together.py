"""Train and score several runs of the same data."""

from pathlib import Path

from samsvae.study.jobs import Data, Place, run_together
from samsvae.study.script import job

found, params, config = snakemake.input, snakemake.params, snakemake.config
data = Data.of(found, params)
place = Place(config["device"], config["jobs_per_gpu"], 60.0 * config["checkpoint_minutes"])
runs = [settings["run"] for settings in params.runs]
folders = {run: Path(snakemake.output[0]).parents[1] / "runs" / run for run in runs}
logs = {run: Path(snakemake.log[0]).with_name(f"{run}.log") for run in runs}

with job(snakemake):
    run_together(params.runs, data, folders, logs, place, snakemake.output[0])
