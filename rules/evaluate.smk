# Scores of every run, and the tables of an experiment.


rule evaluate:
    """Score one run: IWELBO, effects of the perturbations, and what a simulation lets one recover."""
    input:
        model="<results>/{experiment}/runs/{run}/model.pt",
        arrays=arrays_of,
        screen=screen_of,
        split=split_of,
        reference=reference_of,
    output:
        scores="<results>/{experiment}/runs/{run}/scores.tsv",
        per_condition="<results>/{experiment}/runs/{run}/per_condition.tsv",
        effects="<results>/{experiment}/runs/{run}/effects.h5ad",
        perturbations="<results>/{experiment}/runs/{run}/perturbations.h5ad",
    log:
        "<logs>/{experiment}/evaluate/{run}.log",
    benchmark:
        "<benchmarks>/{experiment}/evaluate/{run}.tsv"
    priority: 5
    conda:
        "../envs/samsvae.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=60,
    params:
        settings=evaluation_of,
        simulated=lambda wildcards: run_of(wildcards).screen.kind.startswith("simulate"),
        device=STUDY.device,
        jobs_per_gpu=STUDY.jobs_per_gpu,
        code=code_of("evaluate"),
    script:
        "../workflow/scripts/evaluate.py"


rule pathway_accuracy:
    """How well the masks of a run predict the pathways of its perturbations, beside a null of permuted labels."""
    input:
        perturbations="<results>/{experiment}/runs/{run}/perturbations.h5ad",
        screen=screen_of,
    output:
        "<results>/{experiment}/runs/{run}/pathways.tsv",
    log:
        "<logs>/{experiment}/pathways/{run}.log",
    conda:
        "../envs/samsvae.yaml"
    threads: 1
    params:
        settings=evaluation_of,
        code=code_of("pathway_accuracy"),
    script:
        "../workflow/scripts/pathway_accuracy.py"


rule test_model_expression:
    """Differential expression in cells sampled from a run's model, as many as the data have."""
    input:
        model="<results>/{experiment}/runs/{run}/model.pt",
        arrays=arrays_of,
        data=lambda wildcards: f"<results>/data/{run_of(wildcards).dataset}/expression_tests.tsv",
    output:
        tests="<results>/{experiment}/runs/{run}/expression_tests.tsv",
        agreement="<results>/{experiment}/runs/{run}/expression_agreement.tsv",
    log:
        "<logs>/{experiment}/expression/{run}.log",
    conda:
        "../envs/samsvae.yaml"
    threads: 1
    resources:
        mem_mb=16000,
    params:
        settings=evaluation_of,
        code=code_of("test_model_expression"),
    script:
        "../workflow/scripts/test_model_expression.py"


rule collect:
    """The tables of an experiment: scores, histories and cost of all its runs."""
    input:
        grid="<results>/{experiment}/grid.tsv",
        scores=lambda wildcards: run_files(selected(wildcards.experiment), "scores.tsv"),
        histories=lambda wildcards: run_files(selected(wildcards.experiment), "history.tsv"),
        records=lambda wildcards: run_files(selected(wildcards.experiment), "run.json"),
        pathways=lambda wildcards: pathway_files(wildcards.experiment),
        baselines=lambda wildcards: split_files(wildcards.experiment, "baselines.tsv"),
    output:
        scores="<results>/{experiment}/scores.tsv",
        histories="<results>/{experiment}/histories.tsv",
        cost="<results>/{experiment}/cost.tsv",
    log:
        "<logs>/{experiment}/collect.log",
    conda:
        "../envs/samsvae.yaml"
    params:
        code=code_of("collect"),
    script:
        "../workflow/scripts/collect.py"
