"""Draw the data card of an experiment's screen and split."""

from samsvae.study.script import session

with session(snakemake.log[0]):
    from samsvae.figures.data_card import draw
    from samsvae.figures.style import save
    from samsvae.screens.data_card import data_card

    files, params = snakemake.input, snakemake.params
    tables = vars(data_card(files.screen, files.split, name=params.dataset, split_name=params.split))
    save(draw(**tables), snakemake.output.png[:-4], tables)
