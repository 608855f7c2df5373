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


rule train:
    """Train one run, keep the weights of the best validation loss, and score them.

    One job, since a job's start costs more than its scores. An edit of the code that scores runs this rule anew, but
    not the training in it: its weights are kept aside, stamped with all that they depend on (samsvae.fit).
    """
    input:
        arrays=arrays_of,
        split=split_of,
        screen=screen_of,
        reference=reference_of,
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
        run=rf"(?!{IMPORTED})[\w.-]+",
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
        training_code=digest_of("src/samsvae/fit.py", ROOT),
        code=code_of("train"),
    script:
        "../workflow/scripts/train.py"


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
