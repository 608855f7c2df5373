"""Write the complete configuration to one file."""

from samsvae.study.script import session

with session(snakemake.log[0]):
    from samsvae.files import atomic

    with atomic(snakemake.output[0]) as aside:
        aside.write_text(snakemake.params.config)
