// Follows the journal of a job, and shows its answer as it grows. Text only ever becomes text nodes.

const answer = document.getElementById("answer");
const note = document.getElementById("answer-note");
const choices = new Map();

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function choice(index) {
  if (!choices.has(index)) {
    const part = element("article", "part");
    const title = element("h3", "", `Choice ${index + 1}`);
    const reasoning = element("details");
    const thought = element("pre");
    reasoning.append(element("summary", "", "Reasoning"), thought);
    reasoning.hidden = true;
    const calls = element("pre", "call");
    calls.hidden = true;
    const text = element("pre", "writing");
    part.append(title, reasoning, text, calls);
    choices.set(index, { part, title, reasoning, thought, calls, text });
    const order = [...choices.keys()].sort((one, other) => one - other);
    answer.replaceChildren(...order.map((each) => choices.get(each).part));
    for (const each of choices.values()) each.title.hidden = choices.size === 1;
  }
  return choices.get(index);
}

function add(chunk) {
  const at = choice(chunk.index ?? 0);
  if (chunk.text) at.text.append(chunk.text);
  const delta = chunk.delta ?? {};
  if (delta.reasoning) {
    at.reasoning.hidden = false;
    at.thought.append(delta.reasoning);
  }
  for (const call of delta.tool_calls ?? []) {
    at.calls.hidden = false;
    at.calls.append(call.function?.name ? `${call.function.name} ` : "", call.function?.arguments ?? "");
  }
}

async function renewFacts() {
  try {
    const page = await fetch(location.href, { redirect: "error" });
    if (!page.ok) return;
    const fresh = new DOMParser().parseFromString(await page.text(), "text/html");
    // The job has ended, and its last event did not come here.
    if (!fresh.getElementById("answer")) return location.reload();
    const here = document.getElementById("facts");
    if (!here.contains(document.activeElement)) here.replaceChildren(...fresh.getElementById("facts").childNodes);
  } catch {
    // The stream goes on without it.
  }
}

const events = new EventSource(answer.dataset.events);
const on = (kind, act) => events.addEventListener(kind, (event) => act(JSON.parse(event.data)));

on("tokens", (entry) => {
  note.textContent = "Running…";
  entry.chunks.forEach(add);
});
on("running", () => {
  note.textContent = "Running…";
  renewFacts();
});
on("queued", () => {
  note.textContent = "Waiting to start…";
  renewFacts();
});
on("restarted", (entry) => {
  choices.clear();
  answer.replaceChildren();
  note.textContent = `The answer begins again (${entry.reason}).`;
  renewFacts();
});
on("finished", () => {
  events.close();
  // The page of an ended job has the whole answer.
  location.reload();
});
on("failed", (refusal) => {
  events.close();
  note.textContent = refusal.error.message;
});
events.addEventListener("error", () => {
  const closed = events.readyState === EventSource.CLOSED;
  note.textContent = closed ? "The answer can no longer be followed; reload the page." : "Connecting again…";
});
setInterval(() => document.hidden || renewFacts(), 5000);
