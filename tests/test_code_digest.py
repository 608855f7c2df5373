"""Code digests: an edit counts if and only if the script imports the edited code."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest

from samsvae.study.code_digest import code_of, scoring_rules

FILES = {
    "workflow/scripts/train.py": "from samsvae.training import fit\n\nfit(1)\n",
    "workflow/scripts/plot.py": "import samsvae.figures\n",
    "src/samsvae/__init__.py": "",
    "src/samsvae/training.py": '''
        """Trains."""
        from samsvae import model

        def fit(rate):
            """Fit it."""
            from .data import batch  # at the last moment
            return model.loss(batch.load(), rate)
        ''',
    "src/samsvae/model.py": "from .networks import width as w\n\ndef loss(x, rate): return x * rate * w\n",
    "src/samsvae/networks.py": "width = 3\n",
    "src/samsvae/data/__init__.py": "from ..errors import DataError\n",
    "src/samsvae/data/batch.py": "def load():\n    return 2\n",
    "src/samsvae/errors.py": "class DataError(ValueError): ...\n",
    "src/samsvae/figures.py": "colour = 'orange'\n",
}


@pytest.fixture
def checkout(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    return tmp_path


def edit(checkout, name, old, new):
    text = (checkout / name).read_text()
    assert old in text
    (checkout / name).write_text(text.replace(old, new))


def digests(checkout):
    return tuple(code_of(f"workflow/scripts/{name}.py", checkout) for name in ("train", "plot"))


@pytest.mark.parametrize(
    ("name", "old", "new", "changed"),
    [
        ("workflow/scripts/train.py", "fit(1)", "fit(2)", (True, False)),
        ("src/samsvae/training.py", "return model", "return -model", (True, False)),
        ("src/samsvae/model.py", "x * rate", "x + rate", (True, False)),
        ("src/samsvae/networks.py", "3", "4", (True, False)),  # two imports deep
        ("src/samsvae/data/batch.py", "2", "3", (True, False)),  # imported inside a function
        ("src/samsvae/data/__init__.py", "\n", "\nflag = True\n", (True, False)),  # run by data.batch
        # imported by the __init__ of the package, but it holds only messages
        ("src/samsvae/errors.py", "ValueError", "KeyError", (False, False)),
        ("src/samsvae/figures.py", "orange", "blue", (False, True)),
        ("src/samsvae/figures.py", "'orange'", "None", (False, True)),
        ("src/samsvae/training.py", "Trains.", "Trains a model.", (False, False)),
        ("src/samsvae/training.py", "Fit it.", "Fit the model.", (False, False)),
        ("src/samsvae/training.py", "at the last moment", "late", (False, False)),
        ("src/samsvae/model.py", "x * rate", "(x  *  rate)", (False, False)),
    ],
)
def test_an_edit_counts_if_the_script_imports_it(checkout, name, old, new, changed):
    before = digests(checkout)
    edit(checkout, name, old, new)
    assert tuple(a != b for a, b in zip(before, digests(checkout), strict=True)) == changed


def test_the_init_of_a_package_counts_for_all_scripts(checkout):
    before = digests(checkout)
    (checkout / "src/samsvae/__init__.py").write_text("version = 1\n")
    assert all(a != b for a, b in zip(before, digests(checkout), strict=True))


def test_the_folder_of_the_checkout_does_not_matter(checkout, tmp_path_factory):
    copy = shutil.copytree(checkout, tmp_path_factory.mktemp("copy") / "elsewhere")
    assert digests(copy) == digests(checkout)
    assert code_of(copy / "workflow/scripts/train.py", copy) == digests(checkout)[0]


def test_a_digest_has_16_hexadecimal_characters():
    """The digest of this file: 16 hexadecimal characters."""
    digest = code_of(__file__, os.path.dirname(os.path.dirname(__file__)))
    assert len(digest) == 16
    assert int(digest, 16) >= 0


@pytest.mark.parametrize("python", ["python3.11", "python3.12", "python3.13", "python3.14"])
def test_a_digest_is_the_same_under_other_pythons(root, python):
    """The digest of a real module with f-strings and annotations does not depend on the Python version."""
    script = "src/samsvae/study/gpus.py"
    code = f"import samsvae.study.code_digest as d; print(d.code_of({script!r}, {str(root)!r}))"
    found = shutil.which(python)
    if found is None or subprocess.run([found, "-c", "pass"], capture_output=True).returncode:
        pytest.skip(f"no {python} here")
    env = {**os.environ, "PYTHONPATH": str(root / "src")}
    out = subprocess.run([found, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert out.strip() == code_of(script, root), f"{found} and {sys.version}"


def rules_of(package) -> str:
    """`scoring_rules` of a copy of the package."""
    spec = importlib.util.spec_from_file_location("copied", package / "study" / "code_digest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.scoring_rules()


def test_rules_of_scoring_are_those_of_any_copy_of_the_package(root, tmp_path):
    package = shutil.copytree(root / "src" / "samsvae", tmp_path / "site-packages" / "samsvae")
    first = scoring_rules()
    assert re.fullmatch("[0-9a-f]{12}", first) and rules_of(package) == first
    for name, edit, changes in (
        ("evaluation/metrics/discrimination.py", "# a comment", False),
        ("evaluation/metrics/discrimination.py", "CHANGED = True", True),
        ("evaluation/calibrations.py", "CHANGED = True", True),  # of splits only
        ("evaluation/dosage_truth.py", "CHANGED = True", True),  # of screens without a control only
        ("evaluation/worth.py", "CHANGED = True", False),  # verdicts are made from scores
        ("models/model.py", "CHANGED = True", False),
    ):
        text = (package / name).read_text()
        (package / name).write_text(f"{text}\n{edit}\n")
        assert (rules_of(package) != first) == changes, name
        (package / name).write_text(text)


def test_a_missing_script_is_an_error(checkout):
    with pytest.raises(FileNotFoundError, match=r"absent\.py"):
        code_of("workflow/scripts/absent.py", checkout)
