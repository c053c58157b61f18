// Parts of a page that keep themselves up to date: `data-live-url` answers with fragments, `data-live` takes them in.

const SLOWEST_SECONDS = 30;

/** Ask our own server; throws with the sentence that it gave for a refusal. */
export async function ask(url, options = {}) {
  const headers = { "X-Requested-With": "fetch", ...options.headers };
  const response = await fetch(url, { credentials: "same-origin", redirect: "manual", ...options, headers });
  const answer = response.headers.get("Content-Type")?.startsWith("application/json") ? await response.json() : {};
  if (!response.ok) {
    const error = new Error(answer.error || "");
    error.status = response.status;
    throw error;
  }
  return answer;
}

/** What tells an element from the others of its fragment, whatever numbers it shows by then. */
const mark = (element) =>
  element.id || element.getAttribute("href") || element.getAttribute("aria-label") || element.textContent;

/** Show these fragments where they belong; what has not changed is left alone, and what has the focus keeps it. */
export function takeIn(fragments, root = document) {
  for (const [name, html] of Object.entries(fragments)) {
    for (const place of root.querySelectorAll(`[data-live="${CSS.escape(name)}"]`)) {
      if (place.shownHtml === html) continue;
      const open = [...place.querySelectorAll("details[open]")].map((each) => each.querySelector("summary")?.textContent);
      const used = place.contains(document.activeElement) ? document.activeElement : null;
      const scrolled = used?.scrollTop;
      place.innerHTML = html;
      place.shownHtml = html;
      for (const details of place.querySelectorAll("details")) {
        details.open = open.includes(details.querySelector("summary")?.textContent);
      }
      const again = used && [...place.querySelectorAll(used.localName)].find((each) => mark(each) === mark(used));
      if (!again) continue;
      again.focus({ preventScroll: true });
      again.scrollTop = scrolled;
    }
  }
}

/** Say this on top of the page; nothing takes it away. */
export function tell(text) {
  const place = document.getElementById("trouble");
  place.textContent = text;
  place.className = text ? "notice warning" : "";
}

const stateOf = (region) => region.querySelector("[data-state]")?.dataset.state;

/** Take away what was said on top when the page was opened: it was true of the state of that moment. */
function forget() {
  for (const notice of document.querySelectorAll("[data-said]")) notice.remove();
}

function keepLive(region) {
  const usual = Number(region.dataset.liveSeconds) || 5;
  let pause = usual;
  const schedule = () => setTimeout(refresh, pause * 1000);

  async function refresh() {
    if (document.hidden) {
      document.addEventListener("visibilitychange", refresh, { once: true });
      return;
    }
    try {
      const answer = await ask(region.dataset.liveUrl);
      const before = stateOf(region);
      takeIn(answer.fragments, region);
      if (stateOf(region) !== before) forget();
      tell("");
      pause = usual;
    } catch (error) {
      if (error.status === 401) {
        tell(document.body.dataset.ended);
        return;
      }
      if (error.status === 404) {
        tell(document.body.dataset.gone);
        return;
      }
      tell(document.body.dataset.lost);
      pause = Math.min(pause * 2, SLOWEST_SECONDS);
    }
    schedule();
  }
  schedule();
}

for (const region of document.querySelectorAll("[data-live-url]")) keepLive(region);
