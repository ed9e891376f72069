"""What a CI command must show to be worth something: the trees it is tried on. (docs/ci.md)

A command proves nothing that ends with 0 whatever the commit is. `autopack gate prove` runs it on
the base, on the base with a failing test in each test file, without any test file, and where no
program is found. Pure functions; `cli/proving.py` makes the trees and runs the command.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from .printable import one_line
from .terms import Verdict

MAX_TEST_FILES: Final = 100
# Of the names of test files, what a message names: how many endings, with how many letters.
MAX_ENDINGS: Final = 5
MAX_ENDING: Final = 20
MAX_TEST_BYTES: Final = 1024 * 1024
NO_PROGRAMS: Final = "/autopack-gate-prove/no-programs"
_NAME: Final = "autopack gate prove"
# A program by its place, or a command that sets the PATH itself, is found without the PATH.
_PLACED: Final = re.compile(
    r"(?:^|[\s;&|(`'\"])(?:[.~]{0,2}/|\$\{?\w+\}?/|PATH=)|(?:^|[;&|(])\s*(?:\.|source)\s"
)


class ProofStep(StrEnum):
    """A question to the command."""

    GREEN_BASE = "green_base"
    FAILING_TEST = "failing_test"
    NO_TESTS = "no_tests"
    NO_PROGRAM = "no_program"


class ProofResult(StrEnum):
    PASSED = "passed"
    WARNED = "warned"  # a bad commit is never green by it, but it costs an agent's tries
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The answer to one question; `verdict` is None where the command was not run for it."""

    step: ProofStep
    result: ProofResult
    detail: str
    verdict: Verdict | None = None


def judge_base(verdict: Verdict, reason: str) -> Proof:
    """The command must be green on the base: else no other answer says anything."""
    is_green = verdict is Verdict.GREEN
    return Proof(
        step=ProofStep.GREEN_BASE,
        result=ProofResult.PASSED if is_green else ProofResult.FAILED,
        detail="green on the base" if is_green else f"{_said(verdict)} on the base: {reason}",
        verdict=verdict,
    )


def judge_failing_test(verdict: Verdict, where: str, why: str = "") -> Proof:
    """The command must be red if a test fails. `where` says what was broken.

    `why` says why it was the code, not a test.
    """
    note = f" ({why})" if why else ""
    lapse = "no test notices it" if why else "it does not run those tests"
    return _judged(
        ProofStep.FAILING_TEST,
        verdict,
        is_passed=verdict is Verdict.RED,
        good=f"red with {where}{note}",
        bad=f"{_said(verdict)} with {where}{note}: {lapse}, or the command hides that tests fail",
    )


def no_maker(tests: Iterable[str]) -> str:
    """Say why no failing test was added to test files, by the endings of their names."""
    endings = sorted({one_line(ending_of(path))[:MAX_ENDING] for path in tests})
    if not endings:
        return "there is no test file by ci.test_paths"
    named = ", ".join(f".{ending}" if ending else "no ending" for ending in endings[:MAX_ENDINGS])
    more = " and others" if len(endings) > MAX_ENDINGS else ""
    return f"no failing test can be added to these test files: {named}{more}"


def judge_no_tests(verdict: Verdict, files: int) -> Proof:
    """The command must not be green without tests."""
    return _judged(
        ProofStep.NO_TESTS,
        verdict,
        is_passed=verdict is not Verdict.GREEN,
        good=f"{_said(verdict)} without its {_counted(files, 'test file')}",
        bad=f"green without its {_counted(files, 'test file')}: set ci.profiles.*.junit, so that"
        " a commit without tests is red",
    )


def judge_no_program(verdict: Verdict, command: str) -> Proof:
    """A command whose program is missing has no verdict. (docs/ci.md)"""
    if verdict is Verdict.DID_NOT_RUN:
        detail = "did not run where its program is missing"
        return Proof(
            step=ProofStep.NO_PROGRAM, result=ProofResult.PASSED, detail=detail, verdict=verdict
        )
    if _PLACED.search(command):
        return skipped(ProofStep.NO_PROGRAM, "it does not look for its program on the PATH")
    is_green = verdict is Verdict.GREEN
    return Proof(
        step=ProofStep.NO_PROGRAM,
        result=ProofResult.FAILED if is_green else ProofResult.WARNED,
        detail=(
            "green where its program is missing"
            if is_green
            else "red where its program is missing: end with the status of the shell (127), so that"
            " no agent has to repair this machine"
        ),
        verdict=verdict,
    )


def skipped(step: ProofStep, why: str) -> Proof:
    """Return the answer to a question that does not fit the project."""
    return Proof(step=step, result=ProofResult.SKIPPED, detail=why)


