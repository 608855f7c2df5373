"""Draw Table 1."""

from samsvae.study.script import session

with session(snakemake.log[0]):
    from pathlib import Path

    from samsvae.figures import runs as panels
    from samsvae.figures.replogle_table1 import replogle_table1
    from samsvae.figures.style import save
    from samsvae.tables import read

    comparable, folder = snakemake.params.comparable, Path(snakemake.input.published).parent
    table = panels.replogle_table1(read(snakemake.input.scores), folder, comparable=comparable)
    save(replogle_table1(table, comparable=comparable), snakemake.output.png[:-4], {"": table})
