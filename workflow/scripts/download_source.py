"""Download the source file of a screen."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.screens.download import fetch

    urls = snakemake.config["screens"][snakemake.wildcards.screen]["source"]["urls"]
    fetch(urls, snakemake.output[0], **snakemake.params.source)
