"""How a failing test is added to a test file, and what the answers of a command mean."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autopack.domain.gate_proof import (
    Proof,
    ProofResult,
    judge_base,
    judge_failing_test,
    judge_no_program,
    judge_no_tests,
    no_maker,
    with_failing_test,
)
from autopack.domain.terms import Verdict

pytestmark = pytest.mark.unit

GREEN, RED, DID_NOT_RUN = Verdict.GREEN, Verdict.RED, Verdict.DID_NOT_RUN
PYTEST = b"def test_one():\n    assert True\n"
UNITTEST = b"""import unittest
class OneTest(unittest.TestCase):
    def test_one(self):
        pass
if __name__ == "__main__":
    unittest.main()
"""
NODE = b'const test = require("node:test");\ntest("one", () => {});\n'
SHELL = b"#!/bin/sh\necho fine\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("test_one.py", UNITTEST, [sys.executable, "-m", "unittest"]),
        ("test_one.py", UNITTEST, [sys.executable]),
        ("one.test.js", NODE, ["node", "--test"]),
        ("one.sh", SHELL, ["sh"]),
    ],
)
def test_the_added_test_fails_and_the_others_still_run(
    tmp_path: Path, name: str, content: bytes, words: list[str]
) -> None:
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")

    def status(text: bytes) -> int:
        (tmp_path / name).write_bytes(text)
        return subprocess.run(
            [*words, name], cwd=tmp_path, capture_output=True, check=False
        ).returncode

    assert status(content) == 0
    broken = with_failing_test(name, content)
    assert broken is not None
    assert status(broken) not in (0, 126, 127)


@pytest.mark.parametrize(
    ("name", "content", "added"),
    [
        ("a_test.go", 'import "testing"\n', "func TestAutopackGateProve(t *testing.T)"),
        ("a.rs", "#[test]\nfn one() {}\n", "#[test]\nfn autopack_gate_prove()"),
        ("ATest.java", "import org.junit.Test;\nclass A {\n}\n", "  @org.junit.Test public void"),
        ("a_spec.rb", "RSpec.describe(1)\n", "RSpec.describe("),
        ("a_test.rb", "class A < Minitest::Test\nend\n", "flunk"),
        ("a.bats", "", "@test"),
        ("a.spec.ts", "it('works', () => {});\n", ';it("autopack gate prove"'),
    ],
)
def test_other_languages_get_a_test_of_their_own(name: str, content: str, added: str) -> None:
    broken = with_failing_test(f"tests/{name}", content.encode())
    assert broken is not None
    assert added in broken.decode().replace(content, "", 1) or name.endswith("java")
    assert added in broken.decode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("conftest.py", b"import os\n"),
        ("data.json", b"{}"),
        ("a.py", b"def test_a(): pass\0"),
        ("a.py", b"def test_a(): pass\n" * 100_000),
        ("helper.js", b"exports.a = 1;\n"),
        ("ATest.java", b"class A {}"),
        ("noending", b"def test_a(): pass\n"),
    ],
)
def test_files_without_tests_stay_as_they_are(name: str, content: bytes) -> None:
    assert with_failing_test(f"tests/{name}", content) is None


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ([], "there is no test file by ci.test_paths"),
        (["tests/ATest.php", "tests/BTest.PHP"], "to these test files: .php"),
        (["a/Tests.cs", "b/T.kt", "tests/check.c", "tests/run"], ": no ending, .c, .cs, .kt"),
        ([f"tests/x.{letter}" for letter in "abcdefg"], ": .a, .b, .c, .d, .e and others"),
        (["tests/x.\x1b]0;" + "y" * 99], ": .\\x1b]0;yyyyyyyyyyyyy"),
    ],
)
def test_why_no_failing_test_was_added_is_told(tests: list[str], said: str) -> None:
    assert no_maker(tests).endswith(said)
    proof = judge_failing_test(GREEN, "any of 5 faults in the code", no_maker(tests))
    assert f"5 faults in the code ({no_maker(tests)}): no test notices it" in proof.detail


def test_bytes_that_are_no_text_stay() -> None:
    broken = with_failing_test("tests/test_a.py", b"# \xff\r\n" + PYTEST)
    assert broken is not None
    assert broken.startswith(b"# \xff\r\n")
    ast.parse(broken.replace(b"\xff", b""))


@pytest.mark.parametrize(
    ("proof", "result"),
    [
        (judge_base(GREEN, ""), "passed"),
        (judge_base(RED, "exit 1"), "failed"),
        (judge_base(DID_NOT_RUN, "exit 127"), "failed"),
        (judge_failing_test(RED, "x"), "passed"),
        (judge_failing_test(GREEN, "x"), "failed"),
        (judge_failing_test(DID_NOT_RUN, "x"), "failed"),
        (judge_no_tests(RED, 2), "passed"),
        (judge_no_tests(DID_NOT_RUN, 2), "passed"),
        (judge_no_tests(GREEN, 2), "failed"),
        (judge_no_program(DID_NOT_RUN, "pytest"), "passed"),
        (judge_no_program(RED, "pytest || exit 1"), "warned"),
        (judge_no_program(GREEN, "pytest || true"), "failed"),
        (judge_no_program(GREEN, "/srv/bin/pytest"), "skipped"),
        (judge_no_program(GREEN, ". .venv/bin/activate && pytest"), "skipped"),
        (judge_no_program(GREEN, "PATH=/a:/b pytest"), "skipped"),
        (judge_no_program(RED, "./gradlew test"), "skipped"),
        (judge_no_program(GREEN, "$HOME/bin/check"), "skipped"),
        (judge_no_program(GREEN, "find . -name x"), "failed"),
        (judge_no_program(GREEN, "bash scripts/gate.sh || true"), "failed"),
    ],
)
def test_what_an_answer_means(proof: Proof, result: str) -> None:
    assert proof.result is ProofResult(result)
