// The review page: shows one row at a time and sends decisions. All text goes in by textContent, never as HTML.
"use strict";
const make = (tag, text, name) => Object.assign(document.createElement(tag), { textContent: text, className: name || "" });
const DONE = { keep: "kept", drop: "dropped", relabel: "relabelled" };
let state = null;
let place = 0;
let choices = [];
let chosen = 0;

const item = () => state.items[place];
const decided = () => state.items.filter((one) => state.decisions[one.id]).length;

function show() {
  const one = item();
  const decision = state.decisions[one.id];
  at("bar").max = state.items.length;
  at("bar").value = decided();
  at("progress").textContent = `${decided()} of ${state.items.length} decided`;
  at("place").textContent = `Row ${place + 1} of ${state.items.length} · ${one.kind}, worst no. ${one.rank} · ${one.id}`;
  const labels = at("labels");
  labels.replaceChildren();
  if (one.label !== null) labels.append(make("span", one.label));
  if (one.suggested !== null && one.suggested !== one.label) {
    labels.append(make("span", "→", "arrow"), make("span", `${one.suggested}?`, "suggested"));
  }
  labels.hidden = one.label === null;
  at("evidence").textContent = `${one.evidence[0].toUpperCase()}${one.evidence.slice(1)}.`;
  at("text").textContent = one.text;
  at("text").scrollTop = 0;
  at("answered").hidden = one.answer === null;
  at("answer").textContent = one.answer || "";
  at("near").hidden = one.neighbours.length === 0;
  at("neighbours").replaceChildren(...one.neighbours.map((other) => {
    const line = make("li", "");
    const said = make("p", "");
    said.append(make("b", other.label === null ? "" : other.label), other.label === null ? `${other.text} ⟶ ${other.answer}` : other.text);
    line.append(said);
    return line;
  }));
  at("relabel").disabled = one.label === null;
  at("back").disabled = place === 0;
  at("next").disabled = place === state.items.length - 1;
  at("why").value = decision ? decision.why : "";
  if (decision) {
    const to = decision.action === "relabel" ? ` to ${decision.label}` : "";
    say(`Already ${DONE[decision.action]}${to} by ${decision.who}; a new decision replaces it.`);
  }
}

function go(to) {
  place = Math.max(0, Math.min(state.items.length - 1, to));
  say("");
  show();
  window.scrollTo(0, 0);
}

function onward() {
  const open = (one) => !state.decisions[one.id];
  const later = state.items.findIndex((one, number) => number > place && open(one));
  const any = later < 0 ? state.items.findIndex(open) : later;
  return any < 0 ? place : any;
}

const change = (name, body) => attempt(async () => {
  const found = await ask(name, body);
  state.decisions = found.decisions;
  return found;
});

async function decide(action, label) {
  const one = item();
  const found = await change("decide", { id: one.id, action, label: label || "", who: at("who").value, why: at("why").value });
  if (found === null) return;
  go(onward());
  const all = decided() === state.items.length ? " All rows are decided." : "";
  say(`${one.id} is ${DONE[action]}${label ? ` to ${label}` : ""}.${all}`);
}

async function undo() {
  const found = await change("undo", {});
  if (found === null) return;
  if (found.id === null) return say("Nothing of this session is left to undo.");
  go(state.items.findIndex((one) => one.id === found.id));
  say(`The decision about ${found.id} is taken back.`);
}

function narrow() {
  const wanted = at("filter").value.toLowerCase();
  const one = item();
  const order = state.labels.filter((label) => label !== one.label);
  order.sort((a, b) => (b === one.suggested) - (a === one.suggested));
  choices = order.filter((label) => label.toLowerCase().includes(wanted));
  choose(0);
}

function choose(to) {
  chosen = Math.max(0, Math.min(choices.length - 1, to));
  at("choices").replaceChildren(...choices.map((label, number) => {
    const line = make("li", label);
    line.setAttribute("role", "option");
    line.setAttribute("aria-selected", number === chosen);
    if (label === item().suggested) line.append(make("span", "suggested", "note"));
    line.addEventListener("click", () => relabel(label));
    return line;
  }));
  const line = at("choices").children[chosen];
  if (line) line.scrollIntoView({ block: "nearest" });
}

function openChooser() {
  if (item().label === null) return say("The row has no label to change; drop it, or correct its answer in data/sources.", true);
  at("filter").value = "";
  at("chooser").showModal();
  narrow();
  at("filter").focus();
}

function relabel(label) {
  at("chooser").close();
  at("filter").blur(); // the browser takes the focus away only with the next frame, and a quick key would go astray
  if (label !== undefined) decide("relabel", label);
}

at("filter").addEventListener("input", narrow);
at("chooser").addEventListener("keydown", (event) => {
  const keys = {
    ArrowDown: () => choose(chosen + 1), ArrowUp: () => choose(chosen - 1), Enter: () => relabel(choices[chosen]), Escape: () => relabel(),
  };
  if (keys[event.key]) {
    event.preventDefault();
    keys[event.key]();
  }
  event.stopPropagation();
});
const KEYS = {
  k: () => decide("keep"), d: () => decide("drop"), r: openChooser, u: undo, w: () => at("why").focus(),
  ArrowLeft: () => go(place - 1), ArrowRight: () => go(place + 1), ArrowUp: () => go(place - 1), ArrowDown: () => go(place + 1),
};
document.addEventListener("keydown", (event) => {
  if (state === null || event.ctrlKey || event.metaKey || event.altKey || event.repeat && event.key.length === 1) return;
  if (event.target.tagName === "INPUT") {
    if (event.key === "Escape" || event.key === "Enter") event.target.blur();
    return;
  }
  if (event.target.tagName === "PRE" && event.target.scrollHeight > event.target.clientHeight && /Up|Down/.test(event.key)) return;
  if (KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key]();
  }
});
for (const [id, call] of Object.entries({
  keep: () => decide("keep"), drop: () => decide("drop"), relabel: openChooser, undo, back: () => go(place - 1), next: () => go(place + 1),
})) at(id).addEventListener("click", () => { at(id).blur(); call(); });

ask("state").then((found) => {
  state = found;
  at("who").value = state.who;
  const open = state.items.findIndex((one) => !state.decisions[one.id]);
  go(open < 0 ? 0 : open);
  if (!state.who) say("Write your name first: decisions carry it.", true);
}, (error) => say(error.message, true));
