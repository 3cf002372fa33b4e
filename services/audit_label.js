// The view in which a person labels: one film, three answers, a dot for each trajectory.
import { ask, el, option, overview, post, say } from "/audit_tools.js";

const ANSWERS = { success: ["Success", "y"], failure: ["Failure", "n"], unsure: ["Unsure", "u"] };
const MEANING = { near: "near α", top: "most likely", rest: "rest" };

export async function label(place, [wanted]) {
  const found = await overview();
  if (!found.samples.length) {
    place.append(el("p", { class: "absent" }, "The reward model has not judged any imagined trajectory yet, so there is no sample to label. Start job=audit again when it has."));
    return undefined;
  }
  const chosen = found.samples.find((one) => one.task === wanted) ?? found.samples.find((one) => one.labelled < one.drawn) ?? found.samples[0];
  const desk = new Desk(place, found.samples, chosen.task);
  await desk.open();
  return () => desk.close();
}

class Desk {
  constructor(place, samples, task) {
    this.place = place;
    this.samples = samples;
    this.task = task;
    this.at = 0;
    this.busy = false;
    this.keys = (event) => this.key(event);
    this.turned = matchMedia("(orientation: landscape)");
    this.turn = () => this.show();
  }

  async open() {
    this.queue = await ask(`/api/queue?task=${encodeURIComponent(this.task)}`);
    this.at = Math.max(0, this.queue.findIndex((one) => !one.answer));
    this.build();
    document.addEventListener("keydown", this.keys);
    this.turned.addEventListener("change", this.turn);
    this.show();
  }

  close() {
    document.removeEventListener("keydown", this.keys);
    this.turned.removeEventListener("change", this.turn);
    this.video.removeAttribute("src"); // lets its connection go
    this.video.load();
  }

  build() {
    this.who = el("input", { id: "who", value: localStorage.getItem("who") ?? "", maxlength: 64, size: 14, autocomplete: "name", oninput: () => this.named() });
    this.tasks = el("div", { class: "row", id: "tasks" });
    this.words = el("p", { id: "ask" });
    this.video = el("video", { id: "film", playsinline: true, onclick: () => this.replay(), onloadedmetadata: () => { this.stage.style.height = ""; } });
    this.video.muted = true;
    this.stage = el("div", { class: "stage" }, this.video);
    this.buttons = Object.entries(ANSWERS).map(([answer, [text, key]]) =>
      el("button", { class: answer, id: answer, onclick: () => this.answer(answer) }, text, " ", el("kbd", {}, key)));
    const rate = el("select", { id: "rate", onchange: () => this.paced() }, ...["1", "2", "4"].map((x) => option(x, `${x}× speed`, localStorage.getItem("rate") ?? "1")));
    this.rate = rate;
    this.dots = el("div", { class: "dots", "aria-label": "trajectories of the sample" });
    this.about = el("p", { class: "promise" });
    this.end = el("p", { id: "end", role: "status" });
    this.place.append(
      el("div", { class: "row" }, el("label", { for: "who" }, "Who labels"), this.who, this.tasks),
      this.words, this.stage,
      el("div", { class: "answers" }, ...this.buttons),
      el("div", { class: "row" },
        el("button", { id: "replay", onclick: () => this.replay() }, "Replay ", el("kbd", {}, "space")), rate,
        el("button", { class: "push", id: "back", onclick: () => this.move(-1) }, el("kbd", {}, "←"), " Back"),
        el("button", { id: "next", onclick: () => this.move(1) }, "Next ", el("kbd", {}, "→"))),
      this.end, this.dots, this.about,
    );
    this.named();
  }

  named() {
    localStorage.setItem("who", this.who.value);
    for (const button of this.buttons) button.disabled = !this.who.value.trim();
    this.mark();
  }

  paced() {
    localStorage.setItem("rate", this.rate.value);
    this.video.playbackRate = Number(this.rate.value);
  }

  film(item) {
    return `/api/blind-film?key=${item.key}&wide=${this.turned.matches ? 1 : 0}`;
  }

