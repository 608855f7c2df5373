"""Score one run."""

from samsvae.devices import hold_device
from samsvae.session import session

with session(snakemake.log[0]), hold_device(snakemake.params.device, snakemake.params.jobs_per_gpu) as device:
    from samsvae.evaluation import evaluate  # imports torch, which reads once which cards it may see

    evaluate(
        dict(snakemake.input.items()),
        dict(snakemake.output.items()),
        settings=snakemake.params.settings,
        simulated=snakemake.params.simulated,
        device=device,
    )
