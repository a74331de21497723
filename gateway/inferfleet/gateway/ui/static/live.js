// Renews the parts of a page that change, from the same page of the server, and asks before a form that destroys.

let paused = false;

async function renew(region) {
  const answer = await fetch(location.href, { headers: { accept: "text/html" }, redirect: "error" });
  if (!answer.ok) return;
  // The server has escaped all text in it, and a parsed document runs no scripts.
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const next = fresh.querySelectorAll("[data-live]")[[...regions].indexOf(region)];
  // A region in which somebody selects text or has the focus stays as it is.
  const selected = getSelection();
  const reading = !selected.isCollapsed && region.contains(selected.anchorNode);
  if (!next || reading || region.contains(document.activeElement)) return;
  region.replaceChildren(...next.childNodes);
  region.dataset.live = next.dataset.live;
}

function follow(region) {
  const seconds = Number(region.dataset.live);
  // What has ended changes no more.
  if (seconds === 0) return;
  setTimeout(async () => {
    if (!document.hidden && !paused) {
      try {
        await renew(region);
      } catch {
        // The gateway does not answer, or the key is no longer valid: the region stays as it is.
      }
    }
    follow(region);
  }, seconds * 1000);
}

const regions = document.querySelectorAll("[data-live]");
if ([...regions].some((region) => region.dataset.live !== "0")) {
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
