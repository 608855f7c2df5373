"""Draw what simulations let one recover."""

from samsvae.study.script import session

with session(snakemake.log[0]):
    from samsvae.figures import runs as panels
    from samsvae.figures.simulation_recovery import simulation_recovery
    from samsvae.figures.style import save
    from samsvae.tables import read

    sams, svae = (panels.one_setting(read(path)) for path in (snakemake.input.sams, snakemake.input.svae))
    save(simulation_recovery(sams, svae), snakemake.output.png[:-4], {"sams": sams, "svae": svae})
