"""Verify a local copy of a screen's source."""

from samsvae.study.script import session

with session(snakemake.log[0]):
    from samsvae.files import write_json
    from samsvae.screens.download import verify

    source = snakemake.params.source
    verify(snakemake.input[0], source["size"], source["checksum"])
    write_json({"size": source["size"], "checksum": source["checksum"]}, snakemake.output[0])
