"""Predict pathways from the mean effects of the training cells of a split."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.evaluation.pathways import train_mean_pathways
    from samsvae.tables import write

    params = snakemake.params
    accuracy = train_mean_pathways(snakemake.input.effects, snakemake.input.screen, params.settings)
    write(accuracy.assign(rules=params.rules), snakemake.output[0])
