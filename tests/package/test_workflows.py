"""The workflows and forms for GitHub are what its schemas allow."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

GITHUB = ROOT / ".github"
CHECKER = shutil.which("check-jsonschema", path=str(Path(sys.executable).parent))
SCHEMAS = {"workflows": "vendor.github-workflows", "ISSUE_TEMPLATE": "vendor.github-issue-forms"}


@pytest.mark.parametrize("folder", SCHEMAS)
def test_the_schema_is_kept(folder):
    if CHECKER is None:
        pytest.skip("check-jsonschema is not installed")
    files = sorted(map(str, (GITHUB / folder).glob("*.yml")))
    assert files
    command = [CHECKER, "--builtin-schema", SCHEMAS[folder], *files]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
