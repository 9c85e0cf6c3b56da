"use strict";

// ---- data: bytes of each step; a step at which nothing left shares those of the step before
const samples = JSON.parse(document.getElementById("data").textContent).samples;
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const total = (values) => values.reduce((a, b) => a + b, 0);
for (const { layers, runs } of samples) {
  for (const run of runs) {
    run.reached.forEach((row, t) => { run.reached[t] = row === null ? run.reached[t - 1] : bytes(row); });
    run.attention = run.attention.map(([most, row]) => ({ most, levels: bytes(row) }));
    run.kept = run.reached.map((row) => total(row) / layers); // at each step, mean over layers
  }
}

const byId = (id) => document.getElementById(id);
const state = { sample: 0, layer: 0, step: 0, view: "kept", shown: new Set(), timer: null };
const sample = () => samples[state.sample];
const stepOf = (run) => Math.min(state.step, run.words.length - 1); // shorter answers stay at their end
const count = (row, layer) => row.reduce((sum, reached) => sum + (reached > layer), 0);
const percent = (share) => `${(100 * share).toFixed(share && share < 0.0995 ? 1 : 0)} %`;
const color = (index) => `var(--m${index % 8})`;

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function breakable(spec) { // a line may break after : and , but not within a knob
  return spec.split(/(?<=[:,+])/).flatMap((part) => [part, document.createElement("wbr")]);
}

// ---- pictures
const EXPLAIN = {
  kept: "In colour: tokens that the chosen layer attends to at the chosen step. Grey: tokens dropped before it.",
  depth: "How many layers attend to each token at the chosen step. Bright tokens reach the last layer.",
  attention: "Attention that the chosen step's newest token pays to each visual token, mean over layers and heads.",
};
const STOPS = { // colours from low to high
  depth: [[68, 1, 84], [49, 104, 142], [53, 183, 121], [253, 231, 37]],
  attention: [[20, 14, 54], [129, 37, 129], [229, 80, 100], [252, 253, 191]],
};

function shade(stops, part) {
  const at = part * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  return stops[low].map((value, i) => Math.round(value + (at - low) * (stops[low + 1][i] - value)));
}

// The fill of one token's cell over the grey picture, or null where the picture shows in colour.
function fill(run, token) {
  const t = stepOf(run);
  const reached = run.reached[t][token];
  if (state.view === "kept") return reached > state.layer ? null : "rgba(9, 12, 18, 0.66)";
  const part = state.view === "depth" ? reached / sample().layers : run.attention[t].levels[token] / 255;
  return `rgba(${shade(STOPS[state.view], part)}, ${state.view === "depth" ? 0.62 : 0.68 + 0.17 * part})`;
}

function paint(picture, panel, run) {
  const { canvas, image } = picture;
  const [rows, columns] = panel.grid;
  const pen = canvas.getContext("2d");
  const edges = (size, number) => Array.from({ length: number + 1 }, (_, i) => Math.round((i * size) / number));
  const xs = edges(canvas.width, columns);
  const ys = edges(canvas.height, rows);
  pen.globalCompositeOperation = "source-over";
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  pen.globalCompositeOperation = "saturation"; // grey, without a filter, which some browsers lack
  pen.fillStyle = "hsl(0 0% 50%)";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.globalCompositeOperation = "source-over";
  const [wide, high] = [image.naturalWidth / canvas.width, image.naturalHeight / canvas.height];
  panel.tokens.forEach((token, cell) => {
    const [row, column] = [Math.floor(cell / columns), cell % columns];
    const box = [xs[column], ys[row], xs[column + 1] - xs[column], ys[row + 1] - ys[row]];
    const paintWith = fill(run, token);
    if (paintWith === null) {
      pen.drawImage(image, box[0] * wide, box[1] * high, box[2] * wide, box[3] * high, ...box);
    } else {
      pen.fillStyle = paintWith;
      pen.fillRect(...box);
    }
  });
  if (state.view === "kept") outline(pen, panel, run, xs, ys);
}

