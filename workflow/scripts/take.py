"""Link the files of a run that was trained together with others."""

from pathlib import Path

from samsvae.study.jobs import Data, take_one
from samsvae.study.script import job

found, params = snakemake.input, snakemake.params
data = Data.of(found, params)

with job(snakemake):
    take_one(params.settings, data, Path(snakemake.output.model).parent, found.together[0])
