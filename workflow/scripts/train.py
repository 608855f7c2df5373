"""Train one run on a card of its own, or on the CPU."""

from samsvae.devices import hold_device
from samsvae.session import session

with session(snakemake.log[0]), hold_device(snakemake.params.device, snakemake.params.jobs_per_gpu) as device:
    from samsvae.fit import fit  # imports torch, which reads once which cards it may see

    fit(
        snakemake.params.settings,
        snakemake.input.arrays,
        snakemake.input.split,
        device,
        out=dict(snakemake.output.items()),
    )
