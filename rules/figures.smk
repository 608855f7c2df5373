# One rule per figure or table of the report, named as the target that a person types.


rule replogle_table1:
    """Table 1: test IWELBO, pathway accuracy of masks and ATE correlation of every row, published numbers beside."""
    input:
        scores="<results>/replogle/scores.tsv",
        published=RESOURCES / "published/replogle_table1.tsv",
    output:
        png=report(
            "<results>/figures/replogle_table1.png",
            caption="../workflow/report/replogle_table1.rst",
            category=chapter("Replogle"),
            labels={"figure": "1 Table 1 of the paper", "as": "picture"},
        ),
        pdf="<results>/figures/replogle_table1.pdf",
        table=report(
            "<results>/figures/replogle_table1.tsv",
            caption="../workflow/report/replogle_table1.rst",
            category=chapter("Replogle"),
            labels={"figure": "1 Table 1 of the paper", "as": "table"},
        ),
    log:
        "<logs>/figures/replogle_table1.log",
    conda:
        "../envs/samsvae.yaml"
    params:
        comparable=published_screen("replogle"),
        code=code_of("replogle_table1"),
    script:
        "../workflow/scripts/replogle_table1.py"


rule replogle_masks:
    """Masks and embeddings of SAMS-VAE by pathway, and how well the masks of every model predict pathways."""
    input:
        grid="<results>/replogle/grid.tsv",
        scores=lambda wildcards: run_files(selected("replogle", masked=True), "scores.tsv"),
        table=lambda wildcards: table_of(selected("replogle", masked=True)),
        perturbations=lambda wildcards: run_files(selected("replogle", [SHOWN]), "perturbations.h5ad"),
        pathways=lambda wildcards: run_files(selected("replogle", masked=True), "pathways.tsv"),
        screen=lambda wildcards: dataset_file("replogle", "screen.h5ad"),
    output:
        png=report(
            "<results>/figures/replogle_masks.png",
            caption="../workflow/report/replogle_masks.rst",
            category=chapter("Replogle"),
            labels={"figure": "2 Masks and pathways", "as": "picture"},
        ),
        pdf="<results>/figures/replogle_masks.pdf",
        mask="<results>/figures/replogle_masks.mask_probability.tsv",
        embedding="<results>/figures/replogle_masks.embedding.tsv",
        accuracy="<results>/figures/replogle_masks.accuracy.tsv",
        pathway="<results>/figures/replogle_masks.pathway.tsv",
    log:
        "<logs>/figures/replogle_masks.log",
    conda:
        "../envs/samsvae.yaml"
    params:
        model=SHOWN,
        code=code_of("replogle_masks"),
    script:
        "../workflow/scripts/replogle_masks.py"


rule replogle_effects:
    """Average treatment effects, data beside SAMS-VAE."""
    input:
        grid="<results>/replogle/grid.tsv",
        scores=lambda wildcards: run_files(selected("replogle", [SHOWN]), "scores.tsv"),
        table=lambda wildcards: table_of(selected("replogle", [SHOWN])),
        effects=lambda wildcards: run_files(selected("replogle", [SHOWN]), "effects.h5ad"),
        reference=lambda wildcards: first_split_file("replogle", "effects.h5ad"),
        screen=lambda wildcards: dataset_file("replogle", "screen.h5ad"),
    output:
        png=report(
            "<results>/figures/replogle_effects.png",
            caption="../workflow/report/replogle_effects.rst",
            category=chapter("Replogle"),
            labels={"figure": "3 Effects", "as": "picture"},
        ),
        pdf="<results>/figures/replogle_effects.pdf",
        data="<results>/figures/replogle_effects.data.tsv",
        model="<results>/figures/replogle_effects.model.tsv",
    log:
        "<logs>/figures/replogle_effects.log",
    conda:
        "../envs/samsvae.yaml"
    params:
        model=SHOWN,
        code=code_of("replogle_effects"),
    script:
        "../workflow/scripts/replogle_effects.py"


