"""Test cells sampled from a run's model for differential expression."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.evaluation.expression import model_expression
    from samsvae.tables import read, write

    tests, agreement = model_expression(
        snakemake.input.model, snakemake.input.arrays, read(snakemake.input.data), settings=snakemake.params.settings
    )
    write(tests, snakemake.output.tests)
    write(agreement, snakemake.output.agreement)
