"""Where the figures of a report come from: recipes, commits, machines and versions."""

from __future__ import annotations

from collections.abc import Sequence

from sidestep.reporting.shown import Figure, ShownRun


def provenance(runs: Sequence[ShownRun]) -> list[Figure]:
    """Return what every run was made with, as a table without a chart."""
    rows: list[list[str]] = []
    for run in runs:
        rows += [[run.name, what, value] for what, value in _said(run) if value]
    commits = {row[2] for row in rows if row[1] == "commit"}
    machines = {row[2] for row in rows if row[1] == "hardware"}
    parts = (
        (len(runs), "run", "runs"),
        (len(commits), "commit", "commits"),
        (len(machines), "kind of machine", "kinds of machines"),
    )
    said = [f"{count} {one if count == 1 else several}" for count, one, several in parts]
    reading = f"{said[0]}, trained at {said[1]} on {said[2]}."
    columns = ["run", "what", "value"]
    return [
        Figure(
            key="provenance",
            section="Where this comes from",
            title="Recipes, commits, machines",
            reading=reading,
            columns=columns,
            rows=rows,
        )
    ]


def _said(run: ShownRun) -> list[tuple[str, str]]:
    rows = [("checkpoint", f"SHA-256 {run.checkpoint}" if run.checkpoint else "")]
    result = run.result
    if result is None:
        return rows
    hardware, recipe = result.environment["hardware"], result.recipe
    versions = result.environment["versions"]
    machine = [
        str(hardware.get("cpu", "")),
        f"{hardware.get('cores', '?')} cores",
        str(hardware.get("gpu") or ""),
    ]
    return [
        ("recipe", result.recipe_name),
        ("method", result.method),
        ("network", result.network),
        ("data", str(recipe["data"].get("source", ""))),
        ("seed", str(recipe.get("training", {}).get("seed", ""))),
        ("commit", str(result.environment["commit"])),
        ("hardware", ", ".join(part for part in machine if part)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("minutes of training", f"{result.minutes:.1f}"),
        *rows,
    ]
