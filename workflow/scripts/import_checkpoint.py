"""Import the weights of a run from a checkpoint of the release, and score them."""

from samsvae.study.gpus import hold_device
from samsvae.study.script import job

device, jobs_per_gpu = snakemake.config["device"], snakemake.config["jobs_per_gpu"]

with job(snakemake), hold_device(device, jobs_per_gpu) as device:
    # torch reads only once which GPUs it may use, so these imports come after a GPU is chosen
    from samsvae.evaluation.run import evaluate
    from samsvae.interop.runs import import_checkpoint

    found, outputs, params = snakemake.input, dict(snakemake.output.items()), snakemake.params
    import_checkpoint(params.settings, found.checkpoint[0], found.arrays, found.split, device, out=outputs)
    evaluate(
        {**found, "model": outputs["model"]},
        outputs,
        settings=params.evaluation,
        simulated=params.simulated,
        rules=params.rules,
        device=device,
    )
