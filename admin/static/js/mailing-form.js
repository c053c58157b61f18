// The form of a mailing: a preview that follows every change, and fields that appear when they matter.
import { ask, takeIn, tell } from "./live.js";

const PAUSE_MILLISECONDS = 350;
const form = document.getElementById("mailing-form");
const place = form.querySelector('[data-live="preview"]');
let timer;
let asked = 0;

async function preview() {
  const number = ++asked;
  const fields = new FormData(form);
  place.setAttribute("aria-busy", "true");
  try {
    const answer = await ask(form.dataset.previewUrl, { method: "POST", body: fields });
    if (number !== asked) return; // An answer to an older question comes too late.
    takeIn(answer.fragments, form);
    tell("");
  } catch (error) {
    // Without an answer the next change asks again; the form itself works without.
    if (error.status) tell(error.message);
  } finally {
    if (number === asked) place.setAttribute("aria-busy", "false");
  }
}

function arrange() {
  const when = form.elements.when?.value;
  for (const element of form.querySelectorAll("[data-only-when]")) element.hidden = when !== element.dataset.onlyWhen;
  for (const element of form.querySelectorAll("[data-only-draft]")) element.hidden = when !== "draft";
  for (const element of form.querySelectorAll("[data-unless-draft]")) element.hidden = when === "draft";
}

form.addEventListener("input", (event) => {
  arrange();
  if (!event.target.matches('[name="text"], [name="tags"], [name="other_tags"], [name="operator_codes"]')) return;
  clearTimeout(timer);
  timer = setTimeout(preview, PAUSE_MILLISECONDS);
});
// Enter presses the first button of a form, wherever in it one types.
form.elements.phone.addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  form.querySelector('button[value="test"]').click();
});
// Only by then has a browser that goes back put in again what had been typed.
window.addEventListener("pageshow", () => {
  arrange();
  if (!form.elements.text.disabled) preview(); // What cannot be changed is previewed already, and not sent.
});
