"""Train one run and score it, or link what is cached."""

from pathlib import Path

from samsvae.study.jobs import Data, Place, run_one
from samsvae.study.script import job

found, params, config = snakemake.input, snakemake.params, snakemake.config
data = Data.of(found, params)
# not params: a run must not train again because of where it trains or how often it saves its state
place = Place(config["device"], config["jobs_per_gpu"], 60.0 * config["checkpoint_minutes"])

with job(snakemake):
    run_one(params.settings, data, Path(snakemake.output.model).parent, place)
