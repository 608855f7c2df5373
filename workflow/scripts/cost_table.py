"""Concatenate the cost tables of all experiments."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.tables import of_experiments, write

    write(of_experiments(snakemake.input), snakemake.output[0])
