"""Draw the effects of data and model."""

from samsvae.study.script import session

with session(snakemake.log[0]):
    from samsvae.figures.effects import draw, tables
    from samsvae.figures.style import save
    from samsvae.study.collect import collect_scores
    from samsvae.tables import read

    files = snakemake.input
    scores = collect_scores(read(files.grid), files.scores, [], [])
    shown = tables(scores, files.effects, files.reference, files.screen, model=snakemake.params.model)
    save(draw(**shown), snakemake.output.png[:-4], {"data": shown["data"], "model": shown["model"]})
