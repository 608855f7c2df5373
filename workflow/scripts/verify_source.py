"""Verify a local copy of a screen's source."""

from samsvae.session import session

with session(snakemake.log[0]):
    from samsvae.data.download import verify
    from samsvae.files import write_json

    source = snakemake.params.source
    verify(snakemake.input[0], source["size"], source["checksum"])
    write_json({"size": source["size"], "checksum": source["checksum"]}, snakemake.output[0])
