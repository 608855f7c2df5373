"""Draw the training curves."""

from samsvae.session import session

with session(snakemake.log[0]):
    from samsvae.figures.style import save
    from samsvae.figures.training_curves import training_curves
    from samsvae.tables import of_experiments

    histories = of_experiments(snakemake.input)
    save(training_curves(histories), snakemake.output.png[:-4], {"": histories})
