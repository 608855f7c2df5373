"""Filter the Replogle screen."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.screens.replogle import filter_published, read_genes, read_pathways

    filter_published(
        snakemake.input.source,
        snakemake.output[0],
        perturbed_genes=read_genes(snakemake.input.perturbed),
        measured_genes=read_genes(snakemake.input.measured),
        pathways=read_pathways(snakemake.input.pathways),
        checksum=snakemake.params.checksum,
        **snakemake.params.options,
    )
