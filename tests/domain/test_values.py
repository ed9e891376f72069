"""Identifiers, texts and numbers from outside, and what is refused of them. (SECURITY.md)"""

from __future__ import annotations

import json
import subprocess

import pytest
from pydantic import TypeAdapter, ValidationError

from autopack.domain.errors import InvalidError
from autopack.domain.naming import branch_ref, snapshot_name, snapshot_ref
from autopack.domain.results import AuditorReport, BuilderReport, without_patches
from autopack.domain.values import (
    Count,
    FilePath,
    Identifier,
    IssueKey,
    Name,
    PathGlob,
    PositiveCount,
    Quantity,
    Text,
    Word,
)

pytestmark = pytest.mark.unit

GOOD_IDENTIFIERS = ["a", "0", "run-001", "P1.1", "fileorg_2.0", "A" * 64, "a-", "a_", "x.locks"]
BAD_IDENTIFIERS = [
    *(
        "",
        " ",
        "a b",
        "a/b",
        "a\\b",
        "../etc",
        "..",
        ".",
        ".a",
        "a.",
        "a..b",
        "-a",
        "--upload-pack=x",
    ),
    *("_a", "@", "@{-1}", "a@{0}", "a~1", "a^", "a:b", "a?", "a*", "a[b", "a.lock", "a.LOCK"),
    *("A" * 65, "a\n", "\na", "a\0", "é", "\u0430", "\uff11", "a\u200b", "a%2e", "\ud800"),
]
TYPES: dict[str, TypeAdapter[object]] = {
    "Identifier": TypeAdapter(Identifier),
    "Text": TypeAdapter(Text),
    "Name": TypeAdapter(Name),
    "Word": TypeAdapter(Word),
    "IssueKey": TypeAdapter(IssueKey),
    "PathGlob": TypeAdapter(PathGlob),
    "FilePath": TypeAdapter(FilePath),
    "Count": TypeAdapter(Count),
    "PositiveCount": TypeAdapter(PositiveCount),
    "Quantity": TypeAdapter(Quantity),
}
LONGEST = {"Text": 20_000, "Name": 500, "Word": 100, "IssueKey": 200, "PathGlob": 1_000}
SHORT = [name for name in LONGEST if name != "Text"]


def refuses(kind: str, value: object) -> bool:
    """Say whether a type refuses a value, as Python has it and as JSON."""
    try:
        TYPES[kind].validate_python(value)
    except ValidationError:
        pass
    else:
        return False
    try:
        TYPES[kind].validate_json(json.dumps(value))
    except ValidationError:
        return True
    return False


def takes(kind: str, value: object) -> bool:
    as_json = TYPES[kind].validate_json(json.dumps(value))
    return TYPES[kind].validate_python(value) == as_json == value


@pytest.mark.parametrize("value", GOOD_IDENTIFIERS)
def test_an_identifier_becomes_a_ref_that_git_accepts(value: str) -> None:
    assert takes("Identifier", value)
    for ref in (branch_ref(value), snapshot_ref(snapshot_name(value, value, value))):
        subprocess.run(["git", "check-ref-format", ref], check=True)


@pytest.mark.parametrize("value", BAD_IDENTIFIERS)
def test_what_could_be_read_as_something_else_is_no_identifier(value: str) -> None:
    assert refuses("Identifier", value)


def test_the_refusal_of_an_identifier_says_what_would_be_accepted() -> None:
    with pytest.raises(ValidationError, match=r"beginning with a letter or digit"):
        TYPES["Identifier"].validate_python("-a")


@pytest.mark.parametrize("kind", [*LONGEST, "FilePath"])
@pytest.mark.parametrize("value", ["a\0b", "a\ud800b", "\udfff", 1, True, None, ["a"], b"\xff"])
def test_no_text_holds_nul_or_a_lone_surrogate_or_is_no_text(kind: str, value: object) -> None:
    if isinstance(value, bytes):
        with pytest.raises(ValidationError):
            TYPES[kind].validate_python(value)
    else:
        assert refuses(kind, value)


