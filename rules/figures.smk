# One rule per figure of every experiment, named as the target that a person types: EXPERIMENT_FIGURE (Table 1 of the
# SAMS-VAE paper is replogle_scores). samsvae.figures.registry lists the figures, and samsvae.study.figure_plan finds the
# files that each is drawn from.


for experiment, figure in PICTURES.every():

    rule:
        name:
            f"{experiment}_{figure}"
        input:
            unpack(figure_input(experiment, figure)),
        output:
            **PICTURES.outputs(experiment, figure),
            png=report(
                PICTURES.picture(experiment, figure),
                category=experiment,
                labels={"figure": FIGURES[figure].title},
            ),
        log:
            f"<logs>/figures/{experiment}.{figure}.log",
        conda:
            "../envs/samsvae.yaml"
        params:
            figure=figure,
            settings=PICTURES.settings(experiment, figure),
            code=figure_code(figure),
        script:
            "../workflow/scripts/figure.py"


# Targets for all figures of an experiment, for figures under their names in older versions, and for one figure of all
# experiments.
for target, files in PICTURES.targets().items():

    rule:
        name:
            target
        input:
            files,


rule cost_table:
    """Collect the cost of all runs: device, steps, seconds, memory, parameters."""
    input:
        PLAN.tables(["cost"]),
    output:
        "<results>/cost.tsv",
    log:
        "<logs>/cost.log",
    localrule: True
    conda:
        "../envs/samsvae.yaml"
    params:
        code=code_of("cost_table"),
    script:
        "../workflow/scripts/cost_table.py"


rule published:
    """Compare every number that the papers published with ours: the difference, and a verdict in words."""
    input:
        PICTURES.reproduction_files(),
    output:
        "<results>/published.tsv",
    log:
        "<logs>/published.log",
    localrule: True
    conda:
        "../envs/samsvae.yaml"
    params:
        sources=PICTURES.reproductions(),
        code=code_of("published"),
    script:
        "../workflow/scripts/published.py"


rule write_config:
    """Write the complete configuration, after merging, to one file."""
    output:
        "<results>/config.json",
    log:
        "<logs>/config.log",
    localrule: True
    conda:
        "../envs/samsvae.yaml"
    params:
        config=PLAN.config_in_force(),
        code=code_of("write_config"),
    script:
        "../workflow/scripts/write_config.py"


rule provenance:
    """Write Snakemake's own report: how every figure was made, by which rule and from which files."""
    input:
        config="<results>/config.json",
        made=PICTURES.pictures(),
    output:
        "<results>/provenance.html",
    log:
        "<logs>/provenance.log",
    localrule: True
    conda:
        "../envs/samsvae.yaml"
    params:
        snakefile=ROOT / "Snakefile",
        code=code_of("provenance"),
    script:
        "../workflow/scripts/provenance.py"


rule report:
    """Write one page with every figure and its caption, the scores, costs and settings."""
    input:
        config="<results>/config.json",
        cost="<results>/cost.tsv",
        provenance="<results>/provenance.html",
        figures=PICTURES.files(),
        tables=[*PLAN.tables(), *PLAN.transfer_tables()],
        published=PICTURES.published(),
        template=ROOT / "src/samsvae/study/report.html.j2",
    output:
        "<results>/report.html",
    log:
        "<logs>/report.log",
    localrule: True
    conda:
        "../envs/samsvae.yaml"
    params:
        title=PLAN.study.title,
        experiments=PICTURES.contents(),
        code=code_of("report"),
    script:
        "../workflow/scripts/report.py"
