"""Draw the Norman screen, task A: pairs never seen."""

from samsvae.study.script import session

with session(snakemake.log[0]):
    from pathlib import Path

    from samsvae.figures.combinations import draw, norman_interactions, norman_published, norman_summary
    from samsvae.figures.runs import or_empty
    from samsvae.figures.style import save
    from samsvae.study.collect import collect_scores
    from samsvae.tables import read

    files, params = snakemake.input, snakemake.params
    each = collect_scores(read(files.grid), files.scores, [], files.baselines)
    scores = norman_summary(each)
    found = norman_interactions(each, files.effects, files.references, files.screen)
    published = norman_published(Path(files.published).parent, "ood", comparable=params.comparable)
    data = {"scores": scores, "interactions": found, "published": or_empty(published)}
    save(draw(scores, found, published, "ood"), snakemake.output.png[:-4], data)
