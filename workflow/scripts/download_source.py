"""Fetch a screen's source file."""

from samsvae.session import session

with session(snakemake.log[0]):
    from samsvae.data.download import fetch

    urls = snakemake.config["screens"][snakemake.wildcards.screen]["source"]["urls"]
    fetch(urls, snakemake.output[0], **snakemake.params.source)
