# Simulated screens, which contain their true masks, effects and latents.


rule simulate_sams:
    """Simulate a screen as the release of the SAMS-VAE paper does."""
    output:
        "<results>/data/{dataset}/screen.h5ad",
    log:
        "<logs>/simulate/{dataset}.log",
    wildcard_constraints:
        dataset=PLAN.datasets_of_kind("simulate_sams"),
    priority: 20
    conda:
        "../envs/samsvae.yaml"
    params:
        options=PLAN.options,
        code=code_of("simulate_sams"),
    script:
        "../workflow/scripts/simulate_sams.py"


rule simulate_sparse_shift:
    """Simulate a screen by the sparse-shift model of the SVAE+ paper."""
    output:
        "<results>/data/{dataset}/screen.h5ad",
    log:
        "<logs>/simulate/{dataset}.log",
    wildcard_constraints:
        dataset=PLAN.datasets_of_kind("simulate_sparse_shift"),
    priority: 20
    conda:
        "../envs/samsvae.yaml"
    params:
        options=PLAN.options,
        code=code_of("simulate_sparse_shift"),
    script:
        "../workflow/scripts/simulate_sparse_shift.py"
