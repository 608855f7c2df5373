"""Write the complete configuration to one file."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.files import atomic

    with atomic(snakemake.output[0]) as aside:
        aside.write_text(snakemake.params.config)
