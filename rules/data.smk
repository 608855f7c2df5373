# Screens: fetch or make the source, filter it, lay it out for training, split it, and what the data say by themselves.


wildcard_constraints:
    experiment=alternatives(STUDY.settings),
    dataset=alternatives(DATASETS),
    screen=alternatives(STUDY.screens),
    split=r"[\w.-]+",
    run=r"[\w.-]+",


rule download_source:
    """Download the source of a screen: resumed, verified, put in place by rename.

    No edit of code downloads it again: its checksum says that it is right.
    """
    output:
        "<results>/sources/{screen}.h5ad",
    log:
        "<logs>/download/{screen}.log",
    wildcard_constraints:
        screen=sources_of("urls"),
    localrule: True
    conda:
        "../envs/samsvae.yaml"
    params:
        source=source_settings,
    script:
        "../workflow/scripts/download_source.py"


rule verify_source:
    """Verify a local copy of a source by its size and checksum."""
    input:
        local_source,
    output:
        "<results>/sources/{screen}.verified",
    log:
        "<logs>/verify/{screen}.log",
    conda:
        "../envs/samsvae.yaml"
    params:
        source=source_settings,
        code=code_of("verify_source"),
    script:
        "../workflow/scripts/verify_source.py"


rule make_miniature_replogle:
    """A small made screen in the raw schema of the Replogle file (demo)."""
    input:
        labels=ROOT / "resources/miniature/replogle_labels.tsv",
        measured=ROOT / "resources/replogle/measured_genes.tsv",
        perturbed=ROOT / "resources/replogle/perturbed_genes.tsv",
    output:
        "<results>/sources/{screen}.h5ad",
    log:
        "<logs>/miniature/{screen}.log",
    wildcard_constraints:
        screen=sources_of("miniature", "replogle"),
    conda:
        "../envs/samsvae.yaml"
    params:
        settings=miniature_settings,
        code=code_of("make_miniature_replogle"),
    script:
        "../workflow/scripts/make_miniature_replogle.py"


rule make_miniature_norman:
    """A small made screen in the schema of the Norman file (demo)."""
    input:
        measured=ROOT / "resources/replogle/measured_genes.tsv",
    output:
        "<results>/sources/{screen}.h5ad",
    log:
        "<logs>/miniature/{screen}.log",
    wildcard_constraints:
        screen=sources_of("miniature", "norman"),
    conda:
        "../envs/samsvae.yaml"
    params:
        settings=miniature_settings,
        code=code_of("make_miniature_norman"),
    script:
        "../workflow/scripts/make_miniature_norman.py"


rule filter_replogle:
    """A Replogle screen to the cells, controls and genes of the papers, or all of it."""
    input:
        source=source_of,
        verified=verification_of,
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
        dataset=of_kind("replogle"),
    conda:
        "../envs/samsvae.yaml"
    resources:
        mem_mb=2000,
    params:
        options=options_of,
        checksum=checksum_of,
        code=code_of("filter_replogle"),
    script:
        "../workflow/scripts/filter_replogle.py"


rule filter_norman:
    """Norman's screen to the highly variable genes, with single genes and pairs as conditions."""
    input:
        source=source_of,
        verified=verification_of,
        tables=lambda wildcards: DATASETS[wildcards.dataset].options.tables,
    output:
        "<results>/data/{dataset}/screen.h5ad",
    log:
        "<logs>/filter/{dataset}.log",
    benchmark:
        "<benchmarks>/filter/{dataset}.tsv"
    wildcard_constraints:
        dataset=of_kind("norman"),
    conda:
        "../envs/samsvae.yaml"
    resources:
        mem_mb=16000,
    params:
        options=options_of,
        checksum=checksum_of,
        code=code_of("filter_norman"),
    script:
        "../workflow/scripts/filter_norman.py"


rule filter_custom:
    """A screen of your own, as its block of the configuration describes it."""
    input:
        source=source_of,
        verified=verification_of,
        tables=lambda wildcards: DATASETS[wildcards.dataset].options.tables,
    output:
        "<results>/data/{dataset}/screen.h5ad",
    log:
        "<logs>/filter/{dataset}.log",
    benchmark:
        "<benchmarks>/filter/{dataset}.tsv"
    wildcard_constraints:
        dataset=of_kind("custom"),
    conda:
        "../envs/samsvae.yaml"
    resources:
        mem_mb=16000,
    params:
        options=options_of,
        checksum=checksum_of,
        code=code_of("filter_custom"),
    script:
        "../workflow/scripts/filter_custom.py"


rule pack_arrays:
    """The counts and names of a screen as training reads them, with numpy alone."""
    input:
        "<results>/data/{dataset}/screen.h5ad",
    output:
        "<results>/data/{dataset}/arrays.npz",
    log:
        "<logs>/arrays/{dataset}.log",
    conda:
        "../envs/samsvae.yaml"
    resources:
        mem_mb=2000,
    params:
        code=code_of("pack_arrays"),
    script:
        "../workflow/scripts/pack_arrays.py"


rule split_cells:
    """Which cells train, validate and test: a table with a row per cell, and its summary."""
    input:
        screen="<results>/data/{dataset}/screen.h5ad",
        table=written_split,
    output:
        table="<results>/{experiment}/splits/{dataset}/{split}/cells.tsv",
        summary="<results>/{experiment}/splits/{dataset}/{split}/summary.tsv",
    log:
        "<logs>/{experiment}/splits/{dataset}/{split}.log",
    conda:
        "../envs/samsvae.yaml"
    params:
        settings=split_settings,
        code=code_of("split_cells"),
    script:
        "../workflow/scripts/split_cells.py"


rule reference_effects:
    """Effects of the perturbations in the data, and the scores of predictions that need no model."""
    input:
        screen="<results>/data/{dataset}/screen.h5ad",
        arrays="<results>/data/{dataset}/arrays.npz",
        split="<results>/{experiment}/splits/{dataset}/{split}/cells.tsv",
    output:
        effects="<results>/{experiment}/splits/{dataset}/{split}/effects.h5ad",
        scores="<results>/{experiment}/splits/{dataset}/{split}/baselines.tsv",
        per_condition="<results>/{experiment}/splits/{dataset}/{split}/per_condition.tsv",
    log:
        "<logs>/{experiment}/splits/{dataset}/{split}.effects.log",
    conda:
        "../envs/samsvae.yaml"
    resources:
        mem_mb=8000,
    params:
        code=code_of("reference_effects"),
    script:
        "../workflow/scripts/reference_effects.py"


rule test_expression:
    """Differential expression of every condition against control in the data: Wilcoxon and t-test by scanpy."""
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
        code=code_of("test_expression"),
    script:
        "../workflow/scripts/test_expression.py"
