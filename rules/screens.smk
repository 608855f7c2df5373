# Screens: download or simulate the source, filter it, pack it for training, split its cells, and compute the effects and
# tests of the data. What trainings wait for has the highest priority, so that no core is left without work at the end.


wildcard_constraints:
    experiment=alternatives(PLAN.study.settings),
    dataset=alternatives(PLAN.datasets),
    screen=alternatives(PLAN.study.screens),
    split=r"[\w.-]+",
    run=r"[\w.-]+",


rule download_source:
    """Download the source of a screen: resumed, verified, and renamed into place.

    An edit of the code never downloads it again, because its checksum proves that it is correct.
    """
    output:
        "<results>/sources/{screen}.h5ad",
    log:
        "<logs>/download/{screen}.log",
    wildcard_constraints:
        screen=PLAN.screens_from("urls"),
    priority: 20
    localrule: True
    conda:
        "../envs/samsvae.yaml"
    params:
        source=PLAN.source_settings,
    script:
        "../workflow/scripts/download_source.py"


rule verify_source:
    """Verify a local copy of a source by its size and checksum."""
    input:
        PLAN.local_source,
    output:
        "<results>/sources/{screen}.verified",
    log:
        "<logs>/verify/{screen}.log",
    priority: 20
    conda:
        "../envs/samsvae.yaml"
    params:
        source=PLAN.source_settings,
        code=code_of("verify_source"),
    script:
        "../workflow/scripts/verify_source.py"


rule make_miniature_replogle:
    """Create a small synthetic screen in the raw schema of the Replogle file (demo)."""
    input:
        labels=ROOT / "resources/miniature/replogle_labels.tsv",
        measured=ROOT / "resources/replogle/measured_genes.tsv",
        perturbed=ROOT / "resources/replogle/perturbed_genes.tsv",
    output:
        "<results>/sources/{screen}.h5ad",
    log:
        "<logs>/miniature/{screen}.log",
    wildcard_constraints:
        screen=PLAN.screens_from("miniature", "replogle"),
    priority: 20
    conda:
        "../envs/samsvae.yaml"
    params:
        settings=PLAN.miniature_settings,
        code=code_of("make_miniature_replogle"),
    script:
        "../workflow/scripts/make_miniature_replogle.py"


rule make_miniature_norman:
    """Create a small synthetic screen in the schema of the Norman file (demo)."""
    input:
        measured=ROOT / "resources/replogle/measured_genes.tsv",
    output:
        "<results>/sources/{screen}.h5ad",
    log:
        "<logs>/miniature/{screen}.log",
    wildcard_constraints:
        screen=PLAN.screens_from("miniature", "norman"),
    priority: 20
    conda:
        "../envs/samsvae.yaml"
    params:
        settings=PLAN.miniature_settings,
        code=code_of("make_miniature_norman"),
    script:
        "../workflow/scripts/make_miniature_norman.py"


rule filter_replogle:
    """Filter a Replogle screen to the cells, controls and genes of the papers, or keep all of it."""
    input:
        source=PLAN.source,
        verified=PLAN.verification,
        perturbed=ROOT / "resources/replogle/perturbed_genes.tsv",
        measured=ROOT / "resources/replogle/measured_genes.tsv",
        pathways=ROOT / "resources/replogle/pathways.tsv",
    output:
        "<results>/data/{dataset}/screen.h5ad",
    log:
        "<logs>/filter/{dataset}.log",
    benchmark:
        "<benchmarks>/filter/{dataset}.tsv"
    wildcard_constraints:
        dataset=PLAN.datasets_of_kind("replogle"),
    priority: 20
    conda:
        "../envs/samsvae.yaml"
    resources:
        mem_mb=2000,
    params:
        options=PLAN.options,
        checksum=PLAN.checksum,
        code=code_of("filter_replogle"),
    script:
        "../workflow/scripts/filter_replogle.py"


