"use strict";
// What every page needs to show texts that nobody checked: as text only, no call here parses HTML.
// Characters that would steer the page or hide in it are shown as escapes. The two joiners stay:
// scripts and emoji need them, and they move nothing.
const HIDDEN = /[^\n\u200c\u200d\P{C}]|[\u2028\u2029]/gu;
const shown = (text) => text.replace(HIDDEN, (c) => {
  const code = c.codePointAt(0);
  return code < 256 ? "\\x" + code.toString(16).padStart(2, "0")
    : code < 65536 ? "\\u" + code.toString(16).padStart(4, "0")
    : "\\u{" + code.toString(16) + "}";
});
const element = (tag, name, text) => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
};
