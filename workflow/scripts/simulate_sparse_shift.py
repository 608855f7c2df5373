"""Simulate the SVAE+ paper's data."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.screens.screen import write_screen
    from samsvae.screens.simulate import sparse_shift

    options = snakemake.params.options
    screen = sparse_shift(
        seed=options["data_seed"],
        n_latent=options["sim_latents"],
        n_perturbations=options["n_perturbations"],
        n_genes=options["n_features"],
        cells=(options["cells"], options["val_cells"], options["test_cells"]),
        n_held_out=options["n_held_out"],
        n_controls=options["n_controls"],
        normalisation=options["normalisation"],
    )
    write_screen(screen, snakemake.output[0])
