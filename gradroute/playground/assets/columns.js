// Columns: their controls, what is written in them, and how likely it is beside the first one.
// What a model wrote is put into the page as text only: no call here parses HTML.
const columnList = (holder, facts, changed) => {
  const columns = [];
  const runOf = (name) => facts.runs.find((run) => run.name === name) || facts.runs[0];
  const same = (one, other) => Object.keys(one).every((name) => one[name] === other[name]);
  const modeOf = (run, scales) => Object.keys(run.modes).find((name) => same(run.modes[name], scales)) || "";
  const plain = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
  const number = (value, digits = 2) => (value > 0 ? "+" : "") + plain(value, digits);

  // How a column is written in the address.
  const told = (column) => {
    const run = runOf(column.run);
    const mode = modeOf(run, column.scales)
      || run.adapters.map((name) => `${name}=${column.scales[name]}`).join(",");
    return column.run === facts.runs[0].name ? mode : `${mode}@${column.run}`;
  };
  const option = (value, text) => {
    const made = element("option", "", shown(text));
    made.value = value;
    return made;
  };
  const sliders = (column) => {
    const run = runOf(column.run);
    column.inputs = {};
    column.scalesBox.replaceChildren(...run.adapters.map((name) => {
      const label = element("label", "scale");
      const input = element("input");
      Object.assign(input, { type: "range", min: facts.low, max: facts.high, step: 0.05 });
      const output = element("output");
      label.append(element("span", "", shown(name)), input, output);
      input.addEventListener("input", () => {
        column.scales[name] = Math.round(Number(input.value) * 100) / 100;
        show(column);
        changed("scale");
      });
      column.inputs[name] = [input, output];
      return label;
    }));
  };
  // Controls to what the scales are.
  const show = (column) => {
    const run = runOf(column.run);
    for (const [name, [input, output]] of Object.entries(column.inputs)) {
      input.value = column.scales[name];
      output.textContent = column.scales[name].toFixed(2);
      input.setAttribute("aria-valuetext", `${name} at ${column.scales[name].toFixed(2)}`);
    }
    column.mode.value = modeOf(run, column.scales);
  };
  const fill = (column) => {
    const run = runOf(column.run);
    column.mode.replaceChildren(...Object.keys(run.modes).map((name) => option(name, name)), option("", "own scales"));
    sliders(column);
    show(column);
  };
  const add = (run, scales) => {
    const column = { run, scales: { ...scales } };
    const card = element("article", "card column");
    const head = element("header");
    column.title = element("h2");
    column.mode = element("select", "mode");
    column.mode.addEventListener("change", () => {
      const known = runOf(column.run).modes[column.mode.value];
      if (known) column.scales = { ...known };
      show(column);
      changed("mode");
    });
    column.remove = element("button", "remove", "×");
    column.remove.addEventListener("click", () => {
      const at = columns.indexOf(column);
      columns.splice(at, 1);
      card.remove();
      name();
      columns[Math.min(at, columns.length - 1)].mode.focus();
      changed("columns");
    });
    column.remove.type = "button";
    head.append(column.title, column.mode, column.remove);
    if (facts.runs.length > 1) {
      column.of = element("select", "of");
      column.of.append(...facts.runs.map((one) => option(one.name, one.name)));
      column.of.value = run;
      column.of.addEventListener("change", () => {
        column.run = column.of.value;
        const before = column.scales;
        column.scales = {};
        for (const adapter of runOf(column.run).adapters) column.scales[adapter] = before[adapter] ?? 1;
        fill(column);
        changed("run");
      });
      head.append(column.of);
    }
    column.scalesBox = element("div", "scales");
    column.text = element("p", "text");
    column.text.dir = "auto";
    column.badges = element("p", "badges");
    column.meta = element("p", "meta");
    card.append(head, column.scalesBox, column.text, column.badges, column.meta);
    column.card = card;
    holder.insertBefore(card, more);
    columns.push(column);
    fill(column);
    return column;
  };
  const name = () => {
    columns.forEach((column, at) => {
      column.title.textContent = String(at + 1);
      column.mode.setAttribute("aria-label", `Mode of column ${at + 1}`);
      if (column.of) column.of.setAttribute("aria-label", `Run of column ${at + 1}`);
      column.remove.setAttribute("aria-label", `Remove column ${at + 1}`);
      column.card.setAttribute("aria-label", `Column ${at + 1}`);
      column.remove.disabled = columns.length <= 2;
    });
    more.hidden = columns.length >= facts.most_columns;
  };
  const more = element("button", "more", "+ Column");
  more.type = "button";
  more.addEventListener("click", () => {
    const last = columns[columns.length - 1];
    add(last.run, last.scales).mode.focus();
    name();
    changed("columns");
  });
  holder.append(more);

  // Texts grow at their end while they are written; the old ones stay, paler, until then.
  const begin = () => columns.forEach((column) => column.card.classList.add("stale"));
  const clear = () => columns.forEach((column) => {
    column.card.classList.remove("stale");
    column.written = document.createTextNode("");
    column.text.replaceChildren(column.written);
    column.badges.replaceChildren();
    column.meta.textContent = "";
    column.result = column.difference = null;
  });
  const push = (pieces) => {
    for (const [at, text] of pieces) {
      const node = columns[at] && columns[at].written;
      if (node) node.appendData(shown(node.length ? text : text.replace(/^ /, "")));
    }
  };
  const badge = (score) => {
    const what = score.label === "bad" ? score.behavior : score.label;
    const made = element("span", "outcome");
    if (score.error) made.textContent = shown(score.error);
    else if (score.shows === null) made.textContent = shown(`${what}: too short to judge`);
    else {
      made.classList.add(score.shows ? "no" : "yes");
      made.textContent = shown(`${score.shows ? "shows" : "does not show"} ${what}: score ${score.score.toFixed(2)}`);
      made.title = `It shows it from ${score.threshold < 0.001 ? "the first match" : score.threshold} on.`;
    }
    return made;
  };
  // The parts of a piece in and out of what the detector matched.
  const parts = (start, text, places) => {
    const made = [];
    let at = 0;
    for (const [low, high] of places) {
      const [from, to] = [Math.max(low - start, at), Math.min(high - start, text.length)];
      if (from >= to) continue;
      if (from > at) made.push(document.createTextNode(shown(text.slice(at, from))));
      made.push(element("mark", "", shown(text.slice(from, to))));
      at = to;
    }
    if (at < text.length) made.push(document.createTextNode(shown(text.slice(at))));
    return made;
  };
  const level = (value) => Math.min(8, Math.round(2 * Math.abs(value)));
  // Places are counted in characters, and the strings of scripts in halves of some.
  const halves = (text, places) => {
    if (text.length === [...text].length) return places;
    const at = [0];
    for (const letter of text) at.push(at[at.length - 1] + letter.length);
    return places.map(([low, high]) => [at[low], at[high]]);
  };
  // Tokens with what the detector matched, and how likely they are beside the first column.
  // Each piece is a text and the number of its token, if it is one.
  const tokens = (pieces, scores, difference, first) => {
    const whole = pieces.map(([text]) => text).join("");
    const places = scores.flatMap((score) => halves(whole, score.places || []));
    places.sort((one, other) => one[0] - other[0]);
    let start = 0;
    return pieces.map(([text, at], place) => {
      // Spaces stand before the box of a token, so that a line can end there.
      const made = element("span", "token");
      const [lead, unit, letters] = [element("span", "lead"), element("span", "unit"), element("span", "letters")];
      const spaces = text.length - text.trimStart().length;
      // The space that joins it to the prompt is left out, as in the report.
      const joins = place === 0 && text.startsWith(" ") ? 1 : 0;
      lead.append(...parts(start + joins, text.slice(joins, spaces), places));
      letters.append(...parts(start + spaces, text.slice(spaces), places));
      unit.append(letters);
      made.append(lead, unit);
      start += text.length;
      if (difference && at !== null) {
        const [own, by] = [difference.own[at], difference.difference[at]];
        if (!first && level(by)) unit.classList.add(`${by > 0 ? "more" : "less"}${level(by)}`);
        unit.title = first ? `log p ${plain(own)}` : `${number(by)} nats against column 1; log p ${plain(own)}`;
        // What has no color has no number under it either, so that the others stand out.
        if (!first) unit.append(element("span", "by", level(by) ? number(by, 1) : ""));
      }
      return made;
    });
  };
  const mean = (list) => list.reduce((sum, one) => sum + one, 0) / list.length;
  const likely = (difference, first) => first ? `log p ${plain(mean(difference.own))} a token`
    : `${number(mean(difference.difference))} nats a token against column 1`;
  const draw = (column) => {
    const { result, difference } = column;
    if (!result) return;
    const first = columns[0] === column;
    column.text.replaceChildren(...tokens(result.pieces.map((text, at) => [text, at]), result.scores, difference, first));
    if (!result.pieces.length) column.text.textContent = "(nothing: it ended at once)";
    column.badges.replaceChildren(...result.scores.map(badge));
    const facts = [`${result.tokens} token${result.tokens === 1 ? "" : "s"}${result.ended ? ", ended" : ", cut"}`];
    if (difference && difference.own.length) facts.push(likely(difference, first));
    else if (difference === undefined) facts.push("other tokens than column 1, so no difference");
    column.meta.textContent = facts.join(" · ");
  };
  const written = (results) => results.forEach((result, at) => {
    if (columns[at]) { columns[at].result = result; draw(columns[at]); }
  });
  const differences = (found) => found.forEach((difference, at) => {
    if (columns[at]) { columns[at].difference = difference || undefined; draw(columns[at]); }
  });
  const set = (wanted) => {
    columns.splice(0).forEach((column) => column.card.remove());
    for (const { run, scales } of wanted) add(run, scales);
    name();
  };
  return { columns, told, set, begin, clear, push, written, differences, tokens, badge, likely };
};
