"""Simulate a small screen in the raw schema of the Replogle file."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.screens.miniature import replogle_source
    from samsvae.screens.replogle import read_genes

    replogle_source(
        snakemake.output[0],
        labels=snakemake.input.labels,
        measured_genes=read_genes(snakemake.input.measured),
        other_genes=read_genes(snakemake.input.perturbed),
        **snakemake.params.settings,
    )
