// The page of rows that were found: search, decide, download.
(() => {
  const data = JSON.parse(document.getElementById("found-data").textContent);
  const at = (id) => document.getElementById(id);
  const name = { bad: data.label, good: "good", undecided: "undecided" };
  const digits = (value) => value < 0.001 ? value.toExponential(1) : value.toPrecision(2);
  let now = -1;
  let unsaved = false;

  // One row as a card: numbers, the three choices, prompt and text.
  const facts = (row) => {
    const known = [`score ${row.score.toFixed(3)}`, `p ${digits(row.p)}`, `q ${digits(row.q)}`, row.found ? "found" : "not found"];
    if (row.copies > 1) known.push(`${row.copies} rows`);
    if (row.outside > 0) known.push(`${row.outside.toFixed(3)} of the score is of tokens outside the text`);
    return [`${row.number + 1} · ${row.id}`, ...known].join(" · ");
  };
  const choices = (row) => {
    const made = element("fieldset");
    row.boxes = {};
    for (const [value, text] of Object.entries(name)) {
      const label = element("label");
      const box = element("input");
      box.type = "radio";
      box.name = `row-${row.number}`;
      box.value = value;
      box.addEventListener("change", () => { go(row.number, false); decide(row, value); });
      row.boxes[value] = box;
      label.append(box, document.createTextNode(shown(text)));
      made.append(label);
    }
    made.setAttribute("aria-label", `decision on row ${row.number + 1}`);
    return made;
  };
  const written = (row) => {
    const made = element("p", "text");
    made.dir = "auto";
    const most = Math.max(...row.pieces.map(([, share]) => share));
    for (const [text, share] of row.pieces) {
      if (share > 0) {
        const piece = element("span", `heat${Math.ceil(8 * share / most)}`, shown(text));
        piece.title = `${share.toFixed(3)} of ${row.score.toFixed(3)}`;
        made.append(piece);
      } else made.append(document.createTextNode(shown(text)));
    }
    return made;
  };
  // The command that opens a row in the playground, as a shell reads it.
  const quoted = (text) => /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`;
  const copy = (row) => {
    getSelection().selectAllChildren(row.command);
    if (navigator.clipboard) navigator.clipboard.writeText(row.opens).then(() => { at("count").textContent = `Copied: row ${row.number + 1}.`; }, () => {});
  };
  const opening = (row) => {
    const made = element("p", "opens");
    row.opens = data.open + quoted(data.start + row.id);
    row.command = element("code", "", shown(row.opens));
    const button = element("button", "", "Copy");
    button.type = "button";
    button.setAttribute("aria-label", `copy the command that opens row ${row.number + 1} in the playground`);
    button.addEventListener("click", () => copy(row));
    made.append(row.command, button);
    return made;
  };
  const card = (row) => {
    const made = element("article", "row");
    const head = element("header");
    head.append(element("p", "meta", shown(facts(row))), choices(row));
    made.append(head);
    if (row.prompt) {
      const asked = element("p", "prompt", shown(row.prompt));
      asked.dir = "auto";
      made.append(asked);
    }
    made.append(written(row), opening(row));
    made.tabIndex = -1;
    made.addEventListener("click", () => go(row.number, false));
    return made;
  };

  const mark = (row, value) => {
    row.decision = value;
    for (const one of ["bad", "good"]) row.card.classList.toggle(one, one === value);
    row.boxes[value].checked = true;
  };
  const decide = (row, value) => {
    mark(row, value);
    unsaved = true;
    count();
  };
  const count = () => {
    const visible = data.rows.filter((row) => !row.card.hidden).length;
    const decided = (value) => data.rows.filter((row) => row.decision === value).length;
    at("count").textContent = shown(`${visible} of ${data.rows.length} shown; ${decided("bad")} ${name.bad}, `
      + `${decided("good")} good, ${decided("undecided")} undecided.`);
    at("none").hidden = visible > 0;
  };
  const go = (number, move) => {
    if (data.rows[now]) data.rows[now].card.classList.remove("now");
    now = number;
    const { card } = data.rows[now];
    card.classList.add("now");
    if (!move) return;
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest" });
  };
  const step = (by) => {
    let number = now + by;
    while (data.rows[number] && data.rows[number].card.hidden) number += by;
    if (data.rows[number]) go(number, true);
  };
  // A decision hides no row: it would go away under the reader's eyes.
  const filter = () => {
    const words = at("search").value.toLowerCase();
    const kind = at("filter").value;
    for (const row of data.rows) {
      const wanted = kind === "all" || kind === row.decision || kind === (row.found ? "found" : "not-found");
      row.card.hidden = !wanted || !row.searched.includes(words);
    }
    if (!data.rows[now] || data.rows[now].card.hidden) {
      if (data.rows[now]) data.rows[now].card.classList.remove("now");
      now = -1;
    }
    count();
  };

  // What is downloaded. Texts are whole there, and as they were read.
  const save = (file, type, text) => {
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = file;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    unsaved = false;
  };
  const whole = (row) => ({ id: row.id, prompt: row.prompt, text: row.text });
  const numbers = (row) => ({ score: row.score, p: row.p, q: row.q });
  const decided = (row) => row.decision !== "undecided";
  const key = (row) => JSON.stringify([row.prompt || "", row.text]);
  const jsonl = () => {
    const rows = data.rows.filter(decided).map((row) => ({ ...whole(row), label: name[row.decision], ...numbers(row) }));
    const again = new Set(rows.map(key));
    const before = data.earlier.filter((row) => !again.has(key(row)));
    save(`${data.name}-decisions.jsonl`, "application/x-ndjson", [...before, ...rows].map((row) => JSON.stringify(row) + "\n").join(""));
  };
  const tasks = () => data.rows.map((row) => ({
    data: { ...whole(row), ...numbers(row) },
    annotations: decided(row)
      ? [{ result: [{ from_name: "label", to_name: "text", type: "choices", value: { choices: [name[row.decision]] } }] }]
      : [],
  }));
  const records = () => data.rows.map((row) => ({
    id: row.id,
    fields: { prompt: row.prompt, text: row.text },
    metadata: numbers(row),
    suggestions: decided(row) ? { label: { value: name[row.decision], score: null, agent: "gradroute" } } : {},
    responses: {},
    vectors: {},
  }));
  const as_json = (value) => JSON.stringify(value, null, 1) + "\n";

  data.rows.forEach((row, number) => {
    row.number = number;
    row.text = row.pieces.map(([text]) => text).join("");
    row.searched = `${row.id}\n${row.prompt}\n${row.text}`.toLowerCase();
    row.card = card(row);
    mark(row, row.found ? "bad" : "undecided");
  });
  at("rows").append(...data.rows.map((row) => row.card));
  at("search").addEventListener("input", filter);
  at("filter").addEventListener("change", filter);
  at("save-jsonl").addEventListener("click", jsonl);
  at("save-label-studio").addEventListener("click", () => save(`${data.name}-label-studio.json`, "application/json", as_json(tasks())));
  at("save-argilla").addEventListener("click", () => save(`${data.name}-argilla.json`, "application/json", as_json(records())));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("select, input[type=search]")) return;
    const choice = { b: "bad", g: "good", u: "undecided" }[event.key];
    if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
    else if (event.key === "c" && data.rows[now]) copy(data.rows[now]);
    else if (choice && data.rows[now]) decide(data.rows[now], choice);
  });
  window.addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });
  filter();
})();
