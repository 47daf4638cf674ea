"""The admin in a real browser: the questions that ops ask, each answered in three clicks, and nothing that the policy refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests import browser as real
from tests.admin.conftest import EVERY_TENANT, PASSWORD, Rich, make_person
from tests.conftest import Lender

# As long as other tests wait for something: the server of these pages shares its processors with the rest of the run.
expect.set_options(timeout=15_000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    # Playwright keeps an event loop in this thread, and Django would think that it runs in it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        with real.browser() as launched:
            yield launched


@pytest.fixture(scope="module")
def origin(open_database: None) -> Iterator[str]:
    with real.server() as served:
        yield served


@pytest.fixture
def open_page(chromium: Browser, origin: str) -> Iterator[Callable[..., Page]]:
    """Opens a page in a browser of its own; at the end, its console must be clean."""
    said: list[str] = []
    contexts: list[Any] = []

    def make(**options: Any) -> Page:
        context = chromium.new_context(base_url=origin, **options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page: Page = context.new_page()
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        return page

    yield make
    for context in contexts:
        context.close()
    assert [line for line in said if "status of 4" not in line] == []


@pytest.fixture
def signed_in(open_page: Callable[..., Page], rich: Rich) -> Page:
    person = make_person("viewer", books=rich.lender.tenant_id)
    page = open_page()
    page.goto("/admin/")
    page.get_by_label("Name").fill(person.username)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Today", exact=True)).to_be_visible()
    return page


def find(page: Page, text: str) -> None:
    page.keyboard.press("/")
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def test_a_loan_is_found_its_statement_read_and_a_reversal_followed(signed_in: Page, rich: Rich) -> None:
    loan_id = rich.lender.loan.loan_id
    find(signed_in, loan_id)
    expect(signed_in).to_have_url(f"{signed_in.url.split('/admin/')[0]}{rich.urls()['loan']}")
    statement = signed_in.locator("#statement")
    expect(statement.get_by_role("row")).to_have_count(1 + 1 + 3 + 1)
    expect(statement.get_by_role("row").last).to_contain_text("1,000.00")
    statement.get_by_role("link", name="payment received").click()
    expect(signed_in.get_by_role("heading", name="Reversals and settlements")).to_be_visible()
    signed_in.locator(".chain").get_by_role("link", name="reversal").click()
    expect(signed_in.locator(".chain li.here")).to_contain_text("reversal")
    expect(signed_in.get_by_role("heading", level=1)).to_contain_text("Reversal")


@pytest.mark.parametrize(
    ("question", "clicks", "answer"),
    [
        (
            "Did the night run finish?",
            ["section:has-text('Did the night run finish?') tbody a"],
            "Loans that could not be accrued",
        ),
        ("Which webhook is stuck?", ["nav >> text=Webhooks", "tbody a"], "Deliveries and their last attempts"),
        (
            "Why does the bank differ?",
            ["section:has-text('Why does the bank differ?') td.number a", "tbody a"],
            "The difference",
        ),
        ("Is the ledger proven?", ["section:has-text('Is the ledger proven?') a"], "accounts that disagree"),
    ],
)
def test_each_question_is_answered_within_three_clicks(
    signed_in: Page, question: str, clicks: list[str], answer: str
) -> None:
    expect(signed_in.get_by_role("heading", name=question)).to_be_visible()
    assert len(clicks) <= 3
    for place in clicks:
        signed_in.locator(place).first.click()
    expect(signed_in.get_by_text(answer).first).to_be_visible()


def test_staff_of_another_tenant_is_told_that_there_is_nothing(
    open_page: Callable[..., Page], rich: Rich, zenith: Lender
) -> None:
    person = make_person("operator", books=zenith.tenant_id)
    page = open_page()
    page.goto(rich.urls()["loan"])
    page.get_by_label("Name").fill(person.username)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Not found")).to_be_visible()
    find(page, rich.lender.loan.loan_id)
    expect(page.get_by_text("Nothing in the books of Zenith")).to_be_visible()


def barriers(page: Page) -> list[str]:
    """What axe finds on a page that keeps somebody out."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {node['html'][:200]} ({node['failureSummary'][:300]})"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


def test_axe_finds_no_barrier_on_any_page_or_form(open_page: Callable[..., Page], rich: Rich) -> None:
    """In light colours, as somebody who may do everything; in dark ones below, on a telephone."""
    person = make_person("operator", "approver", "platform admin", books=EVERY_TENANT)
    page = open_page()
    page.goto("/admin/")
    assert barriers(page) == [], "sign-in"
    page.get_by_label("Name").fill(person.username)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    assert barriers(page) == [], "tenants"
    page.goto("/admin/tenants/?q=Rich")
    page.get_by_role("button", name=rich.lender.tenant_id).click()
    for name, url in {"index": "/admin/", **rich.urls(), **rich.forms()}.items():
        page.goto(url)
        assert barriers(page) == [], name


