"""Rules and scripts contain no logic: a rule names files and a script; a script reads its inputs and makes a call."""

from __future__ import annotations

import ast
import re

#: Syntax that decides or repeats, or defines something.
LOGIC = (
    ast.If,
    ast.IfExp,
    ast.BoolOp,
    ast.Compare,
    ast.For,
    ast.While,
    ast.Try,
    ast.FunctionDef,
    ast.ClassDef,
    ast.Lambda,
)
#: Syntax that a look-up may use: names, attributes, subscripts, calls of named functions, lists.
LOOK_UP = (
    ast.Expression, ast.Name, ast.Load, ast.Store, ast.Attribute, ast.Subscript, ast.Call, ast.keyword, ast.Constant,
    ast.List, ast.ListComp, ast.comprehension,
)  # fmt: skip


def too_much(code: str) -> list[str]:
    """The parts of an expression that are more than a look-up."""
    tree = ast.parse(code.strip(), mode="eval")
    found = [type(node).__name__ for node in ast.walk(tree) if not isinstance(node, LOOK_UP)]
    return found + ["if" for node in ast.walk(tree) if isinstance(node, ast.comprehension) and node.ifs]


def test_too_much_finds_logic():
    assert too_much('run_files(selected("a", [SHOWN], masked=True), "b.tsv")') == []
    assert too_much("DATASETS[wildcards.dataset].options.tables") == []
    assert too_much("120 * len(batch_of(wildcards))") == ["BinOp", "Mult"]
    assert too_much("[run for run in found if run.row]") == ["if"]
    assert too_much('f"{a}"')[0] == "JoinedStr"


#: Files with functions: the look-ups of the rules, and the way to the package, which cannot be imported before it.
FUNCTIONS = ("checkout.smk", "common.smk")


def rule_files(root):
    return [path for path in sorted((root / "rules").glob("*.smk")) if path.name not in FUNCTIONS]


def bodies(text: str) -> dict[str, str]:
    """Name -> body of the rules in a file; a rule in a loop, which has no name, is called `loop N`."""
    parts = re.split(r"^(?:    )?rule(?: (\w+))?:$", text, flags=re.M)
    found = {}
    for number, (name, body) in enumerate(zip(parts[1::2], parts[2::2], strict=True)):
        found[name or f"loop {number}"] = body.replace("\n    ", "\n") if name is None else body
    return found


def test_a_rule_names_files_and_a_script(root):
    rules = 0
    for path in rule_files(root):
        for body in bodies(path.read_text()).values():
            rules += 1
            does = re.findall(r"^    (run|shell|script|notebook|wrapper|exec\w*):", body, flags=re.M)
            assert does == ["script"] * ("    output:\n" in body), body  # a rule without output is a target
            for code in re.findall(r"lambda \w+: (.+?),?$", body, flags=re.M):
                assert too_much(code) == [], f"{path.name}: {code}"
    assert rules >= 25


def test_every_job_has_a_log_and_an_environment(root):
    for path in rule_files(root):
        for name, body in bodies(path.read_text()).items():
            for directive in ("log", "conda", "params") if "    output:\n" in body else ():
                # targets have no jobs
                assert f"    {directive}:\n" in body, (path.name, name, directive)


def test_functions_of_rules_are_in_two_files(root):
    """Only figures have loops: over the figures of the plan, and over the targets that stand for several."""
    for path in (root / "Snakefile", *rule_files(root)):
        found = re.findall(r"^\s*((?:def|if|for|while|try|class)\b.*):$", path.read_text(), flags=re.M)
        assert all(re.fullmatch(r"for \w+, \w+ in PICTURES\.[\w.]+\(\)(\.items\(\))?", line) for line in found), found


def scripts(root):
    return sorted((root / "workflow" / "scripts").glob("*.py"))


def test_a_script_is_a_job_around_calls(root):
    assert len(scripts(root)) >= 25
    for path in scripts(root):
        tree = ast.parse(path.read_text())
        logic = [type(node).__name__ for node in ast.walk(tree) if isinstance(node, LOGIC)]
        assert not logic, f"{path.name}: {logic}"
        assert isinstance(tree.body[-1], ast.With), path.name
        assert ast.unparse(tree.body[-1].items[0]) == "job(snakemake)", path.name
        assert len(path.read_text().splitlines()) <= 30, path.name


def test_every_script_has_a_rule_that_tracks_its_code(root):
    """A rule names the script and has its digest in params, so that an edit reruns it."""
    text = "".join(path.read_text() for path in rule_files(root))
    for path in scripts(root):
        assert f'"../workflow/scripts/{path.name}"' in text, path.name
    for path in rule_files(root):
        for name, body in bodies(path.read_text()).items():
            if "    output:\n" not in body:
                continue
            (script,) = re.findall(r"workflow/scripts/(\w+)\.py", body)
            # take has the digest of train, whose files it links; an edit of the code never downloads a source again
            followed = {"take": "train", "download_source": "", "figure": ""}.get(script, script)
            assert not followed or f'code_of("{followed}")' in body, name
            assert script != "figure" or "code=figure_code(figure)" in body
