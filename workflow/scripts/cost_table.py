"""One table of what the runs cost."""

from samsvae.session import session

with session(snakemake.log[0]):
    from samsvae.panels import histories
    from samsvae.tables import write

    write(histories(snakemake.input), snakemake.output[0])
