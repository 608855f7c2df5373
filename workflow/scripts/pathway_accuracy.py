"""Predict pathways from the masks, embeddings and effects of runs."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.evaluation.pathways import pathways_of_runs
    from samsvae.tables import write

    found = snakemake.input
    (screen,) = found.screens  # runs of a batch read the same data
    accuracy = pathways_of_runs(found.perturbations, found.effects, screen, snakemake.params.settings)
    write(accuracy, snakemake.output[0])
