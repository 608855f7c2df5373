"""Draw Table 1."""

from samsvae.study.script import session

with session(snakemake.log[0]):
    from pathlib import Path

    from samsvae.figures.scores import draw, tables
    from samsvae.figures.style import save
    from samsvae.tables import read

    comparable, folder = snakemake.params.comparable, Path(snakemake.input.published).parent
    table = tables(read(snakemake.input.scores), folder, comparable=comparable)
    save(draw(table, comparable=comparable), snakemake.output.png[:-4], {"": table})
