"""Say which images a line has."""

from __future__ import annotations

from pydantic import Field

from csflow.config.section import Section


class DataConfig(Section):
    """The line's images: a folder in a git repository with DVC, at a revision."""

    repo: str = Field(
        default="..",
        description="Git repository that holds the images under DVC: a folder, relative to this YAML file, or a URL.",
        examples=["../datasets/bolts", "https://git.example.com/plant/bolts-data.git"],
    )
    rev: str = Field(
        default="HEAD",
        description="Revision of that repository: a branch, a tag or a commit. HEAD follows what was committed last.",
        examples=["HEAD", "v12", "3f2a9c01"],
    )
    path: str = Field(
        description="Folder of the line's images inside the repository, in the layout of MVTec AD.",
        examples=["data", "data/bolts"],
    )
