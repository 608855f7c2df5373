# What is asked of trained runs beside their scores, and the tables of an experiment.


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
    """Differential expression in cells sampled from a run's model, equally many of every condition and of control."""
    input:
        model="<results>/{experiment}/runs/{run}/model.pt",
        arrays=arrays_of,
        data=expression_of,
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
        scores=each_run("scores.tsv"),
        histories=each_run("history.tsv"),
        records=each_run("run.json"),
        pathways=pathway_files,
        baselines=each_split("baselines.tsv"),
    output:
        scores="<results>/{experiment}/scores.tsv",
        histories="<results>/{experiment}/histories.tsv",
        cost="<results>/{experiment}/cost.tsv",
    log:
        "<logs>/{experiment}/collect.log",
    conda:
        "../envs/samsvae.yaml"
    # no inputs: without them, as in results from elsewhere, no training is to be repeated
    params:
        benchmarks=benchmarks_of,
        code=code_of("collect"),
    script:
        "../workflow/scripts/collect.py"
