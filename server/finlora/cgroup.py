"""The control groups whose limits hold for this process: its own, and those above it."""

import os
from pathlib import Path, PurePosixPath

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def groups(root: Path = ROOT, membership: Path = MEMBERSHIP) -> list[Path]:
    """Folders of version 2, from the process's own group up to the root.

    In a container the root usually is its own group; a systemd unit's lies further down.
    """
    own = _own(membership)
    return [root / group for group in (own, *own.parents)]


def _own(membership: Path) -> PurePosixPath:
    """Below the root; the root itself where nothing says more (man 7 cgroups)."""
    try:
        lines = os.fsdecode(membership.read_bytes()).splitlines()
    except OSError:
        return PurePosixPath()
    paths = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    # ".." leads to a group that the container cannot see.
    return PurePosixPath(*(path for path in paths if ".." not in path.split("/")))
