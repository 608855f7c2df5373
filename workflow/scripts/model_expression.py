"""Test cells sampled from the models of runs for differential expression."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.evaluation.expression import expression_of_runs
    from samsvae.tables import read, write

    found = snakemake.input
    (arrays,), (data,) = found.arrays, found.data  # runs of a batch read the same data
    tests, agreement = expression_of_runs(found.models, arrays, read(data), settings=snakemake.params.settings)
    write(tests, snakemake.output.tests)
    write(agreement, snakemake.output.agreement)
