"""Split the cells of a screen."""

from samsvae.session import session

with session(snakemake.log[0]):
    from samsvae.data.screen import read_screen
    from samsvae.data.splits import make_split, summary, write_split
    from samsvae.tables import write

    split = make_split(read_screen(snakemake.input.screen).obs, **snakemake.params.settings)
    write_split(split, snakemake.output.table)
    write(summary(split), snakemake.output.summary)
