# One job per run of the grid: train it (or import its weights from a checkpoint), score it, and adapt it to new
# perturbations if the experiment has a transfer, on a GPU of its own if there are GPUs.


rule write_grid:
    """List the runs of an experiment with their parameters."""
    output:
        "<results>/{experiment}/grid.tsv",
    log:
        "<logs>/{experiment}/grid.log",
    localrule: True
    conda:
        "../envs/samsvae.yaml"
    params:
        grid=one_sentence(PLAN.grid),
        code=code_of("write_grid"),
    script:
        "../workflow/scripts/write_grid.py"


rule train_together:
    """Train and score several runs of the same data in one process, whose start-up is paid for once (runs_per_job).

    The results are cached next to the runs (samsvae.study.jobs) for the rule take. A run that fails leaves the others
    alone.
    """
    input:
        **RUN_INPUT,
    output:
        "<results>/{experiment}/together/{batch}.tsv",
    log:
        "<logs>/{experiment}/together/{batch}.log",
    benchmark:
        "<benchmarks>/{experiment}/together/{batch}.tsv"
    priority: 10
    conda:
        "../envs/samsvae.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=PLAN.minutes_together,
    params:
        **RUN_PARAMS,
        runs=one_sentence(PLAN.trainings),
        codes=RUN_CODES,
        code=code_of("train_together"),
    script:
        "../workflow/scripts/train_together.py"


rule train:
    """Train one run, keep the weights with the lowest validation loss, and score them.

    One job does both, because starting a job costs more than scoring. The results are cached under a digest of
    everything they depend on (samsvae.study.jobs), so an edit of the scoring code does not train the run again.
    """
    input:
        **RUN_INPUT,
        together=PLAN.together,
    output:
        **RUN_OUTPUT,
    log:
        "<logs>/{experiment}/train/{run}.log",
    benchmark:
        "<benchmarks>/{experiment}/train/{run}.tsv"
    wildcard_constraints:
        experiment=PLAN.with_transfer(False),
        run=rf"(?!{IMPORTED})(?:{PLAN.trained_alone()})",
    priority: 10
    conda:
        "../envs/samsvae.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=PLAN.minutes_of_run,
    params:
        **RUN_PARAMS,
        settings=one_sentence(PLAN.training),
        codes=RUN_CODES,
        code=code_of("train"),
    script:
        "../workflow/scripts/train.py"


use rule train as train_with_transfer with:
    output:
        **RUN_OUTPUT,
        **TRANSFER_OUTPUT,
    wildcard_constraints:
        experiment=PLAN.with_transfer(),
        run=PLAN.trained_alone(),


rule take:
    """Link the files of a run that was trained together with others (runs_per_job), on the machine of Snakemake itself.

    For a run that failed there, this job fails with the reason; the next call trains that run by the rule train.
    """
    input:
        **RUN_INPUT,
        together=PLAN.together,
    output:
        **RUN_OUTPUT,
    log:
        "<logs>/{experiment}/train/{run}.log",
    wildcard_constraints:
        experiment=PLAN.with_transfer(False),
        run=rf"(?!{IMPORTED}|(?:{PLAN.trained_alone()})/)[\w.-]+",
    priority: 10
    retries: 0
    localrule: True
    conda:
        "../envs/samsvae.yaml"
    # the same as for train, so that a run is not repeated because the other rule made it
    params:
        **RUN_PARAMS,
        settings=one_sentence(PLAN.training),
        codes=RUN_CODES,
        code=code_of("train"),
    script:
        "../workflow/scripts/take.py"


use rule take as take_with_transfer with:
    output:
        **RUN_OUTPUT,
        **TRANSFER_OUTPUT,
    wildcard_constraints:
        experiment=PLAN.with_transfer(),
        run=rf"(?!(?:{PLAN.trained_alone()})/)[\w.-]+",


rule import_checkpoint:
    """Import the weights of a run from a checkpoint of the SAMS-VAE release, and score them like trained ones."""
    input:
        **RUN_INPUT,
        checkpoint=one_sentence(PLAN.checkpoint),
    output:
        **RUN_OUTPUT,
    log:
        "<logs>/{experiment}/import/{run}.log",
    wildcard_constraints:
        run=IMPORTED,
    conda:
        "../envs/samsvae.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=60,
    params:
        **RUN_PARAMS,
        settings=one_sentence(PLAN.training),
        rules=RULES,
        code=code_of("import_checkpoint"),
    script:
        "../workflow/scripts/import_checkpoint.py"
