"""JSON files are laid out as `json.dumps` would with `indent=2`, and harmless to show."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from autopack.mirror.documents import encode, encode_sorted

pytestmark = pytest.mark.unit

# Characters that a terminal or an editor would obey are escaped; here plain ones will do.
TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_a_document_is_laid_out_as_json_dumps_does(document: dict[str, object]) -> None:
    assert encode(document).decode() == json.dumps(document, indent=2) + "\n"


@example({"\x7f": ""})  # ASCII, but escaped
@example({"a": ["\xe9", "\u2028", "\ud800"]})
@given(st.dictionaries(TEXT | st.text(max_size=3), VALUES | st.text(max_size=3), max_size=4))
def test_a_strategy_has_the_bytes_that_json_dumps_makes(document: dict[str, object]) -> None:
    written = json.dumps(document, indent=2, sort_keys=True) + "\n"
    assert encode_sorted(document).decode() == written
