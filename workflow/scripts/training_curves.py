"""Draw the training curves."""

from samsvae.study.script import session

with session(snakemake.log[0]):
    from samsvae.figures.curves import draw, tables
    from samsvae.figures.style import save

    histories = tables(snakemake.input.histories, snakemake.input.grids)
    save(draw(histories), snakemake.output.png[:-4], {"": histories})
