"""OpenAI's words for a job's state. Any other word becomes ``JobState.UNKNOWN`` and is shown raw.

Source: the ``status`` enum of openai 3.54.0, types/fine_tuning/fine_tuning_job.py. It has no word for a paused job,
though jobs can be paused; "paused" is our reading of what such a job will say.
"""

from __future__ import annotations

from collections.abc import Mapping

from tuneport.core.job import JobState

STATES: Mapping[str, JobState] = {
    "validating_files": JobState.VALIDATING,
    "queued": JobState.QUEUED,
    "running": JobState.RUNNING,
    "paused": JobState.PAUSED,
    "succeeded": JobState.SUCCEEDED,
    "failed": JobState.FAILED,
    "cancelled": JobState.CANCELLED,
}

LEVELS: Mapping[str, str] = {"info": "info", "warn": "warning", "error": "error"}
"""Levels of events."""