// A line between what is kept and what is not.
function outline(pen, panel, run, xs, ys) {
  const [rows, columns] = panel.grid;
  const row = run.reached[stepOf(run)];
  const kept = (r, c) => r >= 0 && c >= 0 && r < rows && c < columns && row[panel.tokens[r * columns + c]] > state.layer;
  pen.beginPath();
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      if (!kept(r, c)) continue;
      if (!kept(r - 1, c) && r > 0) { pen.moveTo(xs[c], ys[r]); pen.lineTo(xs[c + 1], ys[r]); }
      if (!kept(r + 1, c) && r < rows - 1) { pen.moveTo(xs[c], ys[r + 1]); pen.lineTo(xs[c + 1], ys[r + 1]); }
      if (!kept(r, c - 1) && c > 0) { pen.moveTo(xs[c], ys[r]); pen.lineTo(xs[c], ys[r + 1]); }
      if (!kept(r, c + 1) && c < columns - 1) { pen.moveTo(xs[c + 1], ys[r]); pen.lineTo(xs[c + 1], ys[r + 1]); }
    }
  }
  pen.strokeStyle = "rgba(255, 255, 255, 0.85)";
  pen.lineWidth = Math.max(1.5, pen.canvas.width / 420);
  pen.stroke();
}

// Tokens without a place: a strip of cells in their order.
function paintStrip(picture, panel, run) {
  const { canvas } = picture;
  const pen = canvas.getContext("2d");
  const columns = canvas.width / 20;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  panel.tokens.forEach((token, cell) => {
    const paintWith = fill(run, token);
    pen.fillStyle = paintWith === null ? "#2a9d8f" : paintWith;
    pen.fillRect(20 * (cell % columns) + 1, 20 * Math.floor(cell / columns) + 1, 18, 18);
  });
}

function panelOf(panel, views) {
  const canvas = make("canvas", { role: "img" });
  const caption = make("figcaption");
  const figure = make("figure", { class: panel.grid ? "panel" : "panel strip" });
  const image = new Image();
  if (panel.grid) {
    const scale = Math.max(1, Math.round(720 / Math.max(panel.width, panel.height)));
    canvas.width = panel.width * scale;
    canvas.height = panel.height * scale;
    // The wish for width: pictures that are small or high stay small, so that two fit on a screen.
    figure.style.setProperty("--shape", panel.width / panel.height);
  } else {
    const columns = Math.min(24, panel.tokens.length);
    canvas.width = 20 * columns;
    canvas.height = 20 * Math.ceil(panel.tokens.length / columns);
    if (panel.image) figure.append(make("img", { src: panel.image, alt: panel.title }));
  }
  figure.append(canvas, caption);
  if (panel.note) figure.append(make("p", { class: "note" }, panel.note));
  views.push({ canvas, caption, panel, image });
  return figure;
}

// ---- one method
const views = []; // { run, index, panels, words, readout, article }

function article(run, index) {
  const panels = [];
  const most = Math.max(...sample().runs.flatMap(({ split }) => split.map((parts) => parts[1])));
  const words = run.words.map((word, t) => {
    const button = make("button", { type: "button", class: "word", tabindex: "-1" }, word.trim() || "␣");
    button.style.setProperty("--share", `${Math.round((90 * run.split[t][1]) / most)}%`);
    for (const kind of ["pointerenter", "focus", "click"]) button.addEventListener(kind, () => go({ step: t }));
    return button;
  });
  const answer = make("p", { class: "answer", role: "group", "aria-label": `Answer of ${run.method}, word by word` },
    ...words.flatMap((button, t) => (/^\s/.test(run.words[t]) ? [" ", button] : [button])));
  const readout = make("p", { class: "readout" });
  const shown = make("article", { class: "run card", "aria-label": run.method },
    make("h3", {}, make("span", { class: "swatch" }), ...breakable(run.method)),
    make("div", { class: "panels" }, ...sample().panels.map((panel) => panelOf(panel, panels))),
    readout, answer);
  shown.style.setProperty("--mine", color(index));
  const view = { run, panels, words, readout, article: shown, index };
  panels.forEach((picture) => {
    if (!picture.panel.grid) return;
    picture.image.addEventListener("load", () => paint(picture, picture.panel, run));
    picture.image.src = picture.panel.image;
  });
  return view;
}

