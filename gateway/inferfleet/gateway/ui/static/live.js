// Renews the parts of a page that change, from the same page of the server, and asks before a form that destroys.

let paused = false;

// Says why the page is not up to date. Screen readers announce what comes into it.
const stale = document.createElement("div");
stale.setAttribute("role", "status");

function tell(problem) {
  const text = problem && `This page is not up to date: ${problem}`;
  if (stale.textContent === text) return;
  const said = document.createElement("p");
  said.className = "problem";
  said.textContent = text;
  stale.replaceChildren(...(text ? [said] : []));
}

// What somebody has typed or opened stays as it is.
function keep(region, next) {
  for (const field of region.querySelectorAll("input[id]")) {
    const same = next.querySelector(`#${CSS.escape(field.id)}`);
    if (same && field.value !== field.defaultValue) same.value = field.value;
  }
  for (const opened of region.querySelectorAll("details[open]")) {
    for (const each of next.querySelectorAll("details")) if (each.innerHTML === opened.innerHTML) each.open = true;
  }
}

async function renew(region) {
  const answer = await fetch(location.href, { headers: { accept: "text/html" }, redirect: "manual" });
  if (answer.type === "opaqueredirect") return "you are signed out. Reload it to sign in again.";
  // The server has escaped all text in it, and a parsed document runs no scripts.
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (!answer.ok) return fresh.querySelector("p.problem")?.textContent ?? `the gateway answered ${answer.status}.`;
  const next = fresh.querySelectorAll("[data-live]")[[...regions].indexOf(region)];
  // A region in which somebody selects text or has the focus stays as it is.
  const selected = getSelection();
  const reading = !selected.isCollapsed && region.contains(selected.anchorNode);
  if (!next || reading || region.contains(document.activeElement)) return "";
  keep(region, next);
  region.replaceChildren(...next.childNodes);
  region.dataset.live = next.dataset.live;
  return "";
}

function follow(region) {
  const seconds = Number(region.dataset.live);
  // What has ended changes no more.
  if (seconds === 0) return;
  setTimeout(async () => {
    if (!document.hidden && !paused) {
      try {
        tell(await renew(region));
      } catch {
        tell("the gateway does not answer.");
      }
    }
    follow(region);
  }, seconds * 1000);
}

const regions = document.querySelectorAll("[data-live]");
if ([...regions].some((region) => region.dataset.live !== "0")) {
  document.querySelector("main").prepend(stale);
  regions.forEach(follow);
  const button = document.createElement("button");
  button.className = "quiet";
  button.type = "button";
  button.textContent = "Pause updates";
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => {
    paused = !paused;
    button.setAttribute("aria-pressed", String(paused));
  });
  document.querySelector(".bar .side").prepend(button);
}

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
});
