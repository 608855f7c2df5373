"""Write the table of an experiment's runs."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.files import write_table

    write_table(snakemake.params.grid, snakemake.output[0])
