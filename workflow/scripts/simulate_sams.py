"""Simulate the SAMS-VAE paper's data."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.screens.screen import write_screen
    from samsvae.screens.simulate import sams

    options = snakemake.params.options
    screen = sams(
        seed=options["data_seed"],
        n_latent=options["sim_latents"],
        n_perturbations=options["n_perturbations"],
        n_features=options["n_features"],
        cells=(options["cells"], options["val_cells"], options["test_cells"]),
        mask_prob=options["sim_mask_prob"],
    )
    write_screen(screen, snakemake.output[0], real_valued=True)