@pytest.mark.parametrize(("kind", "length"), LONGEST.items())
def test_a_text_has_its_longest_length(kind: str, length: int) -> None:
    assert takes(kind, "ü" * length)
    assert refuses(kind, "ü" * (length + 1))


@pytest.mark.parametrize("kind", SHORT)
@pytest.mark.parametrize(
    "value",
    ["", "a\nb", "a\rb", "a\tb", "\x1b[31m", "\x7f", "\x85", "\u2028", "\u2029", "a\u202eb"],
)
def test_a_name_is_not_empty_and_has_no_controls_or_line_breaks(kind: str, value: str) -> None:
    assert refuses(kind, value)


@pytest.mark.parametrize("kind", LONGEST)
@pytest.mark.parametrize("value", ["Grüße, 世界 🚀", "<b>&amp;</b>", "a' OR 1=1 --", "${x}"])
def test_an_unusual_but_valid_value_is_accepted(kind: str, value: str) -> None:
    assert takes(kind, value)


def test_free_text_may_have_lines() -> None:
    assert takes("Text", "one\r\n\ttwo\n")


@pytest.mark.parametrize("kind", ["Count", "PositiveCount", "Quantity"])
@pytest.mark.parametrize(
    "value", [-1, 2**53, 2**64, 10**400, float("nan"), float("inf"), True, "5", None, [], {}]
)
def test_a_number_is_finite_not_negative_and_below_two_to_the_53(kind: str, value: object) -> None:
    assert refuses(kind, value)


@pytest.mark.parametrize("kind", ["Count", "PositiveCount"])
def test_a_count_is_whole(kind: str) -> None:
    assert takes(kind, 2**53 - 1)
    assert refuses(kind, 1.5)


def test_only_a_positive_count_is_not_zero() -> None:
    assert takes("Count", 0)
    assert refuses("PositiveCount", 0)


@pytest.mark.parametrize("value", [0, 12, 12.5])
def test_a_quantity_may_be_whole_or_not(value: float) -> None:
    assert takes("Quantity", value)


class TestReports:
    def test_a_patch_comes_as_text_or_as_base64_and_not_as_both(self) -> None:
        def report(**fields: object) -> BuilderReport:
            return BuilderReport.model_validate({"status": "success", **fields})

        assert report().patch() is None
        assert report(patch_content="").patch() is None
        assert report(patch_content="ü\0").patch() == b"\xc3\xbc\0"
        assert report(patch_content_base64="/w==").patch() == b"\xff"
        with pytest.raises(InvalidError, match="not both"):
            report(patch_content="a", patch_content_base64="YQ==").patch()
        with pytest.raises(InvalidError, match="base64"):
            report(patch_content_base64="a$==").patch()

    def test_a_stored_report_has_neither_patches_nor_the_lease(self) -> None:
        builder = BuilderReport.model_validate(
            {
                "status": "success",
                "patch_content": "diff",
                "patch_content_base64": "",
                "lease_token": "secret",
                "notes": "done",
            }
        )
        assert without_patches(builder) == {"status": "success", "notes": "done"}
        auditor = AuditorReport.model_validate(
            {
                "recommendation": "approve",
                "lease_token": "secret",
                "suggested_patches": [{"description": "fix", "patch_content": "diff"}],
            }
        )
        assert without_patches(auditor) == {
            "recommendation": "approve",
            "suggested_patches": [{"description": "fix"}],
        }

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("status", "great"),
            ("tokens_used", -1),
            ("tokens_used", True),
            ("files_changed", ["a\0b"]),
            ("base_commit", "HEAD"),
            ("base_commit", "a" * 40 + "\n"),
            ("cost_usd", float("nan")),
            ("suggested_issues", [{}] * 201),
            ("run_id", "a/b"),
            ("surprise", 1),
        ],
    )
    def test_a_bad_field_is_refused_by_its_name(self, field: str, value: object) -> None:
        with pytest.raises(ValidationError) as refusal:
            BuilderReport.model_validate({"status": "success", field: value})
        assert {error["loc"][0] for error in refusal.value.errors()} == {field}
