"""Write Snakemake's own report."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.study.report import write_provenance

    write_provenance(
        snakemake.params.snakefile, snakemake.input.config, list(snakemake.input.made), snakemake.output[0]
    )
