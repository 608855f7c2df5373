"""Predict pathways from the masks of a run."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.evaluation.metrics.pathways import mask_pathways
    from samsvae.matrices import read_h5ad
    from samsvae.screens.screen import read_perturbations
    from samsvae.tables import write

    accuracy = mask_pathways(
        read_h5ad(snakemake.input.perturbations),
        read_perturbations(snakemake.input.screen),
        snakemake.params.settings,
    )
    write(accuracy, snakemake.output[0])
