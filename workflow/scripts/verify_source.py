"""Verify a local copy of a screen's source."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.files import write_json
    from samsvae.screens.download import verify

    source = snakemake.params.source
    verify(snakemake.input[0], source["size"], source["checksum"])
    write_json({"size": source["size"], "checksum": source["checksum"]}, snakemake.output[0])
