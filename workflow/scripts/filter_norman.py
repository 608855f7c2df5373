"""Filter the Norman screen."""

from samsvae.session import session

with session(snakemake.log[0]):
    from samsvae.data.norman import filter_screen

    filter_screen(
        snakemake.input.source, snakemake.output[0], checksum=snakemake.params.checksum, **snakemake.params.options
    )
