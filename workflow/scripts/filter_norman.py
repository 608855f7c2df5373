"""Filter the Norman screen."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.screens.norman import filter_screen

    filter_screen(
        snakemake.input.source, snakemake.output[0], checksum=snakemake.params.checksum, **snakemake.params.options
    )
