# The plan of the study (samsvae.study.plan), and its look-ups under the names that the rules use.
import functools
import gc
import time

from samsvae.errors import SamsvaeError
from samsvae.figures.registry import FIGURES
from samsvae.study.code_digest import code_of as digest_of
from samsvae.study.code_digest import scoring_rules
from samsvae.study.configuration import extended, read_config
from samsvae.study.figure_plan import FigurePlan
from samsvae.study.gpus import notice
from samsvae.study.lock import StudyLock
from samsvae.study.plan import IMPORTED, RUN_FILES, SPLIT_FILES, TRANSFER_FILES, Plan, alternatives
from samsvae.study.rate_limit import lift_rate_limit
from samsvae.study.script import CALL, NEW_OBJECTS, call_of
from samsvae.study.times import last_line

RESOURCES = ROOT / "resources"
STARTED = time.monotonic()

gc.set_threshold(NEW_OBJECTS)  # the plan consists of many objects, and little of it is garbage


def one_sentence(look_up, before="Configuration: "):
    """Wrap a look-up, so that its errors end Snakemake with one sentence instead of a traceback."""

    @functools.wraps(look_up)
    def found(*arguments, **named):
        try:
            return look_up(*arguments, **named)
        except SamsvaeError as error:
            raise WorkflowError(f"{before}{error}") from None

    return found


# As a module, the configuration that the other workflow passes extends the default one, as --configfile does.
# Otherwise the files are read once more for errors that name the line: Snakemake takes the last of two equal keys
# without a word.
if workflow.modifier.is_main_snakefile():
    one_sentence(read_config)(workflow.configfiles)
else:
    config = extended(ROOT / "config" / "config.yaml", config)
    paths = workflow.modifier.path_modifier
    if paths.prefix or paths.modifies_prefixes:
        raise WorkflowError("prefix: not allowed for the module samsvae. Set pathvars: results in its config instead.")
RESULTS, BENCHMARKS = (workflow.pathvars.apply(name) for name in ("<results>", "<benchmarks>"))
PLAN = one_sentence(Plan)(config, results=RESULTS, benchmarks=BENCHMARKS)
PICTURES = one_sentence(FigurePlan)(PLAN, resources=RESOURCES)
LOCK = StudyLock(RESULTS)

if PICTURES.old_layout():
    logger.warning(PICTURES.old_layout())

#: The digest that tables of scores name, so that scores by different rules are not compared.
RULES = scoring_rules()

#: Digests of the code that trains a run, scores it (which contains the rules), and transfers it.
RUN_CODES = {
    "training": digest_of("src/samsvae/study/train_run.py", ROOT),
    "scoring": digest_of("src/samsvae/evaluation/run.py", ROOT),
    "refit": digest_of("src/samsvae/study/refit_run.py", ROOT),
    "transfer": digest_of("src/samsvae/study/transfer_run.py", ROOT),
    "rules": RULES,
}

#: The files that a run reads and writes, and its parameters.
RUN_INPUT = {
    name: one_sentence(getattr(PLAN, name)) for name in ("arrays", "split", "screen", "reference", "truth", "baselines")
}
RUN_OUTPUT, TRANSFER_OUTPUT = (
    {name: f"<results>/{{experiment}}/runs/{{run}}/{file}" for name, file in files.items()}
    for files in (RUN_FILES, TRANSFER_FILES)
)
RUN_PARAMS = {"evaluation": PLAN.evaluation, "simulated": PLAN.is_simulated, "transfer": one_sentence(PLAN.transfer)}
TESTED = one_sentence(PICTURES.tested)
SPLIT_OUTPUT = {
    name: f"<results>/{{experiment}}/splits/{{dataset}}/{{split}}/{file}" for name, file in SPLIT_FILES.items()
}


@functools.cache
def code_of(script):
    """Digest of a script and of every module of the package that it imports: the trigger of a rerun."""
    return digest_of(f"workflow/scripts/{script}.py", ROOT)


@functools.cache
def figure_code(figure):
    """Digest of the module that draws a figure and of the script around it."""
    return [digest_of(f"src/samsvae/figures/{figure}.py", ROOT), code_of("figure")]


def figure_input(experiment, figure):
    """An input function for a figure; files are looked up when its job is planned."""
    return lambda wildcards: one_sentence(PICTURES.inputs)(experiment, figure)
