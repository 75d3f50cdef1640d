"""The contract that every algorithm keeps, for `bench check` and for people's own test runs."""

from bench.conformance.cases import Case, Subject, subjects
from bench.conformance.checks import CHECKS
from bench.conformance.statements import ContractError

__all__ = ["CHECKS", "Case", "ContractError", "Subject", "subjects"]
