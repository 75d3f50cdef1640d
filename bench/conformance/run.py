"""`bench check`: every check of the contract on an arm, a line each."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence

from bench.conformance.cases import Subject
from bench.conformance.checks import CHECKS
from bench.conformance.statements import ContractError
from bench.registry import InputError


def check_all(found: Sequence[Subject], say: Callable[[str], None]) -> int:
    """Run all checks on all subjects, saying how each went; return how many failed.

    Raises:
        InputError: if an arm does not resolve, or has no plan for any horizon and group size that is tried.
    """
    failed = 0
    for subject in found:
        shapes = ", ".join(f"{c.ctx.steps}x{c.ctx.group_size}" for c in subject.cases)
        say(f"{subject.arm}: steps x group size {shapes}")
        for check in CHECKS:
            wrong = verdict(check, subject)
            failed += wrong is not None
            title = check.__name__.replace("_", " ")
            say(f"  ok      {title}" if wrong is None else f"  FAILED  {title}: {wrong}")
    total = len(found) * len(CHECKS)
    say(f"{total} checks, {failed} failed" if failed else f"{total} checks, all hold")
    return failed


def verdict(check: Callable[[Subject], None], subject: Subject) -> str | None:
    """Return what is wrong, None if nothing is."""
    try:
        check(subject)
    except ContractError as error:
        return str(error)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001  # an algorithm may be anyone's code; what it raises is a finding
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
    return None