// What a panel shows, in words.
function summary(run, panel) {
  const t = stepOf(run);
  const alive = (layer) => count(panel.tokens.map((token) => run.reached[t][token]), layer);
  if (state.view === "kept") return `layer ${state.layer} keeps ${alive(state.layer)} of ${panel.tokens.length} tokens`;
  if (state.view === "depth") return `${alive(sample().layers - 1)} of ${panel.tokens.length} tokens reach the last layer`;
  const { most, levels } = run.attention[t];
  return `the brightest token gets ${percent(most * (Math.max(...panel.tokens.map((token) => levels[token])) / 255) ** 2)}`;
}

function refresh(view) {
  const { run, panels, words, readout } = view;
  const t = stepOf(run);
  const row = run.reached[t];
  const kept = count(row, state.layer);
  for (const picture of panels) {
    const { panel } = picture;
    const text = `${panel.title}: ${summary(run, panel)}`;
    picture.caption.textContent = text;
    picture.canvas.setAttribute("aria-label", `${run.method}, step ${t}. ${text}`);
    if (!panel.grid) paintStrip(picture, panel, run);
    else if (picture.image.complete && picture.image.naturalWidth) paint(picture, panel, run);
  }
  words.forEach((word, i) => {
    if (i === t) word.setAttribute("aria-current", "step");
    else word.removeAttribute("aria-current");
    word.tabIndex = i === t ? 0 : -1;
    word.title = `step ${i}: visual tokens get ${percent(run.split[i][1])} of the attention`;
  });
  readout.replaceChildren(
    make("strong", {}, `${kept} of ${row.length}`), ` tokens in layer ${state.layer}. Visual tokens get `,
    make("strong", {}, percent(run.split[t][1])), " of the attention at step ",
    `${t} (${percent(run.shares[t][state.layer])} in this layer).`);
}

// ---- curves
const SVG = "http://www.w3.org/2000/svg";
function draw(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function short(value) {
  const unit = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([size]) => value >= size);
  return unit ? `${+(value / unit[0]).toPrecision(3)} ${unit[1]}` : `${+value.toPrecision(3)}`;
}

const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
const [WIDE, HIGH, LEFT, BOTTOM, TOP] = [360, 210, 46, 34, 12];

// series: [{ index, values }]; at: the marked place on the x axis; stairs: one level for each place
function curve({ title, along, series, at, format, most, stairs }) {
  const length = Math.max(...series.map(({ values }) => values.length));
  const top = most ?? (Math.max(...series.flatMap(({ values }) => values)) || 1);
  const steps = stairs ? length : Math.max(length - 1, 1);
  const x = (place) => LEFT + ((WIDE - LEFT - 10) * place) / steps;
  const y = (value) => TOP + (HIGH - TOP - BOTTOM) * (1 - value / top);
  const picture = draw("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img" });
  for (const part of [0, 0.5, 1]) {
    picture.append(draw("line", { class: "grid", x1: LEFT, x2: WIDE - 10, y1: y(part * top), y2: y(part * top) }),
      draw("text", { class: "tick", x: LEFT - 6, y: y(part * top) + 4, "text-anchor": "end" }, format(part * top)));
  }
  const places = stairs ? length - 1 : steps;
  for (const place of new Set([0, Math.round(places / 2), places])) {
    picture.append(draw("text", { class: "tick", x: x(place + (stairs ? 0.5 : 0)), y: HIGH - 18, "text-anchor": "middle" }, place));
  }
  picture.append(draw("text", { class: "axis", x: (LEFT + WIDE - 10) / 2, y: HIGH - 3, "text-anchor": "middle" }, along));
  const marked = Math.min(at, places);
  picture.append(stairs
    ? draw("rect", { class: "marker", x: x(marked), y: TOP, width: x(1) - x(0), height: HIGH - TOP - BOTTOM })
    : draw("line", { class: "marker", x1: x(marked), x2: x(marked), y1: TOP, y2: HIGH - BOTTOM }));
  const said = [];
  for (const { index, values } of series) {
    const points = stairs
      ? values.flatMap((value, i) => [[x(i), y(value)], [x(i + 1), y(value)]])
      : values.map((value, i) => [x(i), y(value)]);
    const line = points.map(([px, py]) => `${px.toFixed(1)},${py.toFixed(1)}`).join(" ");
    const place = Math.min(marked, values.length - 1);
    picture.append(
      draw("polyline", { points: line, style: `stroke: ${color(index)}`, "stroke-dasharray": DASHES[index % 4] }),
      draw("circle", { cx: x(place + (stairs ? 0.5 : 0)), cy: y(values[place]), r: 3.5, style: `fill: ${color(index)}` }));
    said.push(`${sample().runs[index].method}: ${format(values[place])}`);
  }
  picture.setAttribute("aria-label", `${title}. At ${marked}: ${said.join("; ")}.`);
  return make("figure", { class: "curve card" }, make("figcaption", {}, title), picture);
}

