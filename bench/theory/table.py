"""The claims as a table: plain text for the terminal, Markdown for `docs/theory.md`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from bench.theory import baseline, fusion, marginals
from bench.theory.claim import ERRORS, Claim

INTRO = f"""\
# The theory, checked

What BranchGRPO's paper claims of branching rollouts (arXiv 2509.06040; lemmas, theorem and appendix B as reconstructed
from their content), and what is true of it. For Gaussian data the velocity is exact and every sampler affine, so that
means, variances and covariances have closed forms; *measured* is the harness's own noise, rollout, fusion and credit. A
measured value agrees with its closed form within {ERRORS} standard errors (*±*); the verdict compares the closed form
with what is claimed, or with what the claim is often taken to say.

D is the number of dimensions, s the branch noise, rho = 1/(1+s²), K the children of a split, L the leaves below a node,
sigma² the variance of a leaf's reward given the node, p the law of a path, beta the exponent of eq. (3). This page is
generated: `bench theory --markdown > docs/theory.md`."""
READING = """\
## What follows

- Branching changes no marginal: an image of a tree may be compared with an image of any other sampler. The images of a
  tree are not independent, so a mean over them is worth fewer images than it has, and intervals go by tree or by seed.
- The official code's split noise, 4 times what it scores, widens every image's law and moves the log-prob of its edges.
- Uniform fusion is unbiased in every tree. Path weights (`fusion=path`, the paper's table row) tilt a node's value
  towards its likelier leaves, which were drawn by that likelihood already. As log-probs are means over D dimensions,
  the exponent is beta/D: for real latents nearly none, and path fusion is nearly uniform.
- Eq. (10) points along the gradient and shortens it by (1-1/K)(1-rho); it is unbiased only in its leave-one-out form
  with independent siblings. It lowers the variance where rewards are far from 0, and raises it where they are centred
  already."""


def all_claims(draws: int, seed: int) -> list[Claim]:
    """Return every row, measured with about `draws` samples each."""
    return [row for part in (marginals, fusion, baseline) for row in part.claims(draws, seed)]


def plain(claims: Sequence[Claim]) -> str:
    """Return the table for a terminal of 120 columns."""
    lines = [f"{'':40} {'claimed':>8} {'closed':>7} {'measured':>8} {'±':>6}  the claim"]
    for source, rows in groupby(claims, key=lambda claim: claim.source):
        lines.append(source)
        for claim in rows:
            claimed, closed, measured, tolerance = numbers(claim)
            lines.append(f"  {claim.name:38} {claimed:>8} {closed:>7} {measured:>8} {tolerance:>6}  {claim.verdict}")
    return "\n".join(lines)


def markdown(claims: Sequence[Claim]) -> str:
    """Return the page."""
    head = ["| what | claimed | closed form | measured | ± | the claim |", "|---|---:|---:|---:|---:|---|"]
    parts = [INTRO]
    for source, of_source in groupby(claims, key=lambda claim: claim.source):
        parts.append(f"## {source[:1].upper()}{source[1:]}")
        for statement, rows in groupby(of_source, key=lambda claim: claim.statement):
            parts += [f"*{statement}*", "\n".join([*head, *map(row, rows)])]
    return "\n\n".join([*parts, READING])


def row(claim: Claim) -> str:
    """Return a claim as a row of Markdown."""
    return f"| {' | '.join((cell(claim.name), *numbers(claim), cell(claim.verdict)))} |"


def numbers(claim: Claim) -> tuple[str, str, str, str]:
    """Return what is claimed, the closed form, what was measured and its tolerance, as they are printed."""
    at_most = "≤ " if claim.relation == "at most" else ""
    return at_most + number(claim.claimed), number(claim.expected), number(claim.measured), number(claim.tolerance)


def number(value: float) -> str:
    """Return a number with four decimals, and no sign before 0."""
    return f"{round(value, 4) + 0.0:.4f}"


def cell(text: str) -> str:
    """Return text that Markdown reads as text."""
    return text.replace("|", "\\|").replace("*", "\\*")
