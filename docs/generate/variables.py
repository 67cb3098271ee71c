"""Write the page about environment variables from the table that the code keeps."""

from __future__ import annotations

from csflow.system.environment import VARIABLES, Group, Variable

_TOP = """# Environment variables

Environment variables say where csflow runs and what it talks to; the YAML file of a line says what is trained. Nothing
has to be set on one machine. Credentials are read from the environment only: they are never written into a file.

"""
_GROUPS: dict[Group, tuple[str, str]] = {
    "csflow": ("Read by csflow", "Set these to move csflow to other folders, servers or a cluster."),
    "library": ("Read by libraries", "csflow hands these to MLflow, botocore, DVC and the Kubernetes client."),
    "internal": (
        "Set by csflow itself",
        "csflow or torchrun sets these for processes they start. Leave them alone.",
    ),
}


def page() -> str:
    """Return the page as Markdown: every variable with meaning, default, example and reader."""
    parts = [_TOP]
    for group, (title, about) in _GROUPS.items():
        parts.append(f"## {title}\n\n{about}\n\n")
        parts += [_entry(each) for each in VARIABLES if each.group == group]
    return "".join(parts)


def _entry(variable: Variable) -> str:
    example = variable.example if variable.example.startswith("(") else f"`{variable.example}`"
    return (
        f"### {variable.name}\n\n{variable.meaning}\n\n**Default:** {variable.default}. **Example:** {example}. "
        f"**Read by:** {variable.used_by}.\n\n"
    )
