"""Untrusted text is shown as it is. The escapes follow GitHub's Markdown."""

from __future__ import annotations

import pytest

from autopack.mirror.markdown import code, inline, quote, table

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Add the login form (v2), please.", "Add the login form (v2), please."),
        ("snake_case stays readable", "snake_case stays readable"),
        ("_em_ and __strong__", r"\_em\_ and \_\_strong\_\_"),
        ("# heading", r"\# heading"),
        ("- item", r"\- item"),
        ("1. item", r"1\. item"),
        ("12) item", r"12\) item"),
        ("a - b + c = d # e", "a - b + c = d # e"),
        ("=====", r"\====="),
        ("[a](b) ![c](d)", r"\[a\](b) !\[c\](d)"),
        ("<b>&amp;</b>", "&lt;b&gt;&amp;amp;&lt;/b&gt;"),
        ("`x` ~y~ *z* $m$ a|b", r"\`x\` \~y\~ \*z\* \$m\$ a\|b"),
        ("see https://evil.example", r"see https\://evil.example"),
        ("see www.evil.example", r"see www\.evil.example"),
        ("back\\slash", r"back\\slash"),
        ("two\nlines\r\n\tand\x00 more", "two lines and more"),
        ("\x1b[31mred\x9b0m", r"\[31mred 0m"),
        ("a\u202eb\u2066c", "abc"),
        ("@admin, a@b.example", "@<!-- -->admin, a@<!-- -->b.example"),
        ("closes #12 and org/repo#3", "closes #<!-- -->12 and org/repo#<!-- -->3"),
        ("fixes GH-12", "fixes GH-<!-- -->12"),
        ("#1", r"\#<!-- -->1"),
        ("@ # GH-x", "@ # GH-x"),
        ("half \ud800", "half \ufffd"),
        ("  ", ""),
    ],
)
def test_inline_shows_the_text_and_builds_nothing(text: str, shown: str) -> None:
    assert inline(text) == shown


def test_a_long_text_is_cut_before_it_is_escaped() -> None:
    assert inline("*" * 10, 4) == r"\*\*\*…"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("src/app.py", "`src/app.py`"),
        ("a b", "`a b`"),
        ("a`b", "``a`b``"),
        ("`", "`` ` ``"),
        ("a\nb", "`a b`"),
        ("", "-"),
    ],
)
def test_code_cannot_be_left(text: str, shown: str) -> None:
    assert code(text) == shown


def test_a_quotation_keeps_lines_and_paragraphs() -> None:
    assert quote("one\ntwo\n\n\n# three\n") == "> one  \n> two\n>\n> \\# three"


def test_a_quoted_log_mentions_no_account_and_ends_no_quotation() -> None:
    log = "@admin\n```\n</blockquote>\n> x\n![a](https://evil.example/a.png) closes #1"
    assert quote(log).splitlines() == [
        "> @<!-- -->admin  ",
        r"> \`\`\`  ",
        "> &lt;/blockquote&gt;  ",
        "> &gt; x  ",
        r"> !\[a\](https\://evil.example/a.png) closes #<!-- -->1",
    ]


def test_a_pipe_ends_no_cell() -> None:
    rows = [(inline("a|b"), code("c|d"), inline("e\\|f"), code("g\\|h"))]
    assert table("abcd", rows).splitlines()[2] == r"| a\|b | `c\|d` | e\\\|f | g\\\|h |"
