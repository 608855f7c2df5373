# One training per run of the grid, each on a card of its own where there are cards.


rule write_grid:
    """The runs of an experiment, with their parameters."""
    output:
        "<results>/{experiment}/grid.tsv",
    log:
        "<logs>/{experiment}/grid.log",
    localrule: True
    conda:
        "../envs/samsvae.yaml"
    params:
        grid=lambda wildcards: grid_table(experiment_runs(wildcards.experiment).values()),
        code=code_of("write_grid"),
    script:
        "../workflow/scripts/write_grid.py"


rule train:
    """Train one run; the weights of the best validation loss are kept."""
    input:
        arrays=arrays_of,
        split=split_of,
    output:
        model="<results>/{experiment}/runs/{run}/model.pt",
        history="<results>/{experiment}/runs/{run}/history.tsv",
        run="<results>/{experiment}/runs/{run}/run.json",
    log:
        "<logs>/{experiment}/train/{run}.log",
    benchmark:
        "<benchmarks>/{experiment}/train/{run}.tsv"
    priority: 10
    conda:
        "../envs/samsvae.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=120,
    params:
        settings=lambda wildcards: run_settings(run_of(wildcards)),
        device=STUDY.device,
        jobs_per_gpu=STUDY.jobs_per_gpu,
        code=code_of("train"),
    script:
        "../workflow/scripts/train.py"