def without_programs(command: str) -> str:
    """Return a command that finds no program on its PATH."""
    return f"PATH={NO_PROGRAMS}; export PATH\n{command}"


def is_proved(proofs: Iterable[Proof]) -> bool:
    """Return whether the command may be believed: no answer speaks against it."""
    return all(each.result is not ProofResult.FAILED for each in proofs)


def _judged(step: ProofStep, verdict: Verdict, *, is_passed: bool, good: str, bad: str) -> Proof:
    result = ProofResult.PASSED if is_passed else ProofResult.FAILED
    return Proof(step=step, result=result, detail=good if is_passed else bad, verdict=verdict)


def _said(verdict: Verdict) -> str:
    return verdict.replace("_", " ")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


# A failing test, in a file that has tests already


def with_failing_test(path: str, content: bytes) -> bytes | None:
    """Return a test file with one more test, which fails; None where it is not known how."""
    if len(content) > MAX_TEST_BYTES or b"\0" in content:
        return None
    name, ending = posixpath.basename(path), ending_of(path)
    text = content.decode(errors="surrogateescape")
    made = _MAKERS[ending](name, text) if ending in _MAKERS else None
    return None if made is None else made.encode(errors="surrogateescape")


def ending_of(path: str) -> str:
    """Return what a file's name ends with, in small letters and without its dot."""
    name = posixpath.basename(path)
    return "" if "." not in name else name.rpartition(".")[2].lower()


def _python(name: str, text: str) -> str | None:
    if not re.search(r"^\s*(async )?def test|^class \w*Test", text, re.MULTILINE):
        return None
    test = (
        "\n\nimport unittest as _autopack_unittest\n\n\n"
        "class TestAutopackGateProve(_autopack_unittest.TestCase):\n"
        f'    def test_fails(self):\n        self.fail("{_NAME}")\n\n\n'
    )
    # What stands after a call of `unittest.main()` would not be read any more.
    main = re.search(r"^if __name__\b", text, re.MULTILINE)
    place = main.start() if main else len(text)
    return text[:place] + test + text[place:]


def _script(name: str, text: str) -> str | None:
    called = re.search(r"\b(test|it)\s*\(", text)
    if called is None:
        return None
    return f'{text}\n;{called[1]}("{_NAME}", () => {{ throw new Error("{_NAME}"); }});\n'


def _go(name: str, text: str) -> str | None:
    if '"testing"' not in text:
        return None
    return f'{text}\nfunc TestAutopackGateProve(t *testing.T) {{ t.Fatal("{_NAME}") }}\n'


def _rust(name: str, text: str) -> str | None:
    if "#[test]" not in text:
        return None
    return f'{text}\n#[test]\nfn autopack_gate_prove() {{ panic!("{_NAME}"); }}\n'


def _java(name: str, text: str) -> str | None:
    kinds = {
        "org.junit.jupiter": "@org.junit.jupiter.api.Test ",
        "org.junit.Test": "@org.junit.Test ",
    }
    mark = next((mark for word, mark in kinds.items() if word in text), None)
    place = text.rfind("}")
    if mark is None or place < 0:
        return None
    test = f'  {mark}public void autopackGateProve() {{ throw new AssertionError("{_NAME}"); }}\n'
    return text[:place] + test + text[place:]


def _ruby(name: str, text: str) -> str | None:
    if name.endswith("_spec.rb"):
        return f'{text}\nRSpec.describe("autopack") {{ it("fails") {{ raise "{_NAME}" }} }}\n'
    if "Minitest::Test" in text:
        test = f'  def test_fails\n    flunk "{_NAME}"\n  end\n'
        return f"{text}\nclass AutopackGateProveTest < Minitest::Test\n{test}end\n"
    return None


def _shell(name: str, text: str) -> str | None:
    first, newline, rest = text.partition("\n")
    if not first.startswith("#!"):
        return f"exit 1  # {_NAME}\n{text}"
    return f"{first}{newline or chr(10)}exit 1  # {_NAME}\n{rest}"


def _bats(name: str, text: str) -> str | None:
    return f'{text}\n@test "{_NAME}" {{\n  false\n}}\n'


_MAKERS: Final[Mapping[str, Callable[[str, str], str | None]]] = {
    "py": _python,
    **dict.fromkeys(("js", "mjs", "cjs", "jsx", "ts", "mts", "cts", "tsx"), _script),
    "go": _go,
    "rs": _rust,
    "java": _java,
    "rb": _ruby,
    "sh": _shell,
    "bats": _bats,
}
