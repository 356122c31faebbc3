"""`polyreel conformance`: checks a server against the contracts, and prints a table of what conforms.

Exit code 0 when everything conforms, 1 when something does not, 2 when the arguments are wrong. The key comes in the
environment variable CONFORMANCE_KEY, and is in no line that is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

import anyio
import httpx2
from rich.console import Console
from rich.table import Table

from polyreel.errors import did_you_mean
from polyreel.processes import start_as
from server.conformance import Suite, suites
from server.conformance._asking import Server
from server.conformance._rules import Finding, holds

#: Where the command line passes the key on: a process' arguments are everybody's to read.
KEY_VARIABLE = "CONFORMANCE_KEY"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suites; return the exit code."""
    options = _parser().parse_args(argv)
    start_as("polyreel conformance", None)
    key = os.environ.get(KEY_VARIABLE, "").strip()
    wrong = _wrong(options, key)
    if wrong:
        Console(stderr=True).print(f"polyreel conformance: {wrong}", style="red", markup=False, highlight=False)
        return 2
    chosen = [suites()[name] for name in options.dialect or suites()]
    results = anyio.run(_run, options.base_url.rstrip("/"), key, chosen, options.model, options.wait_s)
    report(results, as_json=options.as_json)
    return 0 if all(finding.conforms for findings in results.values() for finding in findings) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="polyreel conformance")
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--dialect", action="append")
    parser.add_argument("--model")
    parser.add_argument("--wait-s", type=float, default=280.0)
    parser.add_argument("--json", action="store_true", dest="as_json")
    return parser


def _wrong(options: argparse.Namespace, key: str) -> str:
    """Return what is wrong with the arguments, "" for nothing."""
    unknown = next((name for name in options.dialect or () if name not in suites()), None)
    if unknown is not None:
        return f"--dialect: no such API: {unknown}.{did_you_mean(unknown, suites())} Known: {', '.join(suites())}."
    if not options.base_url.startswith(("http://", "https://")):
        return f"--base-url must begin with http:// or https://, got {options.base_url[:100]}"
    if options.model and len(options.dialect or ()) != 1:
        return "--model names a model of one API; name that one with --dialect"
    return "" if key else f"--key is missing; {KEY_VARIABLE} in the environment does as well"


async def _run(
    base_url: str, key: str, chosen: list[Suite], model: str | None, wait_s: float
) -> dict[str, list[Finding]]:
    async with httpx2.AsyncClient(base_url=base_url) as http:
        return {suite.name: await findings_of(suite, http, key, model, wait_s=wait_s) for suite in chosen}


async def findings_of(
    suite: Suite, http: httpx2.AsyncClient, key: str, model: str | None = None, **how: float
) -> list[Finding]:
    """Return what a suite finds on a server.

    Args:
        how: `wait_s` and `pause_s` of `Server`.
    """
    server = Server(http, key, model or suite.model, **how)
    findings = [finding async for finding in suite.checks(server)]
    return [_without(key, finding) for finding in findings or [_nothing(suite)]]


def _nothing(suite: Suite) -> Finding:
    return holds("there is something to check", False, "a rule", "none", suite.title)


def _without(key: str, finding: Finding) -> Finding:
    """Return a finding in which the key does not stand, whatever the server has repeated."""
    return replace(finding, expected=finding.expected.replace(key, "***"), got=finding.got.replace(key, "***"))


def report(results: dict[str, list[Finding]], *, as_json: bool) -> None:
    """Print the findings of each API, and how many of them conform."""
    if as_json:
        found = {name: [asdict(finding) for finding in findings] for name, findings in results.items()}
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    console = Console(highlight=False, markup=False)
    for name, findings in results.items():
        table = Table("", "rule", "expected", "got", "source", box=None, padding=(0, 2, 0, 0))
        for finding in findings:
            mark, style = ("ok", None) if finding.conforms else ("NO", "bold red")
            table.add_row(mark, finding.rule, finding.expected, finding.got, finding.source, style=style)
        console.print(suites()[name].title, style="bold")
        console.print(table, "")
    for name, findings in results.items():
        console.print(f"{name}: {sum(finding.conforms for finding in findings)} of {len(findings)} conform")


if __name__ == "__main__":
    sys.exit(main())
