"""Train one run on a card of its own, or on the CPU, and score it."""

from samsvae.devices import hold_device
from samsvae.session import session

# where it runs and how often its state is kept are no params: they are no reason to run again
device, jobs_per_gpu = snakemake.config["device"], snakemake.config["jobs_per_gpu"]
keep_every = 60.0 * snakemake.config["checkpoint_minutes"]

with session(snakemake.log[0]), hold_device(device, jobs_per_gpu) as device:
    # torch reads once which cards it may see, so these come after the choice of a card
    from samsvae.evaluation import evaluate
    from samsvae.fit import fit

    found, made, params = snakemake.input, dict(snakemake.output.items()), snakemake.params
    fit(
        params.settings,
        found.arrays,
        found.split,
        device,
        out=made,
        code=params.training_code,
        keep_every=keep_every,
    )
    evaluate(
        {**found, "model": made["model"]},
        made,
        settings=params.evaluation,
        simulated=params.simulated,
        device=device,
    )
