"""Draw the training curves."""

from samsvae.study.script import session

with session(snakemake.log[0]):
    from samsvae.figures import runs as panels
    from samsvae.figures.style import save
    from samsvae.figures.training_curves import training_curves

    histories = panels.curves(snakemake.input.histories, snakemake.input.grids)
    save(training_curves(histories), snakemake.output.png[:-4], {"": histories})
