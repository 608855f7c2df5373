"""Pack a screen for training."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.screens.pack import write_arrays

    write_arrays(snakemake.input[0], snakemake.output[0])
