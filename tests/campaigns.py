"""Random examples: few whenever the tests run, many in a campaign, which `.ci/run` runs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

Test = Callable[..., None]


def random_examples(
    few: int,
    many: int,
    *,
    derandomize: bool = False,
    phases: tuple[Phase, ...] = tuple(Phase),
    **drawn: SearchStrategy[Any],
) -> Callable[[Test], Test]:
    """Give a test random arguments so many times: `few`, and `many` in a test of its own.

    `drawn`: what each of these arguments is drawn from. All others are fixtures, made once.
    """

    def decorate(test: Test) -> Test:
        @pytest.mark.parametrize(
            "examples",
            [
                pytest.param(few, id="few"),
                pytest.param(many, id="many", marks=pytest.mark.campaigns),
            ],
        )
        @functools.wraps(test)
        def run(examples: int, **fixtures: Any) -> None:
            limits = settings(
                max_examples=examples,
                deadline=None,
                derandomize=derandomize,
                phases=phases,
                suppress_health_check=[HealthCheck.too_slow],
            )
            limits(given(**drawn)(test))(**fixtures)

        given_by_pytest = [
            parameter
            for name, parameter in inspect.signature(test).parameters.items()
            if name not in drawn
        ]
        examples = inspect.Parameter("examples", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        vars(run)["__signature__"] = inspect.Signature([examples, *given_by_pytest])
        shown: Test = run
        return shown

    return decorate