rule replogle_de:
    """Differential expression of data and models: scatter, volcano, overlap of the strongest genes."""
    input:
        grid="<results>/replogle/grid.tsv",
        scores=lambda wildcards: run_files(selected("replogle", BESIDE), "scores.tsv"),
        table=lambda wildcards: table_of(selected("replogle", BESIDE)),
        effects=lambda wildcards: run_files(selected("replogle", [SHOWN]), "effects.h5ad"),
        tests=lambda wildcards: run_files(may_be_shown("replogle", BESIDE), "expression_tests.tsv"),
        agreement=lambda wildcards: run_files(may_be_shown("replogle", BESIDE), "expression_agreement.tsv"),
        data=lambda wildcards: dataset_file("replogle", "expression_tests.tsv"),
        reference=lambda wildcards: first_split_file("replogle", "effects.h5ad"),
        screen=lambda wildcards: dataset_file("replogle", "screen.h5ad"),
    output:
        png=report(
            "<results>/figures/replogle_de.png",
            caption="../workflow/report/replogle_de.rst",
            category=chapter("Replogle"),
            labels={"figure": "4 Differential expression", "as": "picture"},
        ),
        pdf="<results>/figures/replogle_de.pdf",
        overlap="<results>/figures/replogle_de.overlap.tsv",
        tests="<results>/figures/replogle_de.tests.tsv",
        model_tests="<results>/figures/replogle_de.model_tests.tsv",
        data_effects="<results>/figures/replogle_de.data_effects.tsv",
        model_effects="<results>/figures/replogle_de.model_effects.tsv",
    log:
        "<logs>/figures/replogle_de.log",
    conda:
        "../envs/samsvae.yaml"
    params:
        model=SHOWN,
        code=code_of("replogle_de"),
    script:
        "../workflow/scripts/replogle_de.py"


rule norman_ood:
    """Norman, pairs never seen: relative IWELBO and ATE correlation against the fraction of training pairs."""
    input:
        grid="<results>/norman_ood/grid.tsv",
        scores=lambda wildcards: run_files(norman_runs("norman_ood"), "scores.tsv"),
        table=lambda wildcards: table_of(norman_runs("norman_ood")),
        baselines=lambda wildcards: split_files("norman_ood", "baselines.tsv"),
        effects=lambda wildcards: run_files(norman_runs("norman_ood"), "effects.h5ad"),
        references=lambda wildcards: split_files("norman_ood", "effects.h5ad"),
        screen=lambda wildcards: dataset_file("norman_ood", "screen.h5ad"),
        published=RESOURCES / "published/norman_ood.csv",
    output:
        png=report(
            "<results>/figures/norman_ood.png",
            caption="../workflow/report/norman_ood.rst",
            category=chapter("Norman"),
            labels={"figure": "1 Pairs, unseen and seen", "as": "picture"},
        ),
        pdf="<results>/figures/norman_ood.pdf",
        scores="<results>/figures/norman_ood.scores.tsv",
        published="<results>/figures/norman_ood.published.tsv",
        interactions="<results>/figures/norman_ood.interactions.tsv",
    log:
        "<logs>/figures/norman_ood.log",
    conda:
        "../envs/samsvae.yaml"
    params:
        comparable=published_screen("norman_ood"),
        code=code_of("norman_ood"),
    script:
        "../workflow/scripts/norman_ood.py"


rule norman_efficiency:
    """Norman, few cells of pairs: relative IWELBO and ATE correlation against the fraction of their cells."""
    input:
        grid="<results>/norman_efficiency/grid.tsv",
        scores=lambda wildcards: run_files(norman_runs("norman_efficiency"), "scores.tsv"),
        table=lambda wildcards: table_of(norman_runs("norman_efficiency")),
        baselines=lambda wildcards: split_files("norman_efficiency", "baselines.tsv"),
        published=RESOURCES / "published/norman_data_efficiency.csv",
    output:
        png=report(
            "<results>/figures/norman_efficiency.png",
            caption="../workflow/report/norman_efficiency.rst",
            category=chapter("Norman"),
            labels={"figure": "2 Data efficiency", "as": "picture"},
        ),
        pdf="<results>/figures/norman_efficiency.pdf",
        scores="<results>/figures/norman_efficiency.scores.tsv",
        published="<results>/figures/norman_efficiency.published.tsv",
    log:
        "<logs>/figures/norman_efficiency.log",
    conda:
        "../envs/samsvae.yaml"
    params:
        comparable=published_screen("norman_efficiency"),
        code=code_of("norman_efficiency"),
    script:
        "../workflow/scripts/norman_efficiency.py"


rule simulation_recovery:
    """Simulations: recovery of true masks, effects and latents by every model."""
    input:
        sams="<results>/simulation_sams/scores.tsv",
        svae="<results>/simulation_svae/scores.tsv",
    output:
        png=report(
            "<results>/figures/simulation_recovery.png",
            caption="../workflow/report/simulation_recovery.rst",
            category=chapter("Simulations"),
            labels={"figure": "Recovery", "as": "picture"},
        ),
        pdf="<results>/figures/simulation_recovery.pdf",
        sams="<results>/figures/simulation_recovery.sams.tsv",
        svae="<results>/figures/simulation_recovery.svae.tsv",
    log:
        "<logs>/figures/simulation_recovery.log",
    conda:
        "../envs/samsvae.yaml"
    params:
        code=code_of("simulation_recovery"),
    script:
        "../workflow/scripts/simulation_recovery.py"


