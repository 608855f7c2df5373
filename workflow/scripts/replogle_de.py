"""Draw differential expression."""

from samsvae.study.script import session

with session(snakemake.log[0]):
    from samsvae.figures.expression import draw, tables
    from samsvae.figures.style import save
    from samsvae.study.collect import collect_scores
    from samsvae.tables import read

    files = snakemake.input
    shown = tables(
        collect_scores(read(files.grid), files.scores, [], []),
        files.effects,
        files.tests,
        files.agreement,
        files.data,
        files.reference,
        files.screen,
        model=snakemake.params.model,
    )
    data = {"overlap": shown["overlap"], "tests": shown["data_de"], "model_tests": shown["model_de"]}
    data |= {name: shown[name] for name in ("data_effects", "model_effects")}
    save(draw(**shown), snakemake.output.png[:-4], data)
