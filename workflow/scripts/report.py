"""Write the report of what has been made."""

from samsvae.study.script import session

with session(snakemake.log[0]):
    from samsvae.study.report import write_report

    write_report(snakemake.params.snakefile, snakemake.input.config, list(snakemake.input.made), snakemake.output[0])
