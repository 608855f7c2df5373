"""Every block of code and every command in the documentation runs: configurations are planned, Python is executed with
few steps, and the arguments and targets of commands are those that exist. What cannot run here has a reason."""

from __future__ import annotations

import functools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from small_model import model
from snakemake.cli import get_argument_parser, parse_config

from samsvae import api, cli, fitted
from samsvae.config.splits import SplitConfig
from samsvae.config.validate import build
from samsvae.interop.weights import to_reference
from samsvae.screens.custom import filter_screen
from samsvae.screens.splits import make_split
from samsvae.study.configuration import read_config
from samsvae.study.figure_plan import FigurePlan
from samsvae.study.plan import Plan

#: Commands that do not run in tests, and why.
NOT_RUN = {
    "aws s3 cp": "needs the internet",
    "conda env create": "needs the internet; tests/test_envs.py checks the file",
    "pip install": "needs the internet",
    "pre-commit install": "changes the hooks of the checkout",
    "squeue --me": "needs Slurm",
    "snakemake --executor cluster-generic": "its plugin is not in the lock",
    "source .venv/bin/activate": "made by make",
    "bash benchmarks/gpu_day.sh": "needs a GPU; tests/test_benchmarks_gpu.py runs its parts",
}

#: Blocks without a language, by their first words: no code.
TEXTS = ("results/  ", "__init__.py", "condition,split")

#: Options with which Snakemake needs no number of cores.
NO_CORES = ("dryrun", "unlock", "list_target_rules", "lint")


@dataclass(frozen=True)
class Block:
    """A block of code, or a command in backticks: where it is, its language and its text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "config/README.md", "benchmarks/README.md")
PAGES += tuple(sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.S | re.M)
INDENTED = re.compile(r"(?<=\n\n)((?:    .*\S.*\n|\n(?=    ))+)(?=\n)")
INLINE = re.compile(r"(?<!`)`((?:snakemake|samsvae|make|python) [^`]+)`(?!`)")


def blocks() -> list[Block]:
    """Every block and every command in backticks of the documentation."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text()

        def add(start: int, language: str, code: str, page=page, text=text) -> None:
            found.append(Block(page, text.count("\n", 0, start) + 1, language, code))

        for match in FENCED.finditer(text):
            add(match.start(), match[1], match[2])
        prose = FENCED.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
        for match in INDENTED.finditer(prose):
            add(match.start(), "sh", re.sub(r"^    ", "", match[1], flags=re.M))
        for match in INLINE.finditer(prose):
            add(match.start(), "inline", match[1].replace("\\|", "|"))
    return found


BLOCKS = blocks()


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def named(page: str, beginning: str) -> str:
    """The text of the block of a page that begins like this."""
    (found,) = [block.text for block in BLOCKS if block.page == page and block.text.lstrip("# ").startswith(beginning)]
    return found


def test_every_block_has_a_test():
    assert {block.language for block in BLOCKS} <= {"yaml", "python", "sh", "inline", "math", ""}
    assert [str(b) for b in of("") if not b.text.startswith(TEXTS)] == []
    assert len(of("yaml")) >= 4 and len(of("python")) >= 4 and len(of("sh")) >= 12 and len(of("inline")) >= 15
    fences = sum((ROOT / page).read_text().count("```") for page in PAGES)
    assert fences == 2 * sum(block.language != "inline" and block.page != "docs/cluster.md" for block in BLOCKS)