rule filter_norman:
    """Filter Norman's screen to the highly variable genes, with single genes and pairs as conditions."""
    input:
        source=PLAN.source,
        verified=PLAN.verification,
        tables=PLAN.option_tables,
    output:
        "<results>/data/{dataset}/screen.h5ad",
    log:
        "<logs>/filter/{dataset}.log",
    benchmark:
        "<benchmarks>/filter/{dataset}.tsv"
    wildcard_constraints:
        dataset=PLAN.datasets_of_kind("norman"),
    priority: 20
    conda:
        "../envs/samsvae.yaml"
    resources:
        mem_mb=16000,
    params:
        options=PLAN.options,
        checksum=PLAN.checksum,
        code=code_of("filter_norman"),
    script:
        "../workflow/scripts/filter_norman.py"


rule filter_custom:
    """Filter a screen of your own, as its block of the configuration describes."""
    input:
        source=PLAN.source,
        verified=PLAN.verification,
        tables=PLAN.option_tables,
    output:
        "<results>/data/{dataset}/screen.h5ad",
    log:
        "<logs>/filter/{dataset}.log",
    benchmark:
        "<benchmarks>/filter/{dataset}.tsv"
    wildcard_constraints:
        dataset=PLAN.datasets_of_kind("custom"),
    priority: 20
    conda:
        "../envs/samsvae.yaml"
    resources:
        mem_mb=16000,
    params:
        options=PLAN.options,
        checksum=PLAN.checksum,
        code=code_of("filter_custom"),
    script:
        "../workflow/scripts/filter_custom.py"


rule pack_arrays:
    """Pack the counts and names of a screen into the arrays that training reads with numpy alone."""
    input:
        "<results>/data/{dataset}/screen.h5ad",
    output:
        "<results>/data/{dataset}/arrays.npz",
    log:
        "<logs>/arrays/{dataset}.log",
    priority: 20
    conda:
        "../envs/samsvae.yaml"
    resources:
        mem_mb=2000,
    params:
        code=code_of("pack_arrays"),
    script:
        "../workflow/scripts/pack_arrays.py"


rule split_cells:
    """Assign cells to training, validation and test: a table with one row per cell, and a summary."""
    input:
        screen="<results>/data/{dataset}/screen.h5ad",
        table=one_sentence(PLAN.split_table),
    output:
        table="<results>/{experiment}/splits/{dataset}/{split}/cells.tsv",
        summary="<results>/{experiment}/splits/{dataset}/{split}/summary.tsv",
    log:
        "<logs>/{experiment}/splits/{dataset}/{split}.log",
    priority: 20
    conda:
        "../envs/samsvae.yaml"
    params:
        settings=one_sentence(PLAN.split_settings),
        code=code_of("split_cells"),
    script:
        "../workflow/scripts/split_cells.py"


rule reference_effects:
    """Compute the effects of the perturbations in the data, and score predictions that need no model."""
    input:
        screen="<results>/data/{dataset}/screen.h5ad",
        arrays="<results>/data/{dataset}/arrays.npz",
        split="<results>/{experiment}/splits/{dataset}/{split}/cells.tsv",
    output:
        **SPLIT_OUTPUT,
    log:
        "<logs>/{experiment}/splits/{dataset}/{split}.effects.log",
    priority: 20
    conda:
        "../envs/samsvae.yaml"
    resources:
        mem_mb=8000,
    params:
        rules=RULES,
        code=code_of("reference_effects"),
    script:
        "../workflow/scripts/reference_effects.py"


rule data_expression:
    """Test every condition of the data against control for differential expression: Wilcoxon and t-test."""
    input:
        "<results>/data/{dataset}/screen.h5ad",
    output:
        "<results>/data/{dataset}/expression_tests.tsv",
    log:
        "<logs>/expression/{dataset}.log",
    conda:
        "../envs/samsvae.yaml"
    resources:
        mem_mb=16000,
    params:
        code=code_of("data_expression"),
    script:
        "../workflow/scripts/data_expression.py"
