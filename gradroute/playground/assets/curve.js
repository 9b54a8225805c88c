// The measured scale curves of the open runs, with a mark at each column's slider.
const curveList = (holder, facts) => {
  const svg = "http://www.w3.org/2000/svg";
  const make = (tag, name, places, text) => {
    const made = document.createElementNS(svg, tag);
    for (const [key, value] of Object.entries(places)) made.setAttribute(key, value);
    if (name) made.setAttribute("class", name);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const draw = (box, run, curve, columns) => {
    const [width, height] = [Math.max(240, box.clientWidth), 200];
    const [left, right, top, bottom] = [46, width - 12, 22, height - 28];
    const x = (scale) => left + (right - left) * (scale - facts.low) / (facts.high - facts.low);
    const y = (rate) => bottom - (bottom - top) * rate;
    const parts = [];
    for (const rate of [0, 0.5, 1]) {
      parts.push(make("line", "axis", { x1: left, x2: right, y1: y(rate), y2: y(rate) }));
      parts.push(make("text", "", { x: left - 8, y: y(rate) + 4, "text-anchor": "end" }, `${100 * rate} %`));
    }
    for (let scale = facts.low; scale <= facts.high; scale += 0.5) {
      parts.push(make("text", "", { x: x(scale), y: bottom + 18, "text-anchor": "middle" }, String(scale).replace("-", "−")));
    }
    if (curve.deploy !== null) {
      const [at, low] = [x(curve.deploy), bottom + 1];
      parts.push(make("path", "deploy", { d: `M${at - 6},${low + 9}L${at + 6},${low + 9}L${at},${low}Z` }));
    }
    parts.push(make("polyline", "line", { points: curve.points.map(([scale, mean]) => `${x(scale)},${y(mean)}`).join(" ") }));
    for (const [scale, mean, lower, upper, n] of curve.points) {
      parts.push(make("line", "bar", { x1: x(scale), x2: x(scale), y1: y(lower), y2: y(upper) }));
      const dot = make("circle", "dot", { cx: x(scale), cy: y(mean), r: 4 });
      dot.append(make("title", "", {}, `${curve.adapter} at ${scale}: ${(100 * mean).toFixed(0)} % [${(100 * lower).toFixed(0)}, ${(100 * upper).toFixed(0)}] of ${n}`));
      parts.push(dot);
    }
    const told = new Map();
    columns.forEach((column, at) => {
      if (column.run !== run.name) return;
      const scale = column.scales[curve.adapter];
      const others = run.adapters.every((name) => name === curve.adapter || column.scales[name] === 1);
      const [numbers, all] = told.get(scale) || [[], false];
      told.set(scale, [[...numbers, at + 1], all || others]);
    });
    for (const [scale, [numbers, applies]] of told) {
      parts.push(make("line", applies ? "here" : "here apart", { x1: x(scale), x2: x(scale), y1: top - 4, y2: bottom }));
      parts.push(make("text", applies ? "column-mark" : "column-mark apart", { x: x(scale), y: top - 8, "text-anchor": "middle" }, numbers.join(", ")));
    }
    const picture = make("svg", "", { viewBox: `0 0 ${width} ${height}`, role: "img" });
    picture.setAttribute("aria-label", `${curve.behavior || Object.values(run.behaviors)[0]} rate over scales of ${curve.adapter}, with 95 % intervals; columns stand at ${[...told.keys()].join(", ") || "none"}`);
    picture.append(...parts);
    box.replaceChildren(picture);
  };
  const boxes = [];
  for (const run of facts.runs) {
    for (const curve of run.curves) {
      const figure = element("figure");
      const box = element("div", "chart");
      const behavior = curve.behavior || Object.values(run.behaviors)[0];
      const name = facts.runs.length > 1 ? `${run.name}: ` : "";
      const caption = element("figcaption", "", shown(`${name}${behavior} rate on ${curve.prompts} prompts over scales of ${curve.adapter}, the others at 1, with 95 % intervals. Dashed: the columns, by number; dotted where another adapter is not at 1.${curve.deploy === null ? "" : ` Triangle: the scale to deploy, ${curve.deploy}.`}`));
      figure.append(box, caption);
      if (curve.sentence) figure.append(element("p", "note", shown(curve.sentence.replace(/`/g, ""))));
      holder.append(figure);
      boxes.push([box, run, curve]);
    }
    if (run.no_curve) holder.append(element("p", "note", shown(facts.runs.length > 1 ? `${run.name}: ${run.no_curve}` : run.no_curve)));
  }
  return (columns) => boxes.forEach(([box, run, curve]) => draw(box, run, curve, columns));
};
