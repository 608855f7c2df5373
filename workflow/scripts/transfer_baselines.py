"""Score the new perturbations of a split without a model."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.evaluation.transfer_baselines import write_baselines

    found, transfer = snakemake.input, snakemake.params.transfer
    write_baselines(
        found.arrays, found.split, snakemake.output[0], settings=transfer["settings"], names=transfer["split"]
    )