# ---- configurations ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the screens, tables and configurations that the documentation writes, and the checkout's files."""
    where = tmp_path_factory.mktemp("docs")
    for name in ("Makefile", "benchmarks", "docs", "envs", "profiles", "src"):
        (where / name).symlink_to(ROOT / name)
    (where / "config").mkdir()
    for path in (ROOT / "config").iterdir():
        (where / "config" / path.name).symlink_to(path)
    (where / "config" / "my_screen.yaml").write_text(named("README.md", "config/my_screen.yaml"))
    own = "docs/own-data.md"
    (where / "make_screen.py").write_text(
        named(own, "import anndata as ad\nimport numpy as np\nimport pandas as pd\n\nrng")
    )
    (where / "toy.yaml").write_text(named(own, "title: A synthetic screen\n"))
    (where / "genes.yaml").write_text(named(own, "title: A synthetic screen, genes selected"))
    (where / "by_condition.csv").write_text(named(own, "condition,split"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        exec((where / "make_screen.py").read_text(), {})
    return where


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


@functools.cache
def planned(files: tuple[str, ...], settings: tuple[str, ...] = ()) -> FigurePlan:
    """The plan of configuration files over config/config.yaml and of values from the command line."""
    config = read_config([ROOT / "config" / "config.yaml", *files]) | parse_config(list(settings))
    return FigurePlan(Plan(config, results="results", benchmarks="b"), resources=ROOT / "resources")


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_a_configuration_is_planned(block, tmp_path):
    (tmp_path / "c.yaml").write_text(block.text)
    plan = planned((str(tmp_path / "c.yaml"),))
    assert plan.files() and all(plan.inputs(*each) for each in plan.every())


def test_the_example_of_an_own_screen_is_filtered_and_split(tmp_path):
    plan = planned(("toy.yaml",)).plan
    run = next(iter(plan.runs["toy"].values()))
    screen = filter_screen(plan.source(run), tmp_path / "screen.h5ad", **plan.options(run))
    obs = screen.obs
    split = make_split(obs, separator="+", **run.split_config.of_cells())
    assert set(split["condition"][split["split"] == "test"]) > {"A1+B1"} and len(split) == 960
    assert (split["split"][split["condition"] == "A1+B1"] == "test").all()
    # the tables of a split of one's own: by condition as printed, and by cell as its script writes it
    exec(named("docs/own-data.md", "import anndata as ad\nimport numpy as np\nimport pandas as pd\n\nobs"), {})
    for table, test in (("by_condition.csv", {"A1+B1"}), ("my_split.csv", set(obs["condition"]))):
        own = make_split(obs, separator="+", **build(SplitConfig, {"kind": "file", "path": table}).of_cells())
        assert set(own["condition"][own["split"] == "test"]) == test


def test_the_numbers_of_the_second_example():
    """Cells per split as in the text; genes are selected on the training cells."""
    options = planned(("genes.yaml",)).plan.study.screens["toy"].options
    obs = ad.read_h5ad("toy.h5ad").obs.rename(columns={"received": "condition"})
    obs.attrs["controls"] = ["control"]
    split = make_split(obs, separator=options.separator, **options.genes_split.of_cells())
    stated = re.search(r"(\d+) train, (\d+) val, (\d+) test", (ROOT / "docs" / "own-data.md").read_text())
    assert stated and [int(n) for n in stated.groups()] == [
        int((split["split"] == name).sum()) for name in ("train", "val", "test")
    ]


# ---- Python --------------------------------------------------------------------------------------------------------


def with_three_steps(adapt):
    return lambda *fitted_and_cells, **given: adapt(*fitted_and_cells, **given, steps=3, progress=False)


def test_a_new_knock_out(monkeypatch):
    """With few steps and a small model, whose numbers the page does not show."""
    small = {"steps": 4, "n_latent": 3, "width": 8, "embedding_width": 8, "progress": False}
    fit = api.fit
    monkeypatch.setattr(api, "fit", lambda *data, **settings: fit(*data, **{**settings, **small}))
    monkeypatch.setattr(fitted.Fitted, "adapt", with_three_steps(fitted.Fitted.adapt))
    names: dict = {}
    exec(named("docs/own-data.md", "import anndata as ad\n\nfrom samsvae import"), names)
    assert names["load"]("this_year.pt").perturbations[-1] == "C3" and len(names["fitted"].perturbations) == 9


def test_the_notebook_of_the_readme(monkeypatch):
    """With four steps and a small model, on cells with the labels and the layer that it names."""
    small = {"steps": 4, "batch_size": 32, "n_latent": 3, "width": 8, "embedding_width": 8, "progress": False}
    fit = api.fit
    monkeypatch.setattr(api, "fit", lambda *data, **settings: fit(*data, **{**settings, **small}))
    labels = np.repeat(["non-targeting", "A", "B", "C", "A+B"], 24)
    counts = np.random.default_rng(0).poisson(3.0, (len(labels), 8)).astype(np.float32)
    obs = pd.DataFrame({"guide": labels}, index=[f"cell{i}" for i in range(len(labels))])
    adata = ad.AnnData(np.log1p(counts), obs, layers={"counts": counts})
    new_cells = ad.AnnData(counts[:30], obs[:30].assign(guide="D"))
    names: dict = {"adata": adata, "new_cells": new_cells}
    monkeypatch.setattr(fitted.Fitted, "adapt", with_three_steps(fitted.Fitted.adapt))
    exec(named("README.md", "from samsvae import fit, load, pl"), names)
    assert names["fitted"].perturbations == ("A", "B", "C")
    assert names["load"]("model.pt").genes == names["fitted"].genes


def test_the_page_about_python(monkeypatch, folder):
    """All its blocks, one after the other, with few steps and a small model."""
    small = {"steps": 4, "n_latent": 3, "width": 8, "embedding_width": 8, "progress": False}
    fit, more = api.fit, fitted.Fitted.train_more
    monkeypatch.setattr(api, "fit", lambda *data, **settings: fit(*data, **{**settings, **small}))
    monkeypatch.setattr(fitted.Fitted, "adapt", with_three_steps(fitted.Fitted.adapt))
    monkeypatch.setattr(
        fitted.Fitted, "train_more", lambda *cells, **_: more(*cells, steps=4, progress=False)
    )  # fmt: skip
    names: dict = {}
    blocks = [block.text for block in of("python") if block.page == "docs/python.md"]
    for text in blocks:
        exec(text, names)
    plt.close("all")
    assert len(blocks) == 6 and names["fitted"].perturbations[0] == "A1" and (folder / "toy.png").is_file()
    assert names["new"].obsm["X_samsvae"].shape == (200, 3) and names["better"].history["step"].iloc[-1] == 8
    assert names["treated"].n_obs == 300 and set(names["treated"].obs["condition"]) == {"A1+B1"}


def test_the_example_of_high_moi(tmp_path):
    """The screen, the filter of its configuration, and the call in Python with few steps."""
    names: dict = {}
    exec(named("docs/own-data.md", "import anndata as ad\nimport numpy as np\nimport pandas as pd\n\nrandom"), names)
    (tmp_path / "moi.yaml").write_text(named("docs/own-data.md", "title: A synthetic screen of high MOI"))
    plan = planned((str(tmp_path / "moi.yaml"),)).plan
    run = next(iter(plan.runs["moi"].values()))
    screen = filter_screen(plan.source(run), tmp_path / "screen.h5ad", **plan.options(run))
    assert list(screen.uns["perturbations"].index) == [f"T{t}" for t in range(10)]
    assert screen.uns["reference"] == "(none)"
    small = {"steps": 4, "n_latent": 3, "width": 8, "embedding_width": 8, "progress": False}
    found = api.fit(names["cells"], perturbation="obsm:guides", control=None, **small)
    assert (
        found.perturbations == tuple(sorted(names["guides"])) and found.checkpoint.facts["model"] == "sams_vae_corr_z"
    )


def test_the_weights_of_the_release(monkeypatch):
    Path("checkpoints").mkdir()
    torch.save({"state_dict": to_reference(model("sams_vae_mf"))}, "checkpoints/a.ckpt")
    names: dict = {}
    exec(named("config/README.md", "from samsvae.interop.lightning"), names)
    assert set(names["state"]) == set(torch.load("checkpoints/a.ckpt")["state_dict"])


# ---- commands ------------------------------------------------------------------------------------------------------


def commands() -> list[tuple[str, list[str]]]:
    """Every command of the documentation: where it is, and its words without comments and variables."""
    found = []
    for block in (*of("sh"), *of("inline")):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.partition(" | ")[0], comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                found.append((str(block), words))
    return found


def check_snakemake(words: list[str]) -> None:
    given = get_argument_parser().parse_args(words)
    assert not given.workflow_profile or Path(given.workflow_profile, "profile.yaml").is_file()
    free = any(getattr(given, name) for name in NO_CORES)
    assert given.cores or given.jobs or given.workflow_profile or free, "without --cores"
    assert all(path.is_file() for path in given.configfile), "a file that --configfile names"
    plan = planned(tuple(map(str, given.configfile)), tuple(given.config or ()))
    known = {"all", "report", *plan.targets(), *(f"{experiment}_{figure}" for experiment, figure in plan.every())}
    assert set(given.targets) <= known, set(given.targets) - known


def check_samsvae(words: list[str]) -> None:
    given = cli._parser().parse_args(words)
    for name in getattr(given, "configfile", ()):
        planned((name,))


def check_make(words: list[str]) -> None:
    targets = set(re.findall(r"^([\w-]+):", Path("Makefile").read_text(), flags=re.M))
    assert {word for word in words if "=" not in word} <= targets


def check_python(words: list[str]) -> None:
    """A script, and its options in the text of the scripts next to it."""
    script, *rest = words
    assert Path(ROOT, script).is_file() or Path(script).is_file(), script
    text = "".join(path.read_text() for path in Path(ROOT, script).parent.glob("*.py"))
    assert [word for word in rest if word.startswith("--") and f'"{word}"' not in text] == []


CHECKS = {"snakemake": check_snakemake, "samsvae": check_samsvae, "make": check_make, "python": check_python}


@pytest.mark.parametrize(("where", "words"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_command_has_arguments_and_targets_that_exist(where, words, capfd):
    if any(shlex.join(words).startswith(begins) for begins in NOT_RUN):
        return
    try:
        CHECKS[words[0]](words[1:])
    except SystemExit:
        pytest.fail(f"{where}: {capfd.readouterr().err[-300:]}")


def test_what_does_not_run_is_in_the_documentation():
    texts = [shlex.join(words) for _, words in commands()]
    assert [begins for begins in NOT_RUN if not any(text.startswith(begins) for text in texts)] == []
