"""Draw one figure of an experiment from its files."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.figures.write import write_figure

    params = snakemake.params
    write_figure(params.figure, dict(snakemake.input.items()), params.settings, snakemake.output.png)