  show() {
    const item = this.queue[this.at];
    this.words.replaceChildren(`“${item.instruction}” `, el("small", {}, "Is that so at the end of the film?"));
    this.stage.style.height = this.video.videoWidth ? `${this.stage.offsetHeight}px` : ""; // or the buttons jump while it loads
    this.stage.classList.toggle("flat", this.turned.matches);
    this.video.src = this.film(item);
    this.video.defaultPlaybackRate = Number(this.rate.value);
    this.replay();
    this.mark();
    const next = this.queue[this.at + 1];
    // So that it is there when it is asked for. Read to its end, or it would keep the connection.
    if (next) fetch(this.film(next)).then((film) => film.blob()).catch(() => {});
  }

  replay() {
    this.video.currentTime = 0;
    this.video.play().catch(() => {});
  }

  move(by) {
    this.at = Math.min(Math.max(this.at + by, 0), this.queue.length - 1);
    this.show();
  }

  mark() {
    const item = this.queue[this.at];
    for (const button of this.buttons) button.setAttribute("aria-pressed", String(button.id === item.answer));
    this.dots.replaceChildren(...this.queue.map((one, i) =>
      el("button", { class: one.answer, "aria-current": i === this.at ? "true" : null, title: one.answer || "open", onclick: () => { this.at = i; this.show(); } }, String(i + 1))));
    this.tasks.replaceChildren(...this.samples.map((one) =>
      el("button", { "aria-pressed": String(one.task === this.task), onclick: () => { location.hash = `label/${encodeURIComponent(one.task)}`; } }, `${one.task} ${one.labelled}/${one.drawn}`)));
    this.report();
  }

  report() {
    const open = this.queue.filter((one) => !one.answer).length;
    const unsure = this.queue.filter((one) => one.answer === "unsure").length;
    const again = el("button", { id: "again", onclick: () => { this.at = this.queue.findIndex((one) => one.answer === "unsure"); this.show(); } }, `Look again at the ${unsure} unsure`);
    const nameless = this.who.value.trim() ? "" : "Type your name above to begin; it is stored with every answer.";
    this.end.replaceChildren(...(open
      ? [nameless || `${open} of ${this.queue.length} are open.`]
      : [`All ${this.queue.length} are labelled. `, el("a", { href: "#table" }, "See Table 3"), " ", unsure ? again : ""]));
    const mine = this.samples.find((one) => one.task === this.task);
    const strata = mine.strata.map((one) => `${one.drawn} of ${one.size} ${MEANING[one.name]}`).join(", ");
    this.about.textContent = `Drawn by chance from ${mine.population} imagined trajectories of this task: ${strata}, in mixed order (seed ${mine.seed}). `
      + `What the reward model says, and what made a trajectory, stays hidden until it is labelled.`
      + (mine.unscored ? ` Left out because of a scoring error: ${mine.unscored}.` : "")
      + (mine.stale ? " The run has imagined or scored more since; audit.redraw=true draws anew." : "");
  }

  async answer(answer) {
    if (this.busy || !this.who.value.trim()) return;
    this.busy = true;
    const item = this.queue[this.at];
    try {
      const found = await post("/api/label", { key: item.key, answer, who: this.who.value.trim() });
      item.answer = answer;
      this.samples = found.samples;
      say("");
      const later = this.queue.findIndex((one, i) => i > this.at && !one.answer);
      const next = later >= 0 ? later : this.queue.findIndex((one) => !one.answer);
      if (next >= 0) {
        this.at = next;
        this.show();
      } else this.mark();
    } catch (error) {
      say(`Not stored: ${error.message}`);
    } finally {
      this.busy = false;
    }
  }

  key(event) {
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    if (["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName)) {
      if (event.key === "Enter") event.target.blur(); // back to the film
      return;
    }
    const answer = Object.keys(ANSWERS).find((name) => ANSWERS[name][1] === event.key.toLowerCase());
    const other = { " ": () => this.replay(), ArrowLeft: () => this.move(-1), ArrowRight: () => this.move(1) }[event.key];
    if (!answer && !other) return;
    event.preventDefault(); // or space would press the button that was clicked last
    if (answer) this.answer(answer);
    else other();
  }
}
