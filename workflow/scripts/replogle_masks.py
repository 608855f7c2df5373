"""Draw masks and embeddings."""

from samsvae.study.script import session

with session(snakemake.log[0]):
    from samsvae.figures import runs as panels
    from samsvae.figures.replogle_masks import replogle_masks
    from samsvae.figures.style import save
    from samsvae.study.collect import collect_scores
    from samsvae.tables import read

    files = snakemake.input
    scores = collect_scores(read(files.grid), files.scores, [], [])
    shown = panels.masks(scores, files.perturbations, files.pathways, files.screen, model=snakemake.params.model)
    data = {name: shown[name] for name in ("mask_probability", "embedding", "accuracy")}
    data["pathway"] = shown["pathway"].to_frame()
    save(replogle_masks(**shown), snakemake.output.png[:-4], data)
