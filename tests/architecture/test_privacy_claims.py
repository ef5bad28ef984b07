"""docs/privacy.md claims nothing without a test, and every test that it names exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "privacy.md").read_text()
HEADER = "the test that fails if it is false"


def _claims():
    """(claim, cell of tests) of every table that promises tests."""
    for table in re.findall(r"(?:^\|.*\n)+", DOCUMENT, re.MULTILINE):
        header, _, *rows = table.strip().splitlines()
        if HEADER in header:
            for row in rows:
                *claim, tests = (cell.strip() for cell in row.strip("|").split(" | "))
                yield " | ".join(claim), tests


def _named(cell, file):
    """(file, part of a test's name) for each in a cell; ``file`` is the one of the row above."""
    named = []
    for word in re.findall(r"`([^`]+)`", cell):
        if word.startswith("tests/"):
            file = word
        elif re.fullmatch(r"[a-z0-9_]+", word):
            named.append((file, word))
    return named, file


def _tests_in(file):
    functions = (node for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.FunctionDef))
    return [node.name for node in functions if node.name.startswith("test_")]


def test_every_claim_names_a_test_and_every_test_that_is_named_exists():
    file, num_claims = None, 0
    for claim, cell in _claims():
        named, file = _named(cell, file)
        num_claims += 1
        assert named, f"no test is named for: {claim}"
        for where, part in named:
            assert any(part in name for name in _tests_in(where)), f"{where} has no test {part!r}: {claim}"
    assert num_claims > 50


def test_every_file_of_tests_that_is_mentioned_is_there():
    mentioned = set(re.findall(r"`(tests/[^`]+)`", DOCUMENT))
    assert len(mentioned) > 15
    assert [name for name in sorted(mentioned) if not (ROOT / name).is_file()] == []
    assert re.findall(r"`(test_\w+\.py)`", DOCUMENT) == [], "a file of tests is named with its path"


def test_every_mode_has_a_threat_model():
    for mode in ("Distributed", "Local", "Central"):
        start = DOCUMENT.index(f"**{mode}**")
        assert HEADER in DOCUMENT[start : start + 400]
