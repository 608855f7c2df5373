# The map: configuration, rules, and one target per figure and table (snakemake --list-target-rules).
import os
import sys
from pathlib import Path

# Scripts import the package from here, in a venv, in conda and on a cluster alike.
sys.path.insert(0, str(Path(workflow.basedir) / "src"))


configfile: Path(workflow.basedir) / "config" / "config.yaml"


pathvars:
    logs="<results>/logs",
    benchmarks="<results>/benchmarks",


# A card is counted on the machine that holds it: a submission to a cluster has cards of its own.
resource_scopes:
    gpu="local",


report: "workflow/report/workflow.rst"


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/simulate.smk"
include: "rules/train.smk"
include: "rules/evaluate.smk"
include: "rules/figures.smk"


# For what a failed run says about how to try it again; the Snakemake of a submission keeps what it was handed.
os.environ.setdefault(CALL, call_of(sys.argv[1:]))


onstart:
    logger.info(notice(STUDY.device, STUDY.jobs_per_gpu))


rule all:
    """Everything that the configuration asks for: every run, table and figure."""
    default_target: True
    input:
        tables_of_experiments(),
        figures_of_study(),
        data_cards_of_study(),
        "<results>/cost.tsv",
