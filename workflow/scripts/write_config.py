"""Write the configuration in force."""

from samsvae.session import session

with session(snakemake.log[0]):
    from samsvae.files import write_json

    write_json(snakemake.params.config, snakemake.output[0])
