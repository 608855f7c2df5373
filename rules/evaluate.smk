# Evaluations of trained runs that only some figures need, and the tables of an experiment.


rule pathway_accuracy:
    """Score how well the masks of a run predict the annotation of its perturbations, against permuted labels."""
    input:
        perturbations="<results>/{experiment}/runs/{run}/perturbations.h5ad",
        screen=RUN_INPUT["screen"],
    output:
        "<results>/{experiment}/runs/{run}/pathways.tsv",
    log:
        "<logs>/{experiment}/pathways/{run}.log",
    conda:
        "../envs/samsvae.yaml"
    threads: 1
    params:
        settings=PLAN.evaluation,
        code=code_of("pathway_accuracy"),
    script:
        "../workflow/scripts/pathway_accuracy.py"


rule model_expression:
    """Test cells sampled from a run's model for differential expression, as many per condition as for control."""
    input:
        model="<results>/{experiment}/runs/{run}/model.pt",
        arrays=RUN_INPUT["arrays"],
        data=one_sentence(PLAN.data_tests),
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
        settings=PLAN.evaluation,
        code=code_of("model_expression"),
    script:
        "../workflow/scripts/model_expression.py"


rule collect:
    """Collect the tables of an experiment: scores, histories and cost of all its runs."""
    input:
        grid="<results>/{experiment}/grid.tsv",
        scores=PLAN.each_run("scores.tsv"),
        histories=PLAN.each_run("history.tsv"),
        records=PLAN.each_run("run.json"),
        pathways=lambda wildcards: PICTURES.pathway_files(wildcards.experiment),
        baselines=PLAN.each_split("baselines.tsv"),
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