def test_no_page_is_wider_than_a_telephone_and_the_menu_opens(open_page: Callable[..., Page], rich: Rich) -> None:
    person = make_person("viewer", books=rich.lender.tenant_id)
    page = open_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    page.goto("/admin/")
    page.get_by_label("Name").fill(person.username)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    for name, url in {"index": "/admin/", **rich.urls()}.items():
        page.goto(url)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        assert page.evaluate("document.documentElement.classList.contains('dark')")
        unnamed = page.evaluate(
            """[...document.querySelectorAll('button, a, input:not([type=hidden]), select')].filter((each) =>
                !each.textContent.trim() && !each.getAttribute('aria-label') && !each.closest('label') && !each.value
                && !document.querySelector(`label[for="${each.id}"]`)).map((each) => each.outerHTML)"""
        )
        assert unnamed == [], name
        assert page.locator("h1").count() == 1, name
        assert barriers(page) == [], name
    expect(page.get_by_role("navigation", name="Pages")).to_be_hidden()
    page.get_by_role("button", name="Menu").click()
    page.get_by_role("link", name="Journal").click()
    expect(page.get_by_role("heading", name="Journal")).to_be_visible()


def test_the_theme_is_chosen_and_stays(signed_in: Page) -> None:
    assert not signed_in.evaluate("document.documentElement.classList.contains('dark')")
    signed_in.get_by_role("button", name="Light or dark").click()
    signed_in.reload()
    assert signed_in.evaluate("document.documentElement.classList.contains('dark')")


def signs_in(open_page: Callable[..., Page], group: str, rich: Rich) -> Page:
    person = make_person(group, books=rich.lender.tenant_id)
    page = open_page()
    page.goto("/admin/")
    page.get_by_label("Name").fill(person.username)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Today", exact=True)).to_be_visible()
    return page


def test_what_one_person_proposes_another_approves(
    open_page: Callable[..., Page], make_rich: Callable[[], Rich]
) -> None:
    rich = make_rich()
    entry_id = rich.lender.api.disburse(rich.lender.loan, 7_700, "2026-02-05")["journal_entry_id"]
    maker = signs_in(open_page, "operator", rich)
    find(maker, entry_id)
    maker.get_by_role("link", name="Propose a reversal").click()
    maker.get_by_label("Reason", exact=True).fill("Lent twice")
    maker.get_by_role("button", name="Show the lines").click()
    expect(maker.locator(".t .sum").first).to_contain_text("77.00")
    maker.get_by_role("button", name="Propose it").click()
    expect(maker.get_by_text("Another person approves or rejects what you have proposed.")).to_be_visible()
    expect(maker.get_by_role("button", name="Approve and post")).to_have_count(0)

    checker = signs_in(open_page, "approver", rich)
    checker.get_by_role("link", name="Proposals").click()
    checker.locator("tbody a").first.click()
    expect(checker.get_by_text("Lent twice")).to_be_visible()
    expect(checker.locator(".t .sum").first).to_contain_text("77.00")
    checker.get_by_label("Reason", exact=True).fill("Seen on the statement")
    checker.get_by_role("button", name="Approve and post").click()
    expect(checker.get_by_text("Approved and posted.")).to_be_visible()
    expect(checker.get_by_role("heading", level=1)).to_contain_text("Reversal")
    maker.reload()
    expect(maker.get_by_text("Seen on the statement")).to_be_visible()
    checker.get_by_role("link", name="Audit", exact=True).click()
    expect(checker.get_by_role("row", name="approveProposal")).to_contain_text("Seen on the statement")


def test_a_webhook_is_delivered_again(open_page: Callable[..., Page], make_rich: Callable[[], Rich]) -> None:
    rich = make_rich()
    page = signs_in(open_page, "operator", rich)
    find(page, rich.arguments["delivery"]["delivery_id"])
    page.get_by_role("link", name="Deliver again").click()
    page.get_by_role("button", name="Deliver it again").click()
    expect(page.get_by_label("Reason", exact=True)).to_be_focused()  # It is asked for.
    page.get_by_label("Reason", exact=True).fill("Their receiver was down")
    page.get_by_role("button", name="Deliver it again").click()
    expect(page.get_by_text("The delivery is due now.")).to_be_visible()
