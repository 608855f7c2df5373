"""Draw masks and embeddings."""

from samsvae.study.script import session

with session(snakemake.log[0]):
    from samsvae.figures.masks import draw, tables
    from samsvae.figures.style import save
    from samsvae.study.collect import collect_scores
    from samsvae.tables import read

    files = snakemake.input
    scores = collect_scores(read(files.grid), files.scores, [], [])
    shown = tables(scores, files.perturbations, files.pathways, files.screen, model=snakemake.params.model)
    data = {name: shown[name] for name in ("mask_probability", "embedding", "accuracy")}
    data["pathway"] = shown["pathway"].to_frame()
    save(draw(**shown), snakemake.output.png[:-4], data)
