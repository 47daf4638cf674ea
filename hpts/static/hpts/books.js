// The little that the pages do by themselves: theme, menu on small screens, "/" for the search box, copying an id, wide tables by keys.
(() => {
  const root = document.documentElement;

  document.querySelector(".theme-button")?.addEventListener("click", () => {
    const dark = root.classList.toggle("dark");
    localStorage.setItem("theme", dark ? "dark" : "light");
  });

  const button = document.querySelector(".menu-button");
  button?.addEventListener("click", () => {
    const open = document.body.classList.toggle("menu-open");
    button.setAttribute("aria-expanded", String(open));
  });

  const account = document.querySelector("details.account");
  document.addEventListener("click", (event) => {
    if (account?.open && !account.contains(event.target)) account.open = false;
  });

  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof Element && event.target.closest("input, textarea, select");
    if (event.key === "Escape") {
      if (account) account.open = false;
      document.body.classList.remove("menu-open");
      button?.setAttribute("aria-expanded", "false");
    } else if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      document.getElementById("find")?.focus();
    }
  });

  for (const each of document.querySelectorAll("[data-copy]")) {
    each.addEventListener("click", async () => {
      await navigator.clipboard.writeText(each.dataset.copy);
      each.classList.add("copied");
      setTimeout(() => each.classList.remove("copied"), 1200);
    });
  }

  // What is wider than its frame is moved by the arrow keys, too; what is not is no stop for the tabulator.
  const frames = [...document.querySelectorAll(".sheet, .scroll")];
  const reach = () => frames.forEach((each) => {
    if (each.scrollWidth > each.clientWidth) each.tabIndex = 0;
    else each.removeAttribute("tabindex");
  });
  addEventListener("resize", reach);
  reach();

  // A list that is filtered by a choice asks again at once; without this script there is the button.
  for (const form of document.querySelectorAll("form.filters")) {
    form.addEventListener("change", (event) => {
      if (event.target instanceof HTMLSelectElement) form.requestSubmit();
    });
  }
})();
