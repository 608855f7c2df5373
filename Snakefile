# The entry point: configuration, rules, and one target per figure and table (snakemake --list-target-rules).
import os
import sys

from snakemake.utils import min_version

min_version("9.27")


include: "rules/checkout.smk"


configfile: ROOT / "config" / "config.yaml"


pathvars:
    logs="<results>/logs",
    benchmarks="<results>/benchmarks",


# GPUs are counted on the machine that has them: a submission to a cluster gets its own.
resource_scopes:
    gpu="local",


report: "workflow/report/provenance.rst"


include: "rules/common.smk"


container: PLAN.study.container


include: "rules/screens.smk"
include: "rules/simulate.smk"
include: "rules/train.smk"
include: "rules/evaluate.smk"
include: "rules/figures.smk"


# A failed run prints the command that retries it. On a cluster, the Snakemake inside a job keeps the value it inherits.
os.environ.setdefault(CALL, call_of(sys.argv[1:]))


# Only a Snakemake that runs jobs gets here: no dry run, and none inside a job.
onstart:
    one_sentence(LOCK.take, "")(sys.argv[1:])
    lift_rate_limit(workflow.scheduler, sys.argv[1:])
    logger.info(notice(PLAN.study.device, PLAN.study.jobs_per_gpu))


onsuccess:
    logger.info(last_line(PLAN, STARTED))


rule all:
    """Everything that the configuration asks for: every run, table and figure."""
    default_target: True
    input:
        PLAN.tables(),
        PLAN.transfer_tables(),
        PICTURES.files(),
        PICTURES.published(),
        "<results>/cost.tsv",
