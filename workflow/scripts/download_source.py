"""Fetch a screen's source file."""

from samsvae.session import session

with session(snakemake.log[0]):
    from samsvae.data.download import fetch

    fetch(target=snakemake.output[0], **snakemake.params.source)
