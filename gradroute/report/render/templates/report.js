// The page's two interactive parts: the slider over scales of `bad`, and the sample browser.
// What a model wrote is put into the page as text only: no call here parses HTML.
(() => {
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const at = (id) => document.getElementById(id);
  const runs = data.runs;

  const fill = (select, items, chosen) => {
    select.replaceChildren(...items.map(([value, text]) => {
      const option = element("option", "", shown(text));
      option.value = String(value);
      return option;
    }));
    select.value = String(chosen);
    if (select.selectedIndex < 0 && items.length) select.selectedIndex = 0;
  };
  const percent = (value, digits = 0) => value === null ? "not measured" : (100 * value).toFixed(digits) + " %";
  const range = (low, high, write) => low === null ? "" : `[${write(low)}, ${write(high)}]`;
  const decimals = (digits) => (value) => value === null ? "–" : value.toFixed(digits);

  // One completion as a card, or an empty one where there is none. The same elements whatever the text is.
  const card = (title, sample) => {
    const made = element("article", "card");
    const head = element("header");
    head.append(element("h4", "", shown(title)));
    const [text, score, shows, correct, length] = sample || [null, null, null, null, 0];
    const badge = element("span", "outcome");
    badge.textContent = !sample ? "no sample" : shows === null ? "too short to judge"
      : shows ? "shows it" : "does not show it";
    if (shows !== null) badge.classList.add(shows ? "no" : "yes");
    head.append(badge);
    const written = text === null ? "" : data.texts[text];
    // The space that joins it to the prompt is left out; any other stays.
    const empty = sample ? "(empty)" : "";
    const body = element("p", "text", written.trim() === "" ? empty : shown(written.replace(/^ /, "")));
    body.dir = "auto";
    const facts = [];
    if (score !== null) facts.push(`score ${score.toFixed(2)}`);
    if (correct !== null) facts.push(correct ? "answer right" : "answer wrong");
    if (length > written.length) {
      facts.push(`first ${written.length.toLocaleString("en")} of ${length.toLocaleString("en")} characters`);
    }
    made.append(head, body, element("p", "meta", facts.join(" · ")));
    return made;
  };
  const promptNames = (kind) => kind.prompts.map(([id, text], index) => {
    const line = data.texts[text].replace(/\s+/g, " ").trim() || "(empty prompt)";
    return [index, `${index + 1} · ${line.length > 48 ? line.slice(0, 47) + "…" : line}`];
  });
  const stepped = (select, back, forth, changed) => {
    const move = (by) => {
      select.selectedIndex = Math.min(Math.max(select.selectedIndex + by, 0), select.options.length - 1);
      changed();
    };
    back.addEventListener("click", () => move(-1));
    forth.addEventListener("click", () => move(1));
  };
  const steps = (select, back, forth) => {
    back.disabled = select.selectedIndex <= 0;
    forth.disabled = select.selectedIndex >= select.options.length - 1;
  };

  // --- slider ---------------------------------------------------------------------------------
  const slider = () => {
    const with_scales = runs.filter((run) => run.scales.length > 1);
    if (!with_scales.length || !at("scale-run")) return;
    const [choice, input, prompt] = [at("scale-run"), at("scale-input"), at("scale-prompt")];
    // It begins with the run that has the most scales; of equals, with the one the samples show.
    const most = Math.max(...with_scales.map((run) => run.scales.length));
    const fullest = with_scales.filter((run) => run.scales.length === most);
    const first = fullest.includes(runs[data.first]) ? runs[data.first] : fullest[0];
    fill(choice, with_scales.map((run, index) => [index, run.name]), with_scales.indexOf(first));
    const current = () => with_scales[choice.selectedIndex];
    const kind = (run) => run.kinds[0];

    const numbers = (run, point) => {
      const entries = Object.entries(point.rates).map(([name, rate]) => [
        `${data.behavior} rate, ${name} prompts`, percent(rate.mean),
        `${range(rate.lower, rate.upper, (value) => (100 * value).toFixed(0))} of ${rate.n}`,
      ]);
      for (const [dataset, loss] of Object.entries(point.losses)) {
        entries.push([`held-out loss, ${dataset === "normal" ? "normal" : data.behavior}`, decimals(3)(loss.mean),
          `${range(loss.lower, loss.upper, decimals(3))} nats/token, n = ${loss.n}`]);
      }
      at("scale-numbers").replaceChildren(...entries.map(([name, value, more]) => {
        const box = element("div");
        const number = element("dd", "", value);
        number.append(element("small", "", more));
        box.append(element("dt", "", shown(name)), number);
        return box;
      }));
    };
    const draw = (run, index) => {
      const holder = at("scale-chart");
      const [width, height] = [holder.clientWidth, holder.clientHeight];
      const left = 46, bottom = height - 26, right = width - 12, top = 10;
      const scales = run.scales.map((point) => point.scale);
      const [low, high] = [Math.min(...scales), Math.max(...scales)];
      const x = (scale) => left + (right - left) * (scale - low) / (high - low || 1);
      const y = (rate) => bottom - (bottom - top) * rate;
      const make = (tag, name, places, text) => {
        const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
        for (const [key, value] of Object.entries(places)) made.setAttribute(key, value);
        if (name) made.setAttribute("class", name);
        if (text !== undefined) made.textContent = text;
        return made;
      };
      const parts = [];
      for (const rate of [0, 0.25, 0.5, 0.75, 1]) {
        parts.push(make("line", "axis", { x1: left, x2: right, y1: y(rate), y2: y(rate) }));
        parts.push(make("text", "", { x: left - 8, y: y(rate) + 4, "text-anchor": "end" }, `${100 * rate} %`));
      }
      const every = Math.ceil(scales.length / Math.max(2, Math.floor((right - left) / 44)));
      scales.forEach((scale, i) => {
        if (i % every === 0) {
          parts.push(make("text", "", { x: x(scale), y: bottom + 20, "text-anchor": "middle" }, String(scale)));
        }
      });
      const rated = run.scales.filter((point) => point.rates[kindOf(run, point)]);
      const rate = (point) => point.rates[kindOf(run, point)];
      const way = rated.map((point) => `${x(point.scale)},${y(rate(point).mean)}`).join(" ");
      parts.push(make("line", "here", { x1: x(scales[index]), x2: x(scales[index]), y1: top, y2: bottom }));
      parts.push(make("polyline", "line", { points: way }));
      for (const point of rated) {
        const now = point === run.scales[index];
        const place = x(point.scale);
        parts.push(make("line", "bar", { x1: place, x2: place, y1: y(rate(point).lower), y2: y(rate(point).upper) }));
        parts.push(make("circle", now ? "dot now" : "dot", { cx: place, cy: y(rate(point).mean), r: now ? 6 : 4 }));
      }
      const picture = make("svg", "", { viewBox: `0 0 ${width} ${height}`, role: "img" });
      picture.setAttribute("aria-label", `${data.behavior} rate over scales of bad, with 95 % intervals`);
      at("scale-legend").textContent = shown(`${data.behavior} rate on ${kindOf(run, run.scales[index])} prompts over scales of bad, with 95 % intervals`);
      picture.append(...parts);
      holder.replaceChildren(picture);
    };
    const kindOf = (run, point) => {
      const judged = run.judged_on || "prefix";
      return judged in point.rates ? judged : Object.keys(point.rates)[0];
    };
    const samples = (run, index) => {
      const own = kind(run);
      const number = prompt.selectedIndex;
      const points = [...new Set([0, index, run.scales.length - 1])];
      at("scale-asked").textContent = own && number >= 0 ? shown(data.texts[own.prompts[number][1]] || "(empty prompt)") : "";
      at("scale-cards").replaceChildren(...points.map((i) => {
        const point = run.scales[i];
        const here = i === index ? ", the slider" : "";
        return card(`bad at ${point.scale}${here}`, own && own.modes[point.mode] ? own.modes[point.mode][number] : undefined);
      }));
    };
    const show = () => {
      const run = current();
      const index = Number(input.value);
      const point = run.scales[index];
      at("scale-output").textContent = `bad at ${point.scale}`;
      at("scale-name").textContent = point.note;
      input.setAttribute("aria-valuetext", `bad at ${point.scale}`);
      numbers(run, point);
      draw(run, index);
      samples(run, index);
      steps(prompt, at("scale-back"), at("scale-forth"));
    };
    const choose = () => {
      const run = current();
      input.max = String(run.scales.length - 1);
      input.value = String(run.start);
      fill(prompt, kind(run) ? promptNames(kind(run)) : [], Math.max(prompt.selectedIndex, 0));
      show();
    };
    choice.addEventListener("change", choose);
    input.addEventListener("input", show);
    prompt.addEventListener("change", show);
    stepped(prompt, at("scale-back"), at("scale-forth"), show);
    window.addEventListener("resize", () => draw(current(), Number(input.value)));
    choose();
  };

  // --- sample browser -------------------------------------------------------------------------
  const browser = () => {
    const with_samples = runs.filter((run) => run.kinds.length);
    if (!with_samples.length || !at("sample-run")) return;
    const [choice, kinds, prompt, view] = ["run", "kind", "prompt", "view"].map((name) => at(`sample-${name}`));
    const usual = ["full", "bad_ablated", "good_alone", "good_ablated", "base"];
    fill(choice, with_samples.map((run, index) => [index, run.name]), Math.max(with_samples.indexOf(runs[data.first]), 0));
    const run = () => with_samples[choice.selectedIndex];
    const kind = () => run().kinds[kinds.selectedIndex];
    const ticked = () => [...at("sample-modes").querySelectorAll("input:checked")].map((box) => box.value);

    const modes = () => {
      const before = ticked();
      const single = view.value === "runs";
      const every = Object.keys(kind().modes);
      const scaled = every.filter((mode) => mode.includes("="));
      // A scale curve has many modes; they are offered when asked for.
      const there = scaled.length > 2 && !at("sample-scales").checked ? every.filter((mode) => !scaled.includes(mode)) : every;
      at("sample-scales").closest("label").hidden = scaled.length <= 2;
      const kept = before.filter((mode) => there.includes(mode));
      const wanted = kept.length ? kept : usual.filter((mode) => there.includes(mode));
      const chosen = wanted.length ? wanted : there.slice(0, 4);
      const boxes = there.map((mode) => {
        const label = element("label");
        const box = element("input");
        box.type = single ? "radio" : "checkbox";
        box.name = "sample-mode";
        box.value = mode;
        box.checked = single ? mode === (chosen.includes("bad_ablated") ? "bad_ablated" : chosen[0]) : chosen.includes(mode);
        label.append(box, document.createTextNode(shown(mode)));
        return label;
      });
      at("sample-modes").replaceChildren(element("legend", "", single ? "Mode" : "Modes"), ...boxes);
    };
    const show = () => {
      const number = prompt.selectedIndex;
      const [id, text] = kind().prompts[number];
      at("sample-asked").textContent = shown(data.texts[text] || "(empty prompt)");
      at("sample-id").textContent = shown(`prompt ${id}, ${number + 1} of ${kind().prompts.length} on this page`);
      const made = view.value === "modes"
        ? ticked().map((mode) => card(mode, kind().modes[mode][number]))
        : with_samples.filter((other) => other.seed === run().seed).map((other) => {
          const same = other.kinds.find((one) => one.kind === kind().kind);
          const place = same ? same.prompts.findIndex(([own]) => own === id) : -1;
          // A run without that mode (one adapter: nothing to ablate) is shown as it is.
          const mode = same && !same.modes[ticked()[0]] ? "full" : ticked()[0];
          const title = mode === ticked()[0] ? other.name : `${other.name}, ${mode}`;
          return card(title, place >= 0 && same.modes[mode] ? same.modes[mode][place] : undefined);
        });
      at("sample-cards").replaceChildren(...made);
      steps(prompt, at("sample-back"), at("sample-forth"));
    };
    const ask = () => {
      fill(prompt, promptNames(kind()), Math.min(Math.max(prompt.selectedIndex, 0), kind().prompts.length - 1));
      modes();
      show();
    };
    const choose = () => {
      fill(kinds, run().kinds.map((one, index) => [index, one.kind]), Math.max(kinds.selectedIndex, 0));
      ask();
    };
    choice.addEventListener("change", choose);
    kinds.addEventListener("change", ask);
    view.addEventListener("change", ask);
    at("sample-scales").addEventListener("change", ask);
    prompt.addEventListener("change", show);
    at("sample-modes").addEventListener("change", show);
    stepped(prompt, at("sample-back"), at("sample-forth"), show);
    choose();
  };

  // --- paper: what is folded away is printed too ------------------------------------------------
  const folded = [];
  window.addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll("details:not([open])")) {
      if (one.classList.contains("screen")) continue;
      folded.push(one);
      one.open = true;
    }
  });
  window.addEventListener("afterprint", () => {
    while (folded.length) folded.pop().open = false;
  });

  slider();
  browser();
})();
