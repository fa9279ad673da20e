// The blind comparison: shows one pair at a time and sends votes. All text goes in by textContent, never as HTML.
"use strict";
const voted = new Map();
let state = null;
let place = 0;
let ended = false;

function show() {
  const one = state.items[place];
  at("bar").max = state.items.length;
  at("bar").value = voted.size;
  at("progress").textContent = `${voted.size} of ${state.items.length} judged`;
  at("place").textContent = `Pair ${place + 1} of ${state.items.length}`;
  for (const part of ["text", "left", "right"]) {
    at(part).textContent = one[part];
    at(part).scrollTop = 0;
  }
  at("back").disabled = place === 0;
}

async function attempt(call) {
  if (busy || ended) return;
  busy = true;
  try {
    await call();
  } catch (error) {
    say(error instanceof TypeError ? "The server is gone; start luthier blind again." : error.message, true);
  } finally {
    busy = false;
  }
}

const vote = (choice) => ended || attempt(async () => {
  const { id } = await ask("vote", { id: state.items[place].id, choice, who: at("who").value });
  voted.set(id, choice);
  place = Math.min(place + 1, state.items.length - 1);
  show();
  say(voted.size === state.items.length ? "All pairs are judged: end and show." : "");
});

const end = () => ended || attempt(async () => {
  const found = await ask("end", {});
  ended = true;
  for (const button of document.querySelectorAll("button")) button.disabled = true;
  at("place").textContent = `Left is ${found.sides[state.items[place].id]}.`;
  say(found.sentence);
});

function back() {
  place = Math.max(0, place - 1);
  show();
}

const KEYS = { ArrowLeft: () => vote("left"), ArrowRight: () => vote("right"), s: () => vote("same"), b: back, e: end };
document.addEventListener("keydown", (event) => {
  if (state === null || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.tagName === "INPUT") {
    if (event.key === "Escape" || event.key === "Enter") event.target.blur();
    return;
  }
  if (KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key]();
  }
});
const CLICKS = { "choose-left": () => vote("left"), "choose-right": () => vote("right"), "choose-same": () => vote("same"), back, end };
for (const [id, call] of Object.entries(CLICKS)) at(id).addEventListener("click", () => { at(id).blur(); call(); });

ask("state").then((found) => {
  state = found;
  at("who").value = state.who;
  show();
  if (!state.who) say("Write your name first: votes carry it.", true);
}, (error) => say(error.message, true));
