# Evaluations of trained runs that only some figures need, and the tables of an experiment.


rule pathway_accuracy:
    """Predict the annotation of perturbations from the masks, embeddings and effects of a batch of runs.

    The batches are those that are trained together (runs_per_job); a run that is in none is scored by itself. Masks are
    compared with permuted labels.
    """
    input:
        perturbations=one_sentence(PLAN.each_masked("perturbations.h5ad")),
        effects=one_sentence(PLAN.each_masked("effects.h5ad")),
        screens=one_sentence(PLAN.masked_screens),
    output:
        "<results>/{experiment}/pathways/{batch}.tsv",
    log:
        "<logs>/{experiment}/pathways/{batch}.log",
    benchmark:
        "<benchmarks>/{experiment}/pathways/{batch}.tsv"
    conda:
        "../envs/samsvae.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=PLAN.minutes_of_pathways,
    params:
        settings=PLAN.evaluation,
        code=code_of("pathway_accuracy"),
    script:
        "../workflow/scripts/pathway_accuracy.py"


rule pathway_baseline:
    """Predict the annotation of perturbations from the mean effects of the training cells of a split."""
    input:
        effects="<results>/{experiment}/splits/{dataset}/{split}/effects.h5ad",
        screen="<results>/data/{dataset}/screen.h5ad",
    output:
        "<results>/{experiment}/splits/{dataset}/{split}/pathways.tsv",
    log:
        "<logs>/{experiment}/splits/{dataset}/{split}.pathways.log",
    benchmark:
        "<benchmarks>/{experiment}/splits/{dataset}/{split}.pathways.tsv"
    conda:
        "../envs/samsvae.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    params:
        settings=PLAN.evaluation,
        rules=RULES,
        code=code_of("pathway_baseline"),
    script:
        "../workflow/scripts/pathway_baseline.py"


rule model_expression:
    """Test cells sampled from models for differential expression, as many per condition as for control.

    One job for the runs of a batch that a figure may show. The batches are those of pathway_accuracy.
    """
    input:
        models=lambda wildcards: PLAN.run_files(TESTED(wildcards), "model.pt"),
        arrays=lambda wildcards: PLAN.data_files(TESTED(wildcards), "arrays.npz"),
        data=lambda wildcards: PLAN.data_files(TESTED(wildcards), "expression_tests.tsv"),
    output:
        tests="<results>/{experiment}/expression/tests/{batch}.tsv",
        agreement="<results>/{experiment}/expression/agreement/{batch}.tsv",
    log:
        "<logs>/{experiment}/expression/{batch}.log",
    conda:
        "../envs/samsvae.yaml"
    threads: 1
    resources:
        mem_mb=16000,
    params:
        settings=PLAN.evaluation,
        code=code_of("model_expression"),
    script:
        "../workflow/scripts/model_expression.py"


rule collect:
    """Collect the tables of an experiment: scores, masks, histories and cost of all its runs."""
    input:
        grid="<results>/{experiment}/grid.tsv",
        scores=PLAN.each_run("scores.tsv"),
        histories=PLAN.each_run("history.tsv"),
        records=PLAN.each_run("run.json"),
        pathways=lambda wildcards: PICTURES.pathway_files(wildcards.experiment),
        baselines=PLAN.each_split("baselines.tsv"),
        pathway_baselines=lambda wildcards: PICTURES.pathway_baselines(wildcards.experiment),
        perturbations=PLAN.each_masked("perturbations.h5ad"),
        screens=PLAN.masked_screens,
        bound=PLAN.each_run("bound.tsv"),
        worth=PLAN.each_run("worth.tsv"),
        worth_conditions=PLAN.each_run("worth_conditions.tsv"),
        baseline_worth=PLAN.each_split("worth.tsv"),
        baseline_conditions=PLAN.each_split("worth_conditions.tsv"),
    output:
        scores="<results>/{experiment}/scores.tsv",
        bound="<results>/{experiment}/bound.tsv",
        worth="<results>/{experiment}/worth.tsv",
        worth_conditions="<results>/{experiment}/worth_conditions.tsv",
        masks="<results>/{experiment}/masks.tsv",
        histories="<results>/{experiment}/histories.tsv",
        cost="<results>/{experiment}/cost.tsv",
    log:
        "<logs>/{experiment}/collect.log",
    conda:
        "../envs/samsvae.yaml"
    # params, not inputs: results copied from elsewhere may lack benchmarks and must not be trained again for that
    params:
        benchmarks=PLAN.benchmarks_of_runs,
        code=code_of("collect"),
    script:
        "../workflow/scripts/collect.py"


rule transfer_baselines:
    """Score the new perturbations of a split without a model: by the training mean, and by their own profiles."""
    input:
        arrays="<results>/data/{dataset}/arrays.npz",
        split="<results>/{experiment}/splits/{dataset}/{split}/cells.tsv",
    output:
        "<results>/{experiment}/splits/{dataset}/{split}/transfer.tsv",
    log:
        "<logs>/{experiment}/splits/{dataset}/{split}.transfer.log",
    wildcard_constraints:
        experiment=PLAN.with_transfer(),
    conda:
        "../envs/samsvae.yaml"
    threads: 1
    resources:
        mem_mb=8000,
    params:
        transfer=one_sentence(PLAN.transfer),
        code=code_of("transfer_baselines"),
    script:
        "../workflow/scripts/transfer_baselines.py"


rule collect_transfer:
    """Collect the scores of new perturbations of all runs and baselines of an experiment."""
    input:
        grid="<results>/{experiment}/grid.tsv",
        runs=PLAN.each_run("transfer.tsv"),
        baselines=PLAN.each_split("transfer.tsv"),
    output:
        "<results>/{experiment}/transfer.tsv",
    log:
        "<logs>/{experiment}/transfer.log",
    wildcard_constraints:
        experiment=PLAN.with_transfer(),
    conda:
        "../envs/samsvae.yaml"
    params:
        code=code_of("collect_transfer"),
    script:
        "../workflow/scripts/collect_transfer.py"
