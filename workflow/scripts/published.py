"""Compare every published number with ours."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.study.reproduction import reproduction
    from samsvae.tables import write

    write(reproduction(snakemake.params.sources), snakemake.output[0])
