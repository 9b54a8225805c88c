"""The files of one report, for all that only looks at them."""

from pathlib import Path

import pytest
from report.page_runs import write_runs

from gradroute.report.publish import publish


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that is written about five runs; nobody may change it."""
    out = tmp_path_factory.mktemp("report")
    folders = write_runs(out / "runs", prompts=12)
    for folder in folders:
        if folder.name not in ("routed", "filter"):
            folder.metrics.unlink()  # their figures are alike, and each takes its time
    publish(folders, out, page=True)
    return out
