"""The tree keeps its promises: every module declares what it offers, nothing is too long, no host or path leaks."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "broker_link", "coordinator", "edge_client", "flockwise", "integer_noise", "model_export", "secure_sum",
    "simulators", "wire_protocol",
)  # fmt: skip
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "manager", "base", "misc"}
FORBIDDEN_CALLS = {"pickle", "cPickle", "dill", "marshal", "shelve"}


def _git(*arguments: str) -> list[str]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")


def _name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "__init__.py"], ids=_name)
def test_every_module_says_what_it_offers(path):
    tree = ast.parse(path.read_text())
    offered = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and any(getattr(t, "id", None) == "__all__" for t in node.targets)
    ]
    assert offered, f"{path.name} has no __all__"
    assert ast.get_docstring(tree), f"{path.name} has no docstring"


def test_no_module_is_a_grab_bag():
    assert not [path for path in MODULES if path.stem in FORBIDDEN_NAMES]


def test_modules_are_short():
    lengths = sorted(len(path.read_text().splitlines()) for path in MODULES if path.name != "__init__.py")
    assert lengths[len(lengths) // 2] <= 150
    assert lengths[-1] <= 400


def test_nothing_imports_pickle_or_its_kin():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "").split(".")[0]]
            assert not set(names) & FORBIDDEN_CALLS, path


def test_the_linter_sees_every_python_file_that_git_has():
    tracked = {line for line in _git("ls-files", "*.py") if line and (ROOT / line).exists()}
    command = [sys.executable, "-m", "ruff", "check", "--show-files", "."]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    linted = {str(Path(line).resolve().relative_to(ROOT)) for line in shown if line.endswith(".py")}
    assert tracked <= linted


def test_no_registry_host_and_no_lock_file_is_committed():
    hosts = re.compile("pypi" + r"\.org|pythonhosted\.org|registry\.npmjs|deb\.debian\.org")
    for name in _git("ls-files"):
        path = ROOT / name
        if not name or not path.is_file():
            continue
        assert path.name not in {"uv.lock", "package-lock.json", "poetry.lock"}
        if path.suffix in {".py", ".md", ".toml", ".cfg", ""} and path != Path(__file__).resolve():
            assert not hosts.search(path.read_text(errors="ignore")), name


def test_tenseal_is_imported_by_one_module_and_only_when_it_is_used():
    importing = [path for path in MODULES if re.search(r"^\s*(import|from) tenseal", path.read_text(), re.MULTILINE)]
    assert [str(path.relative_to(ROOT)) for path in importing] == ["secure_sum/bfv.py"]
    assert not re.search(r"^(import|from) tenseal", importing[0].read_text(), re.MULTILINE)
