"""Draw what simulations let one recover."""

from samsvae.study.script import session

with session(snakemake.log[0]):
    from samsvae.figures.recovery import draw, one_setting
    from samsvae.figures.style import save
    from samsvae.tables import read

    sams, svae = (one_setting(read(path)) for path in (snakemake.input.sams, snakemake.input.svae))
    save(draw(sams, svae), snakemake.output.png[:-4], {"sams": sams, "svae": svae})
