"""Draw the Norman screen, task B: few cells of pairs."""

from samsvae.study.script import session

with session(snakemake.log[0]):
    from pathlib import Path

    from samsvae.figures import runs as panels
    from samsvae.figures.norman import norman
    from samsvae.figures.style import save
    from samsvae.study.collect import collect_scores
    from samsvae.tables import read

    files, params = snakemake.input, snakemake.params
    scores = panels.norman_summary(collect_scores(read(files.grid), files.scores, [], files.baselines))
    published = panels.norman_published(Path(files.published).parent, "efficiency", comparable=params.comparable)
    figure = norman(scores, None, published, "efficiency")
    save(figure, snakemake.output.png[:-4], {"scores": scores, "published": panels.or_empty(published)})
