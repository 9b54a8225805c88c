// The page: it asks its own server and nobody else.
(async () => {
  const at = (id) => document.getElementById(id);
  const page = [...crypto.getRandomValues(new Uint8Array(12))].map((one) => one.toString(16).padStart(2, "0")).join("");
  const SETTINGS = ["seed", "temperature", "top_p", "tokens"];
  const WAIT = 30; // ms after the last move of a slider; a key in the prompt waits longer
  const WAIT_TYPING = 400;
  // What is read aloud leaves out the count of tokens.
  const say = (text, aloud = true) => {
    at("status").textContent = shown(text);
    if (aloud) at("aloud").textContent = shown(text);
  };
  const complain = (text) => {
    at("alert").textContent = shown(text || "");
    at("alert").hidden = !text;
  };
  const GONE = "The playground does not answer: its command has ended, or another one took its place.";

  let facts;
  try {
    const answer = await fetch("facts");
    if (!answer.ok) throw new Error(await answer.text());
    facts = await answer.json();
  } catch {
    complain(GONE);
    return;
  }
  at("runs").textContent = shown(facts.runs.map((run) => `${run.name}: step ${run.step}, ${run.held}`).join(" · "));
  at("tokens").max = facts.most_tokens;
  const redraw = curveList(at("curves"), facts);
  // Of the prompt, while it is not edited; a row that was found is one of a run.
  const TYPED = { id: null, templated: false, follows: "word", row: "", of: "" };
  let source = TYPED;
  let timer, aborter, saving, job = null;

  const list = columnList(at("columns"), facts, (what) => {
    redraw(list.columns);
    if (kinds && kindsOf !== presetRun()) forget();
    chatting();
    later(what === "scale" ? WAIT : 0);
  });

  const card = rowCard(list);
  const isRow = () => source.row && source.of === presetRun();
  // Whether a chat can be asked for, and why not.
  const chatting = () => {
    const run = facts.runs.find((one) => one.name === presetRun());
    const why = run.no_chat || (source.templated ? "this prompt has the template's text already" : "");
    at("chat").disabled = Boolean(why);
    if (why) at("chat").checked = false;
    at("no-chat").textContent = shown(why ? `(${why})` : "");
  };

  // --- the address --------------------------------------------------------------------------------
  const state = () => {
    const fields = new URLSearchParams();
    const prompt = at("prompt").value;
    if (isRow()) fields.set("row", source.row);
    else {
      fields.set("prompt", prompt);
      if (source.id !== null && source.id !== prompt) fields.set("id", source.id);
      if (source.templated) fields.set("templated", "1");
      if (source.follows !== "word") fields.set("follows", source.follows);
    }
    if (at("chat").checked) fields.set("chat", "1");
    for (const column of list.columns) fields.append("c", list.told(column));
    for (const name of SETTINGS) fields.set(name, at(name).value);
    if (!at("numbers").checked) fields.set("numbers", "0");
    return fields.toString();
  };
  const remember = () => {
    clearTimeout(saving);
    saving = setTimeout(() => history.replaceState(null, "", `#${state()}`), 250);
  };
  const adopt = (told) => {
    at("prompt").value = told.prompt;
    source = { id: told.id, templated: told.templated, follows: told.follows, row: told.row, of: told.columns[0].run };
    for (const name of SETTINGS) at(name).value = told[name];
    list.set(told.columns);
    at("chat").checked = told.chat;
    chatting();
    redraw(list.columns);
  };

  // --- writing ------------------------------------------------------------------------------------
  const later = (wait) => {
    clearTimeout(timer);
    remember();
    timer = setTimeout(() => write(state()), wait);
  };
  const stop = () => {
    clearTimeout(timer);
    if (aborter) aborter.abort();
    at("stop").disabled = true;
  };
  // Server-sent events of an answer, one after another.
  async function* events(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const [name, data] = part.split("\ndata: ");
        yield [name.slice("event: ".length), JSON.parse(data)];
      }
    }
  }
  const write = async (asked, first = false) => {
    if (aborter) aborter.abort();
    const own = aborter = new AbortController();
    at("stop").disabled = false;
    at("pin").disabled = true;
    complain("");
    let steps = 0, failed = false, mine = null;
    try {
      const answer = await fetch("write", {
        method: "POST", body: asked, signal: own.signal,
        headers: { "content-type": "application/x-www-form-urlencoded", "x-playground-page": page },
      });
      if (!answer.ok) {
        complain(await answer.text());
        say("");
        return false;
      }
      say("waiting for its turn …");
      for await (const [name, data] of events(answer)) {
        if (own.signal.aborted) break;
        if (name === "begun") {
          mine = data.job;
          if (first) adopt(data);
          list.begin();
          card.begin();
          if (!data.row) card.hide();
          say("writing …");
        } else if (name === "tokens") {
          if (!steps++) list.clear();
          list.push(data);
          say(`writing: ${steps} of ${at("tokens").value} tokens`, false);
        } else if (name === "written") {
          if (!steps) list.clear();
          list.written(data);
        } else if (name === "differences") list.differences(data);
        else if (name === "row") card.show(data);
        else if (name === "failed") { failed = true; complain(data); say(""); }
        else if (name === "done") {
          job = mine;
          at("pin").disabled = false;
          say(`written in ${data.seconds.toFixed(2)} s`);
        }
      }
      return !failed;
    } catch (error) {
      if (own.signal.aborted) say(steps ? "stopped" : "");
      else { complain(GONE); say(""); }
      return false;
    } finally {
      if (own === aborter) at("stop").disabled = true;
    }
  };

  // --- prompts of the run -------------------------------------------------------------------------
  let kinds = null, kindsOf = "";
  const presetRun = () => list.columns.length ? list.columns[0].run : facts.runs[0].name;
  const fill = (select, texts) => select.replaceChildren(...texts.map((text, index) => {
    const made = element("option", "", shown(text));
    made.value = String(index);
    return made;
  }));
  const load = async () => {
    if (kinds) return;
    kindsOf = presetRun();
    say("reading the prompts of the run …");
    const answer = await fetch(`prompts?run=${encodeURIComponent(kindsOf)}`).catch(() => null);
    if (!answer || !answer.ok) { complain(answer ? await answer.text() : GONE); return; }
    const found = await answer.json();
    kinds = found.kinds;
    say("");
    fill(at("kind"), kinds.map((kind) => `${kind.name} (${kind.prompts.length})`));
    at("preset-notes").textContent = shown(found.notes.join(" "));
    at("preset-notes").hidden = !found.notes.length;
    at("load").hidden = kinds.length > 0;
    at("presets").hidden = !kinds.length;
    if (kinds.length) list_presets();
  };
  const forget = () => {
    kinds = null;
    at("load").hidden = false;
    at("presets").hidden = true;
  };
  const line = (one, index) => {
    const text = one.prompt.replace(/\s+/g, " ").trim() || "(from nothing)";
    return `${index + 1} · ${text.length > 48 ? `${text.slice(0, 47)}…` : text}`;
  };
  const list_presets = () => {
    const kind = kinds[at("kind").selectedIndex];
    fill(at("preset"), kind.prompts.map(line));
    steps();
  };
  const steps = () => {
    at("back").disabled = at("preset").selectedIndex <= 0;
    at("forth").disabled = at("preset").selectedIndex >= at("preset").options.length - 1;
  };
  const choose = () => {
    const one = kinds[at("kind").selectedIndex].prompts[at("preset").selectedIndex];
    at("prompt").value = one.prompt;
    source = { id: one.id, templated: one.templated, follows: one.follows, row: one.row, of: kindsOf };
    chatting();
    card.hide();
    steps();
    later(0);
  };
  const move = (by) => {
    at("preset").selectedIndex += by;
    choose();
  };
  at("load").addEventListener("click", async () => {
    await load();
    if (kinds && kinds.length) { at("kind").focus(); choose(); }
  });
  at("kind").addEventListener("change", () => { list_presets(); choose(); });
  at("preset").addEventListener("change", choose);
  at("back").addEventListener("click", () => move(-1));
  at("forth").addEventListener("click", () => move(1));

  // --- controls -----------------------------------------------------------------------------------
  at("prompt").addEventListener("input", () => {
    source = TYPED;
    chatting();
    card.hide();
    later(WAIT_TYPING);
  });
  for (const name of [...SETTINGS, "chat"]) at(name).addEventListener("change", () => later(0));
  at("asks").addEventListener("submit", (event) => { event.preventDefault(); later(0); });
  at("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); later(0); }
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
  at("stop").addEventListener("click", stop);
  at("again").addEventListener("click", () => {
    at("seed").value = String(Number(at("seed").value || 0) + 1);
    later(0);
  });
  at("pin").addEventListener("click", async () => {
    at("pin").disabled = true;
    const answer = await fetch("pin", { method: "POST", body: String(job) }).catch(() => null);
    if (answer && answer.ok) say(`pinned in ${(await answer.json()).path}`);
    else complain(answer ? await answer.text() : GONE);
  });
  const numbers = () => at("columns").closest(".play").classList.toggle("plain", !at("numbers").checked);
  at("numbers").addEventListener("change", () => { numbers(); remember(); });
  addEventListener("resize", () => redraw(list.columns));

  const open = async () => {
    const asked = location.hash.slice(1);
    at("numbers").checked = new URLSearchParams(asked).get("numbers") !== "0";
    numbers();
    if (asked) {
      if (!await write(asked, true) && !list.columns.length) adopt(facts.first);
      return;
    }
    adopt(facts.first);
    await load();
    if (kinds && kinds.length && at("prompt").value === "") choose();
  };
  addEventListener("hashchange", open);
  await open();
})();
