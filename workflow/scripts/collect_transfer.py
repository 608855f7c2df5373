"""Collect the scores of new perturbations of an experiment."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.evaluation.transfer_tables import collect_transfer
    from samsvae.tables import read, write

    found = snakemake.input
    write(collect_transfer(read(found.grid), found.runs, found.baselines), snakemake.output[0])
