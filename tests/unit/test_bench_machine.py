"""What is told of the machine that measures."""

from __future__ import annotations

import pytest

from bench import machine


@pytest.mark.parametrize(("later", "share"), [((40, 400), 0.1), ((10, 400), 0.0), ((10, 100), 0.0)])
def test_theft_is_the_share_of_the_time_that_has_passed(
    later: tuple[int, int], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter([(10, 100), later])
    monkeypatch.setattr(machine, "_processor_ticks", lambda: next(ticks))
    assert machine.Theft().share == share


def test_the_kernel_tells_of_stolen_time() -> None:
    stolen, passed = machine._processor_ticks()
    assert 0 <= stolen < passed
