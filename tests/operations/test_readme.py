"""The walks of the README and of three pages of docs/, run word by word against `make run`: they print what the pages say."""

from __future__ import annotations

import re
import subprocess

import pytest

from hpts import embedded
from tests.operations.conftest import eventually
from tests.operations.test_run import Runs, free_port, get, runs

__all__ = ["runs"]

README = (embedded.ROOT / "README.md").read_text()
WALKS = {
    "README.md": README[README.index("## A walk with curl") : README.index("## The command line")],
    "docs/loan-life.md": (embedded.ROOT / "docs" / "loan-life.md").read_text(),
    "docs/seals.md": (embedded.ROOT / "docs" / "seals.md").read_text(),
    "docs/reconciliation.md": (embedded.ROOT / "docs" / "reconciliation.md").read_text(),
}
BLOCK = re.compile(r"^```(sh|terminal)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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
    walk(WALKS[page], runs)


def test_the_partners_page_ends_with_a_payment_through_mutual_tls(runs: Runs) -> None:
    """Its certificates, and nginx in a terminal of its own, by the page's own commands."""
    page = (embedded.ROOT / "docs" / "partners.md").read_text()
    [terminal] = [text for language, text in BLOCK.findall(page) if language == "terminal"]
    port, public, partner = free_port(), free_port(), free_port()
    runs.start(port)
    names = {"HPTS_PUBLIC_TLS_PORT": str(public), "HPTS_PARTNER_TLS_PORT": str(partner), "PORT": str(port)}
    environment = runs.place.variables | names
    subprocess.run(["make", "-s", "partner-certs"], cwd=embedded.ROOT, env=environment, check=True)
    nginx = subprocess.Popen(["sh", "-c", f"exec {terminal}"], cwd=embedded.ROOT, env=environment)
    try:
        eventually(lambda: get(f"http://localhost:{partner}/") == 400, within=20, what="the partner host")
        walk(page, runs, **names)
    finally:
        nginx.terminate()
        nginx.wait(15)
        eventually(lambda: get(f"http://localhost:{partner}/") == 0, within=15, what="nginx is gone")


def walk(page: str, runs: Runs, **environment: str) -> None:
    """Run a page's blocks, and compare what they print with what the page says that they print."""
    blocks = BLOCK.findall(page)
    script = "\n".join(text for language, text in blocks if language == "sh")
    expected = "".join(text for language, text in blocks if not language)
    walked = subprocess.run(
        ["sh", "-eu", "-c", script.replace("var/", f"{runs.demo_path.parent}/")],
        cwd=embedded.ROOT,
        env=runs.place.variables | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert comparable(walked.stdout) == comparable(expected)


def test_the_readme_names_every_command_that_a_user_types() -> None:
    walked = ("make run", "make test", "verify_ledger", "create_tenant", "create_client", "trial_balance")
    for command in (*walked, "import_statement", "reconcile"):
        assert command in README, f"README.md no longer tells of `{command}`"
