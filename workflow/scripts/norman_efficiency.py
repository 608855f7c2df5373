"""Draw the Norman screen, task B: few cells of pairs."""

from samsvae.study.script import session

with session(snakemake.log[0]):
    from pathlib import Path

    from samsvae.figures.combinations import draw, norman_published, norman_summary
    from samsvae.figures.runs import or_empty
    from samsvae.figures.style import save
    from samsvae.study.collect import collect_scores
    from samsvae.tables import read

    files, params = snakemake.input, snakemake.params
    scores = norman_summary(collect_scores(read(files.grid), files.scores, [], files.baselines))
    published = norman_published(Path(files.published).parent, "efficiency", comparable=params.comparable)
    figure = draw(scores, None, published, "efficiency")
    save(figure, snakemake.output.png[:-4], {"scores": scores, "published": or_empty(published)})
