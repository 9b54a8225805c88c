// The own text of a row that was found: its score, and how likely each column finds its tokens.
const rowCard = (list) => {
  const at = (id) => document.getElementById(id);
  let told = null;
  const hide = () => { told = null; at("row").hidden = true; };
  const draw = () => {
    const chosen = Number(at("row-column").value);
    at("row-text").replaceChildren(...list.tokens(told.pieces, told.scores, told.columns[chosen], chosen === 0));
  };
  const show = (data) => {
    told = data;
    at("row").hidden = false;
    at("row").classList.remove("stale");
    at("row-about").textContent = shown(`${data.name}: ${data.about}`);
    at("row-badges").replaceChildren(...data.scores.map(list.badge));
    at("row-which").hidden = Boolean(data.error);
    if (data.error) {
      at("row-text").replaceChildren();
      at("row-meta").textContent = shown(data.error);
      return;
    }
    const before = Number(at("row-column").value || 1);
    const names = data.columns.map((column, index) => {
      const made = element("option", "", index ? `column ${index + 1} against column 1` : "none (column 1)");
      made.value = String(index);
      made.disabled = !column;
      return made;
    });
    at("row-column").replaceChildren(...names);
    const usable = data.columns[before] ? before : data.columns.findLastIndex(Boolean);
    at("row-column").value = String(usable);
    const facts = data.columns.map((column, index) => `column ${index + 1}: ${column ? list.likely(column, index === 0) : "other tokens"}`);
    if (data.cut) facts.push("the text is longer than what the run trains on, and cut there");
    at("row-meta").textContent = facts.join(" · ");
    draw();
  };
  at("row-column").addEventListener("change", draw);
  const begin = () => at("row").classList.add("stale");
  return { show, hide, begin };
};
