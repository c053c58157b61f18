// What every page does: the theme's switch, the browser's time zone, forms that are sent once.
import "./live.js";

const YEAR = 365 * 24 * 3600;
const remember = (name, value) => {
  const secure = location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `${name}=${value}; Path=/; Max-Age=${YEAR}; SameSite=Lax${secure}`;
};

remember("zone", Intl.DateTimeFormat().resolvedOptions().timeZone || "");

document.addEventListener("click", async (event) => {
  const themed = event.target.closest("[data-set-theme]");
  if (themed) {
    const theme = themed.dataset.setTheme;
    document.documentElement.dataset.theme = theme;
    remember("theme", theme);
    for (const button of document.querySelectorAll("[data-set-theme]")) {
      button.setAttribute("aria-pressed", String(button.dataset.setTheme === theme));
    }
  }
  const copying = event.target.closest("[data-copy]");
  if (copying) {
    const field = document.getElementById(copying.dataset.copy);
    field.select();
    await navigator.clipboard?.writeText(field.value);
    copying.querySelector("span").textContent = copying.dataset.done;
  }
  if (event.target.closest("[data-discard]")) for (const form of document.forms) form.dataset.unsaved = "";
  // A menu that is open closes when something else is used.
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    menu.open = false;
    menu.querySelector("summary").focus();
  }
});

// Whoever would lose what was typed is asked. A form that was refused holds such things from the start.
for (const form of document.querySelectorAll("form[data-unsaved]")) {
  form.addEventListener("input", () => {
    form.dataset.unsaved = "yes";
  });
}
window.addEventListener("beforeunload", (event) => {
  if (document.querySelector('form[data-unsaved="yes"]')) event.preventDefault();
});

// A second click on a button that is at work would do the work twice. After a while it may be one that means it.
const AT_WORK_MS = 10_000;
const sent = new WeakMap();
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (event.defaultPrevented || form.method !== "post") return;
  if (performance.now() < (sent.get(form) ?? 0)) event.preventDefault();
  else {
    sent.set(form, performance.now() + AT_WORK_MS);
    form.dataset.unsaved = "";
  }
});
// The page that the browser's back button shows is the one that was left.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) for (const form of document.forms) sent.delete(form);
});
