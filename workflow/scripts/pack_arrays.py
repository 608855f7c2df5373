"""Lay a screen out for training."""

from samsvae.session import session

with session(snakemake.log[0]):
    from samsvae.data.screen import write_arrays

    write_arrays(snakemake.input[0], snakemake.output[0])
