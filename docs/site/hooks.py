"""What MkDocs needs beyond mkdocs.yml: pages from the whole repository, tutorials from notebooks, and equations.

The pages of the site have the paths that they have in the repository, so that their links work in both. Equations
become MathML here, so that a page loads nothing from another server.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from pathlib import Path

import latex2mathml.converter
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]

#: Files of the site, by patterns; those that are no pages are there because pages link to them.
PUBLISHED = ("*.md", "docs/*.md", "docs/images/*", "config/*", "benchmarks/*.md", "benchmarks/*.png", "LICENSE")
PUBLISHED += ("CITATION.cff", "docs/site/*.css", "profiles/*/*.yaml", "resources/**/README.md")


def on_files(files: Files, config) -> Files:
    """Replace the files of docs/ by those of the repository; turn notebooks into pages."""
    for file in list(files):
        if file.abs_src_path and Path(file.abs_src_path).is_relative_to(ROOT / "docs"):
            files.remove(file)
    for path in sorted({path for pattern in PUBLISHED for path in ROOT.glob(pattern) if path.is_file()}):
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    for path in sorted((ROOT / "docs/tutorials").glob("*.ipynb")):
        name = path.relative_to(ROOT).with_suffix(".md").as_posix()
        files.append(File.generated(config, name, content=page_of(json.loads(path.read_text()))))
    return files


def page_of(notebook: dict) -> str:
    """A notebook as Markdown: its text, its code, and the outputs that are stored in it."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
        parts += [_output(output) for output in cell.get("outputs", ())]
    return "\n\n".join(parts) + "\n"


def _output(output: dict) -> str:
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "image/png" in data:
        return f'<img alt="figure" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    if "text/html" in data:
        table = re.sub(r"<style.*?</style>|(?m:^\s+)", "", "".join(data["text/html"]), flags=re.S)
        table = re.sub("<table[^>]*>", "<table>", table)  # the site has a style for tables without a class
        return "\n".join(line for line in table.splitlines() if line)
    return f"```text\n{''.join(data['text/plain'])}\n```"


def on_page_markdown(markdown: str, **_) -> str:
    """Write equations as $x$ where GitHub needs $`x`$."""
    return re.sub(r"\$`([^`]+)`\$", r"$\1$", markdown)


def on_page_content(content: str, page, **_) -> str:
    """Turn the equations of a page, which `arithmatex` has marked, into MathML."""
    found = r'<(div|span) class="arithmatex">\s*\\[\[(](.*?)\\[\])]\s*</\1>'
    converted = re.sub(found, _equation, content, flags=re.S)
    if 'class="arithmatex"' in converted:
        raise PluginError(f"{page.file.src_uri}: an equation was not converted")
    return converted


def _equation(match: re.Match) -> str:
    latex = re.sub(r"\\mathcal\s*\{?([A-Z])\}?", _script, html.unescape(match[2]).strip())
    if match[1] == "span":
        return latex2mathml.converter.convert(latex)
    number = re.search(r"\\tag\{(.*?)\}", latex)
    shown = latex2mathml.converter.convert(latex.replace(number[0], "") if number else latex, display="block")
    return f'<div class="equation">{shown}{f"({number[1]})" if number else ""}</div>'


def _script(match: re.Match) -> str:
    """A script capital as a character: browsers ignore the attribute that asks for one."""
    try:
        return unicodedata.lookup(f"MATHEMATICAL SCRIPT CAPITAL {match[1]}")
    except KeyError:  # some are older characters
        return unicodedata.lookup(f"SCRIPT CAPITAL {match[1]}")
