// What every page does: the theme's switch, the browser's time zone, filters that apply themselves.
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

for (const form of document.querySelectorAll("form[data-autosubmit]")) {
  form.addEventListener("change", (event) => {
    if (event.target.matches("select")) form.requestSubmit();
  });
}
