# One job per run of the grid: train it (or take its weights from a checkpoint), on a card of its own where there are
# cards, and score it.


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
        grid=grid_of,
        code=code_of("write_grid"),
    script:
        "../workflow/scripts/write_grid.py"


rule train_together:
    """Train and score several runs of the same data in one process, which pays for its start once (runs_per_job).

    What they make is kept beside the runs (samsvae.study.jobs) for the rule take. A run that fails leaves the others alone.
    """
    input:
        arrays=arrays_of,
        split=split_of,
        screen=screen_of,
        reference=reference_of,
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
        runtime=minutes_together,
    params:
        runs=trainings_of,
        evaluation=evaluation_of,
        simulated=is_simulated,
        codes=RUN_CODES,
        code=code_of("train_together"),
    script:
        "../workflow/scripts/train_together.py"


rule train:
    """Train one run, keep the weights of the best validation loss, and score them.

    One job, since a job's start costs more than its scores. What it makes is kept aside, stamped with all that it
    depends on (samsvae.study.jobs): an edit of the code that scores does not train again.
    """
    input:
        arrays=arrays_of,
        split=split_of,
        screen=screen_of,
        reference=reference_of,
        together=together_of,
    output:
        model="<results>/{experiment}/runs/{run}/model.pt",
        history="<results>/{experiment}/runs/{run}/history.tsv",
        run="<results>/{experiment}/runs/{run}/run.json",
        scores="<results>/{experiment}/runs/{run}/scores.tsv",
        per_condition="<results>/{experiment}/runs/{run}/per_condition.tsv",
        effects="<results>/{experiment}/runs/{run}/effects.h5ad",
        perturbations="<results>/{experiment}/runs/{run}/perturbations.h5ad",
    log:
        "<logs>/{experiment}/train/{run}.log",
    benchmark:
        "<benchmarks>/{experiment}/train/{run}.tsv"
    wildcard_constraints:
        run=rf"(?!{IMPORTED})(?:{ALONE})",
    priority: 10
    conda:
        "../envs/samsvae.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=120,
    params:
        settings=training_of,
        evaluation=evaluation_of,
        simulated=is_simulated,
        codes=RUN_CODES,
        code=code_of("train"),
    script:
        "../workflow/scripts/train.py"


rule take:
    """Take a run from those that were trained together (runs_per_job): links, made where Snakemake runs.

    Of a run that failed there it says why; the next call trains that one by the rule train.
    """
    input:
        arrays=arrays_of,
        split=split_of,
        screen=screen_of,
        reference=reference_of,
        together=together_of,
    output:
        model="<results>/{experiment}/runs/{run}/model.pt",
        history="<results>/{experiment}/runs/{run}/history.tsv",
        run="<results>/{experiment}/runs/{run}/run.json",
        scores="<results>/{experiment}/runs/{run}/scores.tsv",
        per_condition="<results>/{experiment}/runs/{run}/per_condition.tsv",
        effects="<results>/{experiment}/runs/{run}/effects.h5ad",
        perturbations="<results>/{experiment}/runs/{run}/perturbations.h5ad",
    log:
        "<logs>/{experiment}/train/{run}.log",
    wildcard_constraints:
        run=rf"(?!{IMPORTED}|(?:{ALONE})/)[\w.-]+",
    priority: 10
    retries: 0
    localrule: True
    conda:
        "../envs/samsvae.yaml"
    # the same as those of train: which of the two has made a run is no reason to make it again
    params:
        settings=training_of,
        evaluation=evaluation_of,
        simulated=is_simulated,
        codes=RUN_CODES,
        code=code_of("train"),
    script:
        "../workflow/scripts/take.py"


rule import_checkpoint:
    """Take the weights of a run from a checkpoint of the SAMS-VAE release, and score them as those of a training."""
    input:
        arrays=arrays_of,
        split=split_of,
        screen=screen_of,
        reference=reference_of,
        checkpoint=checkpoint_of,
    output:
        model="<results>/{experiment}/runs/{run}/model.pt",
        history="<results>/{experiment}/runs/{run}/history.tsv",
        run="<results>/{experiment}/runs/{run}/run.json",
        scores="<results>/{experiment}/runs/{run}/scores.tsv",
        per_condition="<results>/{experiment}/runs/{run}/per_condition.tsv",
        effects="<results>/{experiment}/runs/{run}/effects.h5ad",
        perturbations="<results>/{experiment}/runs/{run}/perturbations.h5ad",
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
        settings=training_of,
        evaluation=evaluation_of,
        simulated=is_simulated,
        code=code_of("import_checkpoint"),
    script:
        "../workflow/scripts/import_checkpoint.py"
