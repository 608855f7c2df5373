"""Split the cells of a screen."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.screens.screen import read_tables
    from samsvae.screens.splits import make_split, summary, write_split
    from samsvae.tables import write

    screen = read_tables(snakemake.input.screen)
    split = make_split(screen.obs, separator=screen.uns["separator"], **snakemake.params.settings)
    write_split(split, snakemake.output.table)
    write(summary(split), snakemake.output.summary)