rule custom:
    """Your own screen: held-out likelihood, effects against the data's held-out effects, masks."""
    input:
        scores="<results>/custom/scores.tsv",
        per_condition=lambda wildcards: run_files(selected("custom"), "per_condition.tsv"),
        effects=lambda wildcards: run_files(selected("custom"), "effects.h5ad"),
        perturbations=lambda wildcards: run_files(selected("custom"), "perturbations.h5ad"),
        baseline_conditions=own_screen_file("per_condition.tsv"),
        reference=own_screen_file("effects.h5ad"),
        screen=lambda wildcards: dataset_file("custom", "screen.h5ad"),
    output:
        png=report(
            "<results>/figures/custom.png",
            caption="../workflow/report/custom.rst",
            category=chapter("Own screen"),
            labels={"figure": "Own screen", "as": "picture"},
        ),
        pdf="<results>/figures/custom.pdf",
        scores="<results>/figures/custom.scores.tsv",
        per_condition="<results>/figures/custom.per_condition.tsv",
        data="<results>/figures/custom.data.tsv",
        model="<results>/figures/custom.model.tsv",
        masks="<results>/figures/custom.masks.tsv",
    log:
        "<logs>/figures/custom.log",
    conda:
        "../envs/samsvae.yaml"
    params:
        code=code_of("custom"),
    script:
        "../workflow/scripts/custom.py"


rule training_curves:
    """Validation loss of every run against the step, one panel per experiment."""
    input:
        histories=expand("<results>/{experiment}/histories.tsv", experiment=STUDY.experiments),
        grids=expand("<results>/{experiment}/grid.tsv", experiment=STUDY.experiments),
    output:
        png=report(
            "<results>/figures/training_curves.png",
            caption="../workflow/report/training_curves.rst",
            category=chapter("Training"),
            labels={"figure": "1 Training curves", "as": "picture"},
        ),
        pdf="<results>/figures/training_curves.pdf",
        table="<results>/figures/training_curves.tsv",
    log:
        "<logs>/figures/training_curves.log",
    conda:
        "../envs/samsvae.yaml"
    params:
        code=code_of("training_curves"),
    script:
        "../workflow/scripts/training_curves.py"


rule data_cards:
    """The data card of every experiment."""
    input:
        data_cards_of_study(),


rule data_card:
    """What an experiment's screen holds, how it is split, and what was dropped."""
    input:
        screen=lambda wildcards: dataset_file(wildcards.experiment, "screen.h5ad"),
        split=lambda wildcards: first_split_file(wildcards.experiment, "cells.tsv"),
    output:
        png=report(
            "<results>/figures/data_card.{experiment}.png",
            caption="../workflow/report/data_card.rst",
            category=chapter("Data"),
            labels={"figure": "{experiment}", "as": "picture"},
        ),
        pdf="<results>/figures/data_card.{experiment}.pdf",
        facts=report(
            "<results>/figures/data_card.{experiment}.facts.tsv",
            caption="../workflow/report/data_card.rst",
            category=chapter("Data"),
            labels={"figure": "{experiment}", "as": "table"},
        ),
        conditions="<results>/figures/data_card.{experiment}.conditions.tsv",
        counts="<results>/figures/data_card.{experiment}.counts.tsv",
        genes="<results>/figures/data_card.{experiment}.genes.tsv",
        splits="<results>/figures/data_card.{experiment}.splits.tsv",
    log:
        "<logs>/figures/data_card.{experiment}.log",
    conda:
        "../envs/samsvae.yaml"
    params:
        dataset=first_of("dataset"),
        split=first_of("split"),
        code=code_of("data_card"),
    script:
        "../workflow/scripts/data_card.py"


rule write_config:
    """The whole configuration in force, as one file."""
    output:
        "<results>/config.json",
    log:
        "<logs>/config.log",
    localrule: True
    conda:
        "../envs/samsvae.yaml"
    params:
        config=config_in_force(),
        code=code_of("write_config"),
    script:
        "../workflow/scripts/write_config.py"


rule report:
    """The report: one HTML page that holds every figure and table with its caption, and how each was made."""
    input:
        config="<results>/config.json",
        made=[*figures_of_study(), *data_cards_of_study(), "<results>/cost.tsv"],
    output:
        "<results>/report.html",
    log:
        "<logs>/report.log",
    localrule: True
    conda:
        "../envs/samsvae.yaml"
    params:
        snakefile=ROOT / "Snakefile",
        code=code_of("report"),
    script:
        "../workflow/scripts/report.py"


rule cost_table:
    """What the runs cost: device, steps, seconds, memory, parameters."""
    input:
        expand("<results>/{experiment}/cost.tsv", experiment=STUDY.experiments),
    output:
        report(
            "<results>/cost.tsv",
            caption="../workflow/report/costs.rst",
            category=chapter("Training"),
            labels={"figure": "2 Cost of the runs", "as": "table"},
        ),
    log:
        "<logs>/cost.log",
    conda:
        "../envs/samsvae.yaml"
    params:
        code=code_of("cost_table"),
    script:
        "../workflow/scripts/cost_table.py"
