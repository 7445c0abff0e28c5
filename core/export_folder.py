"""The folder of an export belongs to one job, so that nothing in it but that job's own files is ever replaced."""

from __future__ import annotations

from pathlib import Path

from tuneport.core.errors import UsageError

MARK = ".tuneport-export"
"""File that names the job by its key, from before the first byte arrives: an export that broke off knows its folder again."""


def claim(folder: Path, job_id: str, key: str) -> None:
    """Make ``folder`` the export's own: a new or empty one, or one that an earlier export of the same job began.

    Raises UsageError when it holds anything else, or cannot be written.
    """
    fix = "name a new or empty folder with --out"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / MARK
        if mark.exists():
            ours = mark.read_text(encoding="utf-8").strip() == key
        elif ours := not any(folder.iterdir()):
            mark.write_text(key + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder} cannot hold the export ({error.strerror})", fix=fix) from error
    if not ours:
        raise UsageError(f"{folder} holds files that are no export of job {job_id}, and an export would overwrite its like", fix=fix)
