"""`make chart-lint`: the description of what AWS provides is one that AWS takes, and one that security does not wince at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TEMPLATE = "charts/aws/healthmed.yaml"
TOOLS = Path(sys.executable).parent


def test_cloudformation_knows_every_property() -> None:
    ended = subprocess.run([TOOLS / "cfn-lint", TEMPLATE], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_a_misspelt_property_would_be_found(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(Path(TEMPLATE).read_text().replace("StorageEncrypted:", "StorageEncripted:"))
    assert subprocess.run([TOOLS / "cfn-lint", broken], capture_output=True, check=False).returncode != 0


def test_checkov_finds_nothing() -> None:
    command = [TOOLS / "checkov", "--framework", "cloudformation", "--compact", "--quiet", "--skip-download", "--output", "json"]
    ended = subprocess.run([*command, "--file", TEMPLATE], capture_output=True, text=True, check=False, timeout=240)
    found = json.loads(ended.stdout)
    assert found["summary"]["parsing_errors"] == 0
    assert found["summary"]["passed"] > 80
    assert [f"{each['check_id']} {each['resource']}" for each in found["results"]["failed_checks"]] == []
