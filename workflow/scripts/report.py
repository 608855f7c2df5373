"""Write the report page."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.study.report_contents import report_of

    found, params = snakemake.input, snakemake.params
    report_of(
        snakemake.output[0],
        params.experiments,
        title=params.title,
        cost=found.cost,
        config=found.config,
        provenance=found.provenance,
        published=[*found.published],
    )