function sums(values) {
  let sum = 0;
  return values.map((value) => (sum += value));
}

function curves() {
  const shown = views.filter(({ index }) => state.shown.has(index));
  const of = (measure) => shown.map(({ run, index }) => ({ index, values: measure(run) }));
  const layers = Array.from({ length: sample().layers }, (_, l) => l);
  const visual = sample().runs[0].reached[0].length;
  const whole = (value) => `${Math.round(value)}`;
  const byLayer = { along: "layer", at: state.layer, stairs: true };
  const byStep = { along: "step", at: state.step };
  const made = [
    curve({ title: `Tokens kept in each layer, at step ${state.step}`, ...byLayer, most: visual, format: whole,
      series: of((run) => layers.map((layer) => count(run.reached[stepOf(run)], layer))) }),
    curve({ title: "Tokens kept at each step, mean over layers", ...byStep, most: visual, format: whole,
      series: of((run) => run.kept) }),
    curve({ title: "Attention to visual tokens at each step", ...byStep, format: percent,
      series: of((run) => run.split.map((parts) => parts[1])) }),
  ];
  const unknown = sample().runs[0].unknown;
  if (unknown) made.push(make("p", { class: "card note" }, `FLOPs and memory are not known: ${unknown}`));
  else made.push(
    curve({ title: "Work so far, in FLOPs", ...byStep, format: short, series: of((run) => sums(run.flops)) }),
    curve({ title: "KV cache, in bytes", ...byStep, format: short, series: of((run) => run.cache) }));
  made.push(curve({ title: `Attention to visual tokens by layer, at step ${state.step}`, ...byLayer, format: percent,
    series: of((run) => run.shares[stepOf(run)]) }));
  byId("curves").replaceChildren(...made);
  byId("legend").replaceChildren(...shown.map(({ run, index }) => {
    const line = draw("svg", { viewBox: "0 0 36 8", "aria-hidden": "true" }, draw("line", {
      x1: 0, x2: 36, y1: 4, y2: 4, style: `stroke: ${color(index)}`, "stroke-dasharray": DASHES[index % 4] }));
    return make("li", {}, line, make("span", {}, ...breakable(run.method)));
  }));
}

// ---- the trace as a table, made when somebody opens it
function trace(run) {
  const head = make("tr", {}, make("th", { scope: "col" }, "layer"),
    ...run.words.map((word, t) => make("th", { scope: "col", "data-step": t }, `${t}`, make("small", {}, word.trim()))));
  const rows = Array.from({ length: sample().layers }, (_, layer) => make("tr", {}, make("th", { scope: "row" }, `${layer}`),
    ...run.reached.map((row, t) => make("td", { "data-step": t }, `${count(row, layer)}`))));
  return make("table", { class: "trace" }, make("caption", { class: "hidden" }, `Tokens kept under ${run.method}`),
    make("thead", {}, head), make("tbody", {}, ...rows));
}

function traces() {
  byId("traces").replaceChildren(...sample().runs.map((run, index) => {
    const box = make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": `Trace of ${run.method}` });
    const details = make("details", { class: "card" }, make("summary", {}, make("span", { class: "swatch" }), ...breakable(run.method)), box);
    details.style.setProperty("--mine", color(index));
    details.addEventListener("toggle", () => { if (details.open && !box.firstChild) box.append(trace(run)); mark(); });
    return details;
  }));
}

function mark() {
  for (const cell of document.querySelectorAll(".trace [data-step]")) {
    cell.classList.toggle("now", +cell.dataset.step === state.step);
  }
}

// ---- the page
function tell(slider, text) {
  byId(slider).value = state[slider];
  byId(slider).setAttribute("aria-valuetext", text);
  byId(`${slider}-out`).textContent = text;
}

