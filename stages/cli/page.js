// What every page of luthier's does: requests, one at a time, and the line that tells how they went. All text goes in by textContent.
"use strict";
const at = (id) => document.getElementById(id);
let busy = false;

async function ask(name, body) {
  const sent = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const reply = await fetch(name, sent);
  const found = await reply.json();
  if (!reply.ok) throw new Error(found.error);
  return found;
}

function say(text, wrong) {
  at("said").textContent = text;
  at("said").className = wrong ? "error" : "";
}

// What the call gives; null where it failed, which is said, or where another is under way.
async function attempt(call) {
  if (busy) return null;
  busy = true;
  try {
    return await call();
  } catch (error) {
    say(error instanceof TypeError ? `The server is gone; start ${document.body.dataset.command} again.` : error.message, true);
    return null;
  } finally {
    busy = false;
  }
}
