"""Every pattern of the package needs a bounded number of steps for each character."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from tests.backtracking import Counter, TooManyStepsError

import autopack
from autopack.domain import secret_rules

pytestmark = pytest.mark.unit

LENGTH = 120
STEPS_A_SIGN = 60
# The app itself, and what reads addresses and commands of the operator's own settings.
LEFT_OUT = (
    "autopack.main",
    "autopack.client.connection",
    "autopack.domain.ruleset",
    "autopack.embedded_postgres",
    "autopack.gitrepo.address",
    "autopack.setup",
)


def patterns() -> Iterator[tuple[str, re.Pattern[Any], bool]]:
    """Yield the patterns of all modules, and whether they are looked for anywhere in a text."""
    for module in pkgutil.walk_packages(autopack.__path__, "autopack."):
        if module.name.endswith("__main__") or module.name.startswith(LEFT_OUT):
            continue
        imported = importlib.import_module(module.name)
        source = inspect.getsource(imported)
        for name, value in vars(imported).items():
            if isinstance(value, re.Pattern) and f"\n{name} = re.compile(" in source:
                searches = re.search(rf"\b{name}\.(search|finditer|findall|sub|split)\b", source)
                yield f"{module.name}.{name}", value, searches is not None
    for rule in secret_rules.RULES:
        if isinstance(rule.look, secret_rules._Format):
            yield f"rule of {rule.sort}", rule.look.pattern, False


def worst_texts(samples: set[str]) -> Iterator[str]:
    """Yield long texts of what a pattern speaks of, each with an end that it may not expect."""
    few = sorted(samples, key=lambda sample: (-len(sample), sample))[:5]
    for begin, piece, end in product(["", *few[:1]], few, ["", "\x00"]):
        yield begin + piece * (LENGTH // len(piece)) + end
    for one, other in product(few[:4], repeat=2):
        yield (one + other) * (LENGTH // len(one + other)) + "\x00"
        yield one + other + one * (LENGTH // len(one)) + "\x00"


def require_linear(pattern: re.Pattern[Any], *, is_searched: bool) -> None:
    counter = Counter(pattern)
    for text in worst_texts(counter.samples()):
        most = STEPS_A_SIGN * (len(text) + 1)
        if is_searched:
            counter.search(text, most)
        else:
            counter.match(text, most)


def test_every_pattern_is_linear_on_texts_made_of_its_own_words(subtests: pytest.Subtests) -> None:
    for name, pattern, is_searched in patterns():
        with subtests.test(name):
            require_linear(pattern, is_searched=is_searched)


@pytest.mark.parametrize("pattern", [r"(a+)+b", r"a*a*a*b", r"\d+\.\d+[\w.]*$", r"\s*#?\s*x"])
def test_the_counter_sees_what_is_not_linear(pattern: str) -> None:
    for is_searched in (True, False):
        with pytest.raises(TooManyStepsError):
            require_linear(re.compile(pattern), is_searched=is_searched)
    require_linear(re.compile("@+(?=x)"), is_searched=False)
    with pytest.raises(TooManyStepsError):
        require_linear(re.compile("@+(?=x)"), is_searched=True)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [(r"a{2,3}b|c??d", "aab cd d"), (r"(?<=x)[^y]+?y", "xaay"), (r"(?>a|ab)c", "ac"), (r"^b", "b")],
)
def test_the_counter_matches_as_python_does(pattern: str, text: str) -> None:
    for at in range(len(text)):
        match = re.compile(pattern).match(text, at)
        found = Counter(re.compile(pattern)).match(text, 1_000, at)
        assert found == (match.end() if match else None)
