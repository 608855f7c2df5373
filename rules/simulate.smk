# Simulated screens, with their true masks, effects and latents inside.


rule simulate_sams:
    """The simulation of the SAMS-VAE paper's release."""
    output:
        "<results>/data/{dataset}/screen.h5ad",
    log:
        "<logs>/simulate/{dataset}.log",
    wildcard_constraints:
        dataset=of_kind("simulate_sams"),
    conda:
        "../envs/samsvae.yaml"
    params:
        options=options_of,
        code=code_of("simulate_sams"),
    script:
        "../workflow/scripts/simulate_sams.py"


rule simulate_sparse_shift:
    """The sparse-shift simulation of the SVAE+ paper."""
    output:
        "<results>/data/{dataset}/screen.h5ad",
    log:
        "<logs>/simulate/{dataset}.log",
    wildcard_constraints:
        dataset=of_kind("simulate_sparse_shift"),
    conda:
        "../envs/samsvae.yaml"
    params:
        options=options_of,
        code=code_of("simulate_sparse_shift"),
    script:
        "../workflow/scripts/simulate_sparse_shift.py"
