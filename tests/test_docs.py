"""The documentation names files, targets, commands and options that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

#: Folders that are not part of the documentation.
SKIPPED = {".venv", ".lock-venv", ".docs-venv", "site", ".snakemake", ".pytest_cache", "results", "node_modules"}

#: First parts of paths in this repository, by which a path in the text is recognised.
FOLDERS = (
    "src",
    "rules",
    "workflow",
    "config",
    "docs",
    "profiles",
    "resources",
    "envs",
    "benchmarks",
    "tests",
    ".ci",
    ".github",
)

#: Files in the folder of the repository itself.
TOP = ("Makefile", "Snakefile", "mkdocs.yml", "pyproject.toml", "LICENSE", "CITATION.cff", ".pre-commit-config.yaml")

#: Files that a reader creates.
CREATED = {"config/my_screen.yaml"}

BANNED = (
    "cards are", "graphics card", "a card", "foretell", "foretold", "anew", "of which", "those that", "whatever",
    "mend ", "what is said", "../shared",
)  # fmt: skip


def pages(root: Path) -> list[Path]:
    """Every Markdown file of the repository."""
    found = [path for path in root.rglob("*.md") if not SKIPPED & set(path.relative_to(root).parts)]
    assert len(found) >= 12
    return found


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)


def anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    text = re.sub(r"[`*]", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", without_code(page.read_text()), flags=re.M)}


def source_tree(text: str) -> set[str]:
    """The files of the tree in CONTRIBUTING, relative to src/samsvae: folders end in '/', indents are two spaces."""
    (block,) = re.findall(r"^```\n(__init__\.py .*?)^```$", text, flags=re.S | re.M)
    found, folders = set(), []
    for line in block.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name] if name.endswith("/") else []
        if not name.endswith("/"):
            found.add("".join(folders) + name)
    return found


def test_relative_links_resolve(root):
    broken = []
    for page in pages(root):
        for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
            if "://" in link:
                continue
            path, _, place = link.partition("#")
            target = (page.parent / path) if path else page
            if not target.exists() or (place and place not in anchors(target)):
                broken.append(f"{page.relative_to(root)}: {link}")
    assert broken == []


def test_paths_in_the_text_exist(root):
    """Paths in backticks, and the paths of commands; a pattern with * must match something."""
    missing = []
    for page in pages(root):
        text = page.read_text()
        named = re.findall(r"`([\w./*-]+)`", text) + re.findall(r"(?<![\w/.~-])((?:\w[\w-]*/)+[\w*.-]+\.\w+)", text)
        for name in named:
            head = name.split("/")[0]
            known = name in TOP or ("/" in name and head in FOLDERS)
            if not known or "NAME" in name or name in CREATED:
                continue
            if not list(root.glob(name.rstrip("/"))):
                missing.append(f"{page.relative_to(root)}: {name}")
    assert missing == []


def test_modules_in_the_text_exist(root):
    """Dotted names such as samsvae.study.gpus, and paths below the package such as samsvae/config/zoo.py."""
    package, missing = root / "src" / "samsvae", []
    for page in pages(root):
        text = page.read_text()
        for dotted in set(re.findall(r"`samsvae\.([a-z_]\w*(?:\.\w+)*)", text)):
            parts = dotted.split(".")
            found = [n for n in range(1, len(parts) + 1) if package.joinpath(*parts[:n]).with_suffix(".py").is_file()]
            folder = package.joinpath(*parts)
            if not folder.is_dir() and (not found or len(parts) - found[-1] > 1):
                missing.append(f"{page.relative_to(root)}: samsvae.{dotted}")
        for path in set(re.findall(r"`samsvae/([\w/]+\.py)`", text)):
            if not (package / path).is_file():
                missing.append(f"{page.relative_to(root)}: samsvae/{path}")
    assert missing == []


def test_contributing_lists_every_source_file(root):
    listed = source_tree((root / "CONTRIBUTING.md").read_text())
    package = root / "src" / "samsvae"
    there = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*")
        if path.suffix in (".py", ".pyi", ".c", ".j2", ".typed") or path.name == "py.typed"
    }
    there -= {path for path in there if path.endswith("/__init__.py")}
    assert sorted(there - listed) == [], "not in CONTRIBUTING.md"
    assert sorted(listed - there) == [], "in CONTRIBUTING.md, but not in src/samsvae"


def test_make_targets_exist(root):
    makefile = (root / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", makefile, flags=re.M))
    for page in pages(root):
        text = page.read_text()
        named = re.findall(r"`make ([a-z]+)[ `]", text) + re.findall(r"^make ([a-z]+)", text, flags=re.M)
        assert set(named) <= targets, page.name


def test_commands_of_samsvae_exist(root):
    """Subcommands and options, as the command itself parses them."""
    cli = pytest.importorskip("samsvae.cli")
    known = cli.__file__ and Path(cli.__file__).read_text()
    for page in pages(root):
        for name, rest in re.findall(r"(?<![\w./-])samsvae (\w+)( [^`\n#]*)?[`\n]", page.read_text()):
            if name in ("progress", "estimate", "preview", "import"):
                assert f'"{name}"' in known, f"{page.name}: samsvae {name}"
                assert [o for o in re.findall(r"--[a-z-]+", rest or "") if f'"{o}"' not in known] == [], page.name


def test_the_readme_is_short(root):
    assert len((root / "README.md").read_text().splitlines()) <= 200


def test_figures_of_the_readme_are_those_of_the_registry(root):
    registry = pytest.importorskip("samsvae.figures.registry")
    text = (root / "README.md").read_text()
    (table,) = re.findall(r"^\| figure \| shows .*?\n\n", text, flags=re.S | re.M)
    named = set(re.findall(r"^\| `(\w+)` \|", table, flags=re.M))
    assert named == set(registry.FIGURES)


def test_targets_of_the_papers_exist(root):
    """The targets in the README are experiments, figures of them, aliases or rules."""
    plan = pytest.importorskip("samsvae.study.figure_plan")
    registry = pytest.importorskip("samsvae.figures.registry")
    experiments = ("replogle", "norman_ood", "norman_efficiency", "simulation_sams", "simulation_svae")
    known = {*experiments, *plan.ALIASES, *plan.ACROSS, *plan.RESERVED}
    known |= {f"{experiment}_{figure}" for experiment in experiments for figure in registry.FIGURES}
    text = (root / "README.md").read_text()
    (table,) = re.findall(r"^\| in the papers \| target .*?\n\n", text, flags=re.S | re.M)
    named = {name for row in table.strip().splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[2])}
    assert len(named) > 10 and named <= known


def test_the_words_of_the_house(root):
    """Words that the documentation avoids; 'data card' is the name of a figure."""
    found = []
    texts = [*pages(root), *(root / "config").glob("*.yaml"), *(root / "profiles").rglob("*.yaml")]
    for page in texts:
        text = page.read_text().lower().replace("data card", "")
        found += [f"{page.relative_to(root)}: {word!r}" for word in BANNED if word in text]
    assert found == []


def literal_texts(package: Path) -> str:
    """All source text with string literals that continue on the next line joined, and placeholders as '{}'."""
    text = "\n".join(path.read_text() for path in sorted(package.rglob("*.py")))
    text = re.sub(r'"\s*\n\s*f?"', "", text)
    return re.sub(r"\{[^{}]*\}|%d|%s|%r", "{}", text)


def fragments(message: str) -> list[str]:
    """The parts of a quoted message that do not depend on the values in it."""
    parts = re.split(r"\.\.\.|'[^']*'|\b\d+(?:\.\d+)?\b|\bFILE\S*|\(|\)", message)
    return [part.strip(" .,:;") for part in parts if len(part.strip(" .,:;")) > 5]


@pytest.mark.parametrize("name", ["docs/own-data.md#messages", "docs/running.md#troubleshooting"])
def test_quoted_messages_exist(root, name):
    """Messages in the tables of errors are those that the code prints."""
    page, _, place = name.partition("#")
    text = (root / page).read_text().split(f"## {place.capitalize()}\n")[1]
    source = literal_texts(root / "src" / "samsvae")
    elsewhere = ("MissingInputException", "FileNotFoundError", "No rule to produce", "Directory cannot", "CUDA out")
    elsewhere += ("Config file",)
    missing = []
    for row in re.findall(r"^\| (.*?) \|", text, flags=re.M):
        for message in re.findall(r"`([^`]+)`", row):
            if not message.startswith((*elsewhere, "--", "Configuration:")):
                missing += [part for part in fragments(message) if part not in source]
    assert missing == []


def metric_rows() -> list[str]:
    """The table of metrics as docs/outputs.md shows it."""
    table = pytest.importorskip("samsvae.evaluation.metrics.table")
    return [
        f"| `{row.name}` | {row.label} | {', '.join(row.protocols) or '-'} | {row.better or '-'} | {row.sentence} |"
        for row in table.METRICS.values()
    ]


def test_the_docs_list_every_metric(root):
    """docs/outputs.md holds the table of metrics; to update it, paste what this test expects."""
    text = (root / "docs" / "outputs.md").read_text()
    (found,) = re.findall(r"^\| metric \| .*?\n\n", text, flags=re.S | re.M)
    assert found.strip().splitlines()[2:] == metric_rows()
