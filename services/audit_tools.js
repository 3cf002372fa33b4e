// What all views use: elements, and how the page talks to its server.

export const option = (value, text, chosen) => el("option", { value, selected: value === chosen }, text);

export function say(words) {
  const trouble = document.getElementById("trouble");
  trouble.textContent = words;
  trouble.hidden = !words;
}

// Answers of the server as JSON; an Error with its words when it refuses or is not there.
export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The audit page's server does not answer. Start job=audit again; labels that were shown as stored are safe.");
  }
  const found = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(found.error), { status: answer.status });
  return found;
}

export const post = (path, body) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

// An element: el("a", { href: "#x", class: "y", onclick: f }, "text", child)
export function el(tag, facts = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(facts)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child != null && child !== false));
  return made;
}

// What there is to choose from, and how far the labelling is.
export async function overview() {
  const found = await ask("/api/overview");
  document.getElementById("run").textContent = `Audit: ${found.run}`;
  document.title = `Audit: ${found.run}`;
  return found;
}
