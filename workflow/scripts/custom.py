"""Draw a screen of the user's own."""

from samsvae.study.script import session

with session(snakemake.log[0]):
    from samsvae.figures.own_screen import draw, tables
    from samsvae.figures.runs import or_empty
    from samsvae.figures.style import save
    from samsvae.tables import read

    files = dict(snakemake.input.items())
    files["effects_files"] = files.pop("effects")
    shown = tables(read(files.pop("scores")), **files)
    data = {name: shown[name] for name in ("scores", "per_condition")}
    data |= {"data": shown["data_effects"], "model": shown["model_effects"]}
    data["masks"] = or_empty(shown["mask_probability"])
    save(draw(**shown), snakemake.output.png[:-4], data)
