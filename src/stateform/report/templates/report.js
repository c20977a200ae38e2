"use strict";
// Draws the figures, in the colours of the theme and for the width there is, and keeps them so.
(() => {
  const root = document.documentElement;
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const result = read("result");
  const plots = read("plots");
  const narrow = 560;
  const hidden = new Set();
  const heads = new Map(); // layer -> the head that is shown
  const missing = "–";
  const mono = "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace";
  const canHover = window.matchMedia("(hover: hover)").matches;

  // Theme ------------------------------------------------------------------------------------------------------------
  const preference = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("stateform-theme"); } catch { /* no storage for this page: follow the system */ }
  const wanted = () => chosen || (preference.matches ? "dark" : "light");

  function paint(theme) {
    root.dataset.theme = theme;
    drawAll();
  }

  // The value of every custom property that the figures name; `var(--name)` anywhere in a figure becomes that value.
  let colours = new Map();
  function concrete(value) {
    if (typeof value === "string") {
      const name = /^var\((--[\w-]+)\)$/.exec(value);
      if (!name) return value;
      if (!colours.has(name[1])) colours.set(name[1], getComputedStyle(root).getPropertyValue(name[1]).trim());
      return colours.get(name[1]);
    }
    if (Array.isArray(value)) return typeof value.at(-1) === "number" ? value : value.map(concrete);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, concrete(item)]));
    }
    return value;
  }

  // Effective attention ----------------------------------------------------------------------------------------------
  // A comparison keeps the maps with its dynamics, an analysis with its answers.
  const coefficients = (layer) => result.layers[layer].dynamics?.coefficients ?? result.layers[layer].answers.coefficients.maps;
  const tokenName = (token) => {
    const names = { " ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍" };
    return names[token] ?? String(token).replace(/[\p{C}]/gu, "·");
  };
  const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  function written(x) {
    if (x === null || x === undefined) return missing;
    if (x === 0) return "0";
    const size = Math.abs(x);
    const text = size < 1e-3 || size >= 1e4 ? x.toExponential(1).replace("e+", "e") : x.toPrecision(3);
    return text.replace("-", "−");
  }

  // One head's weights: rows with what lies after the token left out, the range of colours, and the tooltips.
  function weights(layer) {
    const { tokens = [], heads: all, what } = coefficients(layer);
    const head = all[Math.min(heads.get(layer) || 0, all.length - 1)];
    const z = head.alpha.map((row, i) => row.map((value, j) => (j > i ? null : value)));
    const sizes = z.flat().filter((value) => value !== null && Number.isFinite(value)).map(Math.abs).sort((a, b) => a - b);
    const signed = z.some((row) => row.some((value) => value !== null && value < 0));
    const top = sizes.length ? sizes[Math.min(sizes.length - 1, Math.ceil(0.995 * sizes.length))] || sizes.at(-1) : 1;
    return { z, tokens, what, head: head.head, signed, top: top || 1 };
  }

  function fillMap(trace, layout, layer, large) {
    const { z, tokens, signed, top } = weights(layer);
    const name = (k) => escaped(tokens[k] === undefined ? k : tokenName(tokens[k]));
    trace.z = z;
    trace.zmin = -top;
    trace.zmax = top;
    trace.text = z.map((row, i) => row.map((value, j) => `${i}: <b>${name(i)}</b> reads ${j}: <b>${name(j)}</b><br>weight ${written(value)}`));
    if (!signed) { // only the upper half of the scale is in use, and 0 keeps its colour
      trace.zmin = 0;
      trace.colorscale = trace.colorscale.filter(([at]) => at >= 0.5).map(([at, colour]) => [2 * at - 1, colour]);
      delete trace.zmid;
    }
    if (!large) return;
    const places = z.map((_, k) => k);
    const brief = (k) => [...tokenName(tokens[k] ?? k)].length <= 2;
    const short = tokens.length === z.length && places.filter(brief).length >= 0.8 * places.length;
    const ticks = short
      ? { tickvals: places, ticktext: places.map((k) => (brief(k) ? name(k) : "·")), tickfont: { size: 9, family: mono }, tickangle: 0 }
      : { tickvals: places.filter((k) => k % 8 === 0) };
    Object.assign(layout.xaxis, ticks);
    Object.assign(layout.yaxis, ticks);
  }

  // Drawing ----------------------------------------------------------------------------------------------------------
  const panels = []; // every drawing: its element, what to draw, and the view that it belongs to
  for (const figure of document.querySelectorAll("[data-figure]")) {
    figure.querySelectorAll(".view").forEach((view, v) => {
      view.querySelectorAll(".plot").forEach((element, p) => {
        panels.push({ element, view, figure, spec: plots.figures[figure.dataset.figure][v][p] });
      });
    });
  }

  function draw({ element, view, figure, spec }) {
    if (view.hidden || element.closest("[hidden]")) return;
    const width = Math.floor(element.clientWidth);
    if (!width) return;
    const { data, layout } = structuredClone({ data: spec.data, layout: spec.layout });
    const labels = (layout.annotations || []).filter((note) => /^end-/.test(note.name || ""));
    layout.annotations = (layout.annotations || []).filter((note) => {
      const end = /^end-(\d+)$/.exec(note.name || "");
      return !end || (!hidden.has(Number(end[1])) && width >= narrow);
    });
    layout.margin = { ...plots.template.layout.margin, ...layout.margin };
    if (labels.length && width >= narrow) {
      layout.margin.r = 20 + Math.max(...labels.map((note) => textWidth(note.text)));
    }
    for (const trace of data) {
      const { layer, map } = trace.meta || {};
      if (layer !== undefined && hidden.has(layer)) trace.visible = false;
      if (map !== undefined) {
        const large = !view.classList.contains("small");
        const which = large ? Number(document.getElementById("map-layer").value) : map;
        fillMap(trace, layout, which, large && width >= 480);
        if (large && width < 480) {
          trace.showscale = false;
          layout.xaxis.visible = layout.yaxis.visible = false;
        }
      }
    }
    layout.template = plots.template;
    layout.width = width;
    layout.height = spec.height === null ? width + (view.classList.contains("small") ? 0 : -40) : spec.height;
    if (spec.height === null) layout.height = Math.min(layout.height, 600);
    if (width < narrow && labels.length) layout.height = 320;
    if (layout.meta?.over) layout.xaxis.unifiedhovertitle = { text: layout.meta.over };
    if (layout.meta?.rows) closeRows(data, layout, width);
    if (figure.dataset.figure === "equality" && width < narrow) numberNames(data[0], layout);
    const name = `stateform-${figure.dataset.figure}`;
    const config = {
      displaylogo: false,
      displayModeBar: !view.classList.contains("small") && canHover && "hover",
      modeBarButtons: [["toImage", "resetScale2d"]],
      toImageButtonOptions: { format: "png", scale: 3, filename: name },
    };
    Plotly.react(element, concrete(data), concrete(layout), config);
    if (figure.dataset.figure === "maps" && !view.classList.contains("small") && !element.dataset.listening) {
      element.dataset.listening = "yes";
      element.on("plotly_hover", (event) => showReads(event.points[0].y));
      element.on("plotly_click", (event) => showReads(event.points[0].y));
    }
  }

  // Rows of hidden layers close up, and names keep to a part of the width.
  function closeRows(data, layout, width) {
    const { rows } = layout.meta;
    const shown = rows.filter((layer) => !hidden.has(layer));
    const texts = layout.yaxis.ticktext;
    for (const trace of data) trace.y = trace.y.map((row) => shown.indexOf(rows[row]));
    layout.yaxis.tickvals = shown.map((_, k) => k);
    layout.yaxis.ticktext = shown.map((layer) => shortened(texts[rows.indexOf(layer)], width < narrow ? 0.36 * width : 0.5 * width));
    layout.yaxis.range = [shown.length - 0.45, -0.55];
    layout.height -= (rows.length - shown.length) * layout.meta.step;
  }

  // Where there is no room for names above the columns, the layers have numbers.
  function numberNames(trace, layout) {
    layout.yaxis.ticktext = layout.yaxis.ticktext.map((name, k) => `${shortened(name, 130)}  ${k + 1}`);
    layout.xaxis.ticktext = layout.xaxis.ticktext.map((_, k) => String(k + 1));
    trace.text = trace.text.map((row) => row.map((word) => (word === "same" ? "=" : word.slice(0, 1))));
    layout.height = 60 + 36 * trace.text.length;
  }

  function shortened(text, room) {
    if (textWidth(text) <= room) return text;
    const characters = [...text.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&")];
    let keep = characters.length;
    let tried = text;
    while (keep > 4 && textWidth(tried) > room) {
      keep -= 1;
      tried = escaped(`${characters.slice(0, Math.ceil(keep / 2)).join("")}…${characters.slice(-Math.floor(keep / 2)).join("")}`);
    }
    return tried;
  }

  const ruler = document.createElement("canvas").getContext("2d");
  function textWidth(text) {
    ruler.font = `12.5px ${getComputedStyle(document.body).fontFamily}`;
    const plain = text.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");
    return Math.ceil(ruler.measureText(plain).width);
  }

  function drawAll() {
    colours = new Map();
    panels.forEach(draw);
    if (document.getElementById("tokens")) showReads(current);
  }

  // The text, shaded by what one of its tokens reads -----------------------------------------------------------------
  let current = null;
  function showReads(at) {
    const layer = Number(document.getElementById("map-layer").value);
    const { z, tokens, what, signed, top } = weights(layer);
    current = Math.max(0, Math.min(at ?? z.length - 1, z.length - 1));
    const row = z[current];
    const strongest = Math.max(...row.map((value) => Math.abs(value || 0))) || top;
    const place = document.getElementById("tokens");
    if (place.children.length !== z.length) {
      place.replaceChildren(...z.map((_, k) => {
        const button = document.createElement("button");
        button.type = "button";
        button.addEventListener("click", () => showReads(k));
        return button;
      }));
    }
    [...place.children].forEach((button, k) => {
      const value = row[k];
      const share = Math.sqrt(Math.abs(value || 0) / strongest);
      const step = `var(--${value < 0 ? "minus" : "plus"}-2)`;
      button.textContent = tokens[k] === undefined ? String(k) : tokenName(tokens[k]);
      button.classList.toggle("later", k > current);
      button.setAttribute("aria-pressed", String(k === current));
      button.title = `${k}: ${k > current ? "not read yet" : `weight ${written(value)}`}`;
      const opacity = Math.round(100 * share);
      button.style.background = k > current ? "" : `color-mix(in srgb, ${step} ${opacity}%, transparent)`;
    });
    const order = row.map((value, k) => [Math.abs(value || 0), k]).sort((a, b) => b[0] - a[0]).slice(0, 3);
    const said = order.filter(([size]) => size > 0).map(([, k]) => `${tokens[k] === undefined ? place.dataset.unit : `“${tokenName(tokens[k])}”`} at ${k} (${written(row[k])})`);
    const here = tokens[current] === undefined ? "" : ` “${tokenName(tokens[current])}”`;
    document.getElementById("reads-what").textContent = `The output at ${place.dataset.unit} ${current}${here} reads most from ${said.join(", ") || "nothing"}.`;
    const sign = signed ? "; blue adds, orange subtracts" : "";
    document.getElementById("map-what").textContent = (what || "") + sign;
  }

  function fillHeads(select, layer) {
    select.replaceChildren(...coefficients(layer).heads.map((head, k) => new Option(String(head.head ?? k), String(k))));
    select.value = String(heads.get(layer) || 0);
    select.parentElement.hidden = coefficients(layer).heads.length < 2;
  }

  // Controls ---------------------------------------------------------------------------------------------------------
  for (const figure of document.querySelectorAll("[data-figure]")) {
    const buttons = [...figure.querySelectorAll("[data-view]")];
    const views = [...figure.querySelectorAll(".view")];
    buttons.forEach((button, k) => button.addEventListener("click", () => {
      buttons.forEach((other, o) => other.setAttribute("aria-pressed", String(o === k)));
      views.forEach((view, v) => { view.hidden = v !== k; });
      panels.filter((panel) => panel.figure === figure).forEach(draw);
    }));
  }
  for (const button of document.querySelectorAll("[data-toggle]")) {
    button.addEventListener("click", () => {
      const layer = Number(button.dataset.toggle);
      if (!hidden.delete(layer)) hidden.add(layer);
      button.setAttribute("aria-pressed", String(!hidden.has(layer)));
      document.querySelectorAll(`[data-layer="${layer}"]`).forEach((element) => { element.hidden = hidden.has(layer); });
      drawAll();
    });
  }
  const large = document.getElementById("map-layer");
  if (large) {
    const head = document.getElementById("map-head");
    fillHeads(head, Number(large.value));
    large.addEventListener("change", () => { fillHeads(head, Number(large.value)); drawMaps(); });
    head.addEventListener("change", () => { heads.set(Number(large.value), Number(head.value)); drawMaps(); });
    for (const select of document.querySelectorAll("[data-head]")) {
      fillHeads(select, Number(select.dataset.head));
      select.addEventListener("change", () => { heads.set(Number(select.dataset.head), Number(select.value)); drawMaps(); });
    }
  }
  function drawMaps() {
    panels.filter((panel) => panel.figure.dataset.figure === "maps").forEach(draw);
    showReads(current);
    const layer = Number(large.value);
    document.getElementById("map-head").value = String(heads.get(layer) || 0);
    for (const select of document.querySelectorAll("[data-head]")) {
      select.value = String(heads.get(Number(select.dataset.head)) || 0);
    }
  }
  document.getElementById("theme").addEventListener("click", () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("stateform-theme", chosen); } catch { /* remembered for this visit only */ }
    paint(chosen);
  });
  preference.addEventListener("change", () => { if (!chosen) paint(wanted()); });
  window.addEventListener("beforeprint", () => paint("light"));
  window.addEventListener("afterprint", () => paint(wanted()));
  let lastWidth = root.clientWidth;
  let waiting = 0;
  window.addEventListener("resize", () => {
    if (root.clientWidth === lastWidth) return;
    lastWidth = root.clientWidth;
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(drawAll);
  });

  paint(wanted());
  root.dataset.drawn = "yes";
})();
