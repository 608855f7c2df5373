"""Simulate a small screen in the schema of the Norman file."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.screens.miniature import norman_source
    from samsvae.screens.replogle import read_genes

    norman_source(snakemake.output[0], gene_names=read_genes(snakemake.input.measured), **snakemake.params.settings)