function go(change) {
  const shown = sample().runs.filter((_, index) => state.shown.has(index));
  const last = Math.max(...shown.map((run) => run.words.length)) - 1;
  byId("step").max = last;
  Object.assign(state, change);
  state.step = Math.max(0, Math.min(state.step, last));
  state.layer = Math.max(0, Math.min(state.layer, sample().layers - 1));
  const word = shown.map((run) => run.words[state.step]).find((said) => said?.trim());
  tell("layer", `${state.layer} (0 to ${sample().layers - 1})`);
  tell("step", `${state.step} (0 to ${last})${word ? `, “${word.trim()}”` : ""}`);
  byId("explain").textContent = EXPLAIN[state.view];
  views.forEach(refresh);
  curves();
  mark();
  const kept = shown.map((run) => `${run.method} keeps ${count(run.reached[stepOf(run)], state.layer)}`);
  clearTimeout(go.soon);
  go.soon = setTimeout(() => { byId("said").textContent = `Layer ${state.layer}, step ${state.step}: ${kept.join(", ")}.`; }, 400);
}

function chooseMethods() {
  const boxes = sample().runs.map((run, index) => {
    const box = make("input", { type: "checkbox", value: index });
    box.checked = state.shown.has(index);
    box.addEventListener("change", () => {
      if (box.checked) state.shown.add(index);
      else if (state.shown.size > 1) state.shown.delete(index);
      else box.checked = true; // at least one stays
      arrange();
    });
    const label = make("label", {}, box, make("span", { class: "swatch" }), make("span", {}, ...breakable(run.method)));
    label.style.setProperty("--mine", color(index));
    return label;
  });
  const title = byId("methods").firstElementChild;
  byId("methods").replaceChildren(title, ...boxes);
  byId("methods").hidden = boxes.length < 2;
}

function arrange() {
  for (const view of views) view.article.hidden = !state.shown.has(view.index);
  byId("runs").style.setProperty("--count", Math.min(3, state.shown.size));
  go({});
}

function open(index) {
  state.sample = index;
  const { runs, prompt, truth, layers } = sample();
  byId("prompt").textContent = prompt;
  byId("truth").textContent = truth;
  byId("truth-line").hidden = !truth;
  byId("size").textContent = `${layers} layers, ${runs[0].reached[0].length} visual tokens`;
  byId("layer").max = layers - 1;
  if (!state.shown.size) for (let i = 0; i < Math.min(3, runs.length); i++) state.shown.add(i);
  views.splice(0, views.length, ...runs.map(article));
  byId("runs").replaceChildren(...views.map((view) => view.article));
  chooseMethods();
  traces();
  arrange();
}

function play() {
  const playing = state.timer !== null;
  clearInterval(state.timer);
  state.timer = playing ? null : setInterval(() => {
    if (state.step >= +byId("step").max) play();
    else go({ step: state.step + 1 });
  }, 450);
  if (!playing && state.step >= +byId("step").max) go({ step: 0 });
  byId("play").textContent = playing ? "Play" : "Pause";
}

function theme(dark) {
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
  byId("theme").textContent = dark ? "Light" : "Dark";
}

byId("layer").addEventListener("input", (event) => go({ layer: +event.target.value }));
byId("step").addEventListener("input", (event) => go({ step: +event.target.value }));
byId("play").addEventListener("click", play);
let dark = matchMedia("(prefers-color-scheme: dark)").matches;
theme(dark);
byId("theme").addEventListener("click", () => theme((dark = !dark)));
for (const radio of document.querySelectorAll("[name=view]")) {
  radio.addEventListener("change", () => go({ view: radio.value }));
}
for (const radio of document.querySelectorAll("[name=sample]")) {
  radio.addEventListener("change", () => open(+radio.value));
}
document.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!by || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.target.matches("input, .scroll, .scroll *")) return; // they have arrows of their own
  event.preventDefault();
  if (event.shiftKey) return go({ layer: state.layer + by });
  go({ step: state.step + by });
  const view = views.find(({ words }) => words.includes(event.target));
  if (view) view.words[stepOf(view.run)].focus();
});
state.layer = samples[0].layers - 1;
open(0);
