"""Split the cells of a screen."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.screens.splits import summary, write_split
    from samsvae.screens.transfer_split import split_screen
    from samsvae.tables import write

    split = split_screen(snakemake.input.screen, snakemake.params.settings)
    write_split(split, snakemake.output.table)
    write(summary(split), snakemake.output.summary)
