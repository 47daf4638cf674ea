"""The walks of the README and of three pages of docs/, run word by word against `make run`: they print what the pages say."""

from __future__ import annotations

import re
import subprocess

import pytest

from hpts import embedded
from tests.operations.test_run import Runs, free_port, runs

__all__ = ["runs"]

README = (embedded.ROOT / "README.md").read_text()
WALKS = {
    "README.md": README[README.index("## A walk with curl") : README.index("## The command line")],
    "docs/loan-life.md": (embedded.ROOT / "docs" / "loan-life.md").read_text(),
    "docs/seals.md": (embedded.ROOT / "docs" / "seals.md").read_text(),
    "docs/reconciliation.md": (embedded.ROOT / "docs" / "reconciliation.md").read_text(),
}
BLOCK = re.compile(r"^```(sh)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def comparable(text: str) -> list[str]:
    """Lines with what differs from run to run taken out: ids, times, the demo client's name."""
    text = re.sub(r"\bleaf \d+ of", "leaf N of", text)
    text = re.sub(r"[0-9a-f]{64,128}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{4}…", "ID", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z|…", "TIME", text)
    text = re.sub(r"acme-demo-(ID|[0-9a-f]+TIME|[0-9a-f]+)", "CLIENT", text)
    return text.strip().splitlines()


@pytest.mark.parametrize("page", WALKS)
def test_the_walk_prints_what_its_page_prints(page: str, runs: Runs) -> None:
    runs.start(free_port())
    blocks = BLOCK.findall(WALKS[page])
    script = "\n".join(text for language, text in blocks if language == "sh")
    expected = "".join(text for language, text in blocks if language != "sh")
    walk = subprocess.run(
        ["sh", "-eu", "-c", script.replace("var/demo.json", str(runs.demo_path))],
        cwd=embedded.ROOT,
        env=runs.place.variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert comparable(walk.stdout) == comparable(expected)


def test_the_readme_names_every_command_that_a_user_types() -> None:
    walked = ("make run", "make test", "verify_ledger", "create_tenant", "create_client", "trial_balance")
    for command in (*walked, "import_statement", "reconcile"):
        assert command in README, f"README.md no longer tells of `{command}`"
