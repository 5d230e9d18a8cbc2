"use strict";
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const pair = data.names.length === 2;
  const EQUAL = -99, NOT_FINITE = 9;

  // Plotly reads a little HTML in labels; what comes from a trace is text.
  const plain = (text) =>
    String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/%\{/g, "%\u200b{");
  const cut = (text) => (text.length > 48 ? text.slice(0, 22) + "\u2026" + text.slice(-25) : text);

  async function unpack(packed) {
    if (packed === null || packed === undefined) return null;
    const raw = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
    const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("deflate"));
    const planes = new Uint8Array(await new Response(stream).arrayBuffer());
    const count = planes.length / 4;
    const bytes = new Uint8Array(planes.length);
    for (let plane = 0; plane < 4; plane++)
      for (let i = 0; i < count; i++) bytes[4 * i + plane] = planes[plane * count + i];
    const view = new DataView(bytes.buffer);
    const values = new Float32Array(count);
    for (let i = 0; i < count; i++) values[i] = view.getFloat32(4 * i, true);
    return { shape: packed.shape, values };
  }
  const row = (array, i) => {
    const n = array.shape[array.shape.length - 1];
    return array.values.subarray(array.shape.length > 1 ? i * n : 0, array.shape.length > 1 ? (i + 1) * n : n);
  };
  const finite = (values) => Array.from(values, (v) => (Number.isFinite(v) ? v : null));
  const nth = (n) => `${n}${n % 100 > 10 && n % 100 < 14 ? "th" : ["th", "st", "nd", "rd"][n % 10] || "th"}`;

  const maps = {};
  for (const [name, packed] of Object.entries(data.maps)) maps[name] = await unpack(packed);
  const norms = {};
  for (const [name, sides] of Object.entries(data.norms)) norms[name] = await Promise.all(sides.map(unpack));

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const config = { displaylogo: false, responsive: true, showLink: false, sendData: false, showSendToCloud: false,
    plotlyServerURL: "", displayModeBar: false, modeBarButtonsToRemove: ["sendDataToCloud", "lasso2d", "select2d"] };
  const layout = (more) => {
    const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line") };
    const { xaxis, yaxis, ...rest } = more;
    const few = data.steps[data.steps.length - 1] - data.steps[0] < 10 ? { tick0: 0, dtick: 1 } : {};
    return { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--text"), size: 12 },
      margin: { l: 60, r: 20, t: 30, b: 40 }, hovermode: "closest", showlegend: false,
      xaxis: { title: { text: "step" }, ...few, ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest };
  };
  // The element gets the height, too: when the window changes, Plotly asks the element for it.
  const plot = (element, traces, shape, options) => {
    element.style.height = `${shape.height}px`;
    return Plotly.react(element, traces, shape, options);
  };
  const line = (side) => (side === 0 ? { color: css("--a"), width: 2 } : { color: css("--b"), width: 2, dash: "dash" });

  const moves = (i) => row(Object.values(maps)[0], i).some((v) => Number.isFinite(v) && v / 50 !== EQUAL);
  let chosen = data.first ? data.first[0] : Math.max(0, data.labels.findIndex((_, i) => moves(i)));
  // Plotly keeps categories as keys of an object: a name like "constructor" would be taken for there already.
  const key = (label) => plain(cut(label)) + (label in {} ? "\u200b" : "");
  const labels = data.labels.map((label, i) => key(label) + (data.labels.map(cut).indexOf(cut(label)) === i ? "" : ` #${i + 1}`));

  function tell(step, i) {
    const name = byId("quantity") ? byId("quantity").value : "ratio";
    const at = data.steps.indexOf(step);
    if (at < 0) return;
    const z = row(maps[name], i)[at] / 50;
    let size;
    if (!Number.isFinite(z)) size = "no row, or nothing finite in it";
    else if (pair && z === NOT_FINITE) size = `${name} is nan or inf on one side`;
    else if (pair) size = z === EQUAL ? `${name} is bitwise equal` : `${name} differs by ${(10 ** z).toPrecision(2)} of its size`;
    else size = z === EQUAL ? "does not move" : `moves by ${(10 ** z).toPrecision(2)} of its size`;
    byId("hover").textContent = `step ${step}, ${data.labels[i]}: ${size}`;
  }

  async function drawMap() {
    const name = byId("quantity") ? byId("quantity").value : "ratio";
    const z = data.labels.map((_, i) =>
      Array.from(row(maps[name], i), (v) => (!Number.isFinite(v) ? null : v / 50 === EQUAL ? null : v / 50)));
    const low = pair ? -9 : -7;
    const ticks = pair ? [-9, -6, -4, -2, 0] : [-7, -5, -3, -1, 1];
    const traces = [{ type: "heatmap", z, x: data.steps, y: labels, zmin: low, zmax: pair ? 0.3 : 1, colorscale: "Viridis",
      hovertemplate: "%{y}<br>step %{x}<extra></extra>", hoverongaps: true,
      colorbar: { thickness: 14, tickvals: ticks, ticktext: ticks.map((t) => `1e${t}`), outlinewidth: 0,
        title: { text: pair ? "relative<br>difference" : "update /<br>weight" } } }];
    if (data.first && pair)  // white within black: seen on every colour of the map
      for (const [color, width] of [["#000000", 5], ["#ffffff", 2]])
        traces.push({ type: "scatter", mode: "markers", x: [data.first[1]], y: [labels[data.first[0]]], hoverinfo: "skip", cliponaxis: false,
          marker: { symbol: "square-open", size: 14, color, line: { width, color } } });
    const height = Math.max(260, Math.min(900, 120 + 18 * data.labels.length));
    await plot(byId("map"), traces, layout({ height, margin: { l: 10, r: 10, t: 34, b: 40 },
      xaxis: { range: [data.steps[0] - 0.5, data.steps[data.steps.length - 1] + 0.5] },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--text") },
      yaxis: { automargin: true, autorange: "reversed", type: "category", ticks: "" },
      shapes: pair && data.first_step !== null ? [{ type: "line", x0: data.first_step, x1: data.first_step, yref: "paper",
        y0: 0, y1: 1, line: { color: css("--text"), width: 1, dash: "dot" } }] : [] }), { ...config, displayModeBar: true });
  }

  async function drawNorms() {
    byId("param").value = String(chosen);
    const box = byId("norms");
    while (box.children.length < Object.keys(norms).length) box.append(document.createElement("div"));
    const full = data.full[String(chosen)];
    byId("thinned").textContent = data.thin.length < data.steps.length && !full
      ? `every ${nth(Math.round(data.steps.length / data.thin.length))} step of the map is drawn here` : "";
    let place = 0;
    for (const [quantity, sides] of Object.entries(norms)) {
      const traces = [];
      for (let side = 0; side < sides.length; side++) {
        const whole = full ? await unpack(full[quantity][side]) : null;
        const values = whole ? whole.values : sides[side] ? row(sides[side], chosen) : null;
        if (values === null) continue;
        traces.push({ type: "scatter", mode: data.steps.length < 3 ? "markers" : "lines", x: whole ? data.steps : data.thin, y: finite(values),
          name: plain(data.names[side]), line: line(side), connectgaps: false,
          hovertemplate: `step %{x}: %{y:.5g}<extra>${plain(cut(data.names[side]))}</extra>` });
      }
      const positive = traces.some((t) => t.y.some((v) => v > 0));
      const element = box.children[place++];
      element.hidden = !traces.some((t) => t.y.some((v) => v !== null));  // state of another optimizer's
      if (element.hidden) continue;
      await plot(element, traces, layout({ height: 240, hovermode: "x",
        title: { text: `norm of ${plain(quantity)}`, font: { size: 13 } },
        yaxis: { type: positive ? "log" : "linear", exponentformat: "e" } }), config);
    }
  }

  async function drawLosses() {
    const several = new Set(data.losses.filter((l) => l.side === 0).map((l) => l.optimizer)).size > 1;
    const whose = (l) => plain(cut(data.names[l.side])) + (several ? ` ${plain(cut(l.label))}` : "");
    const drawn = data.losses.filter((l) => l.key === "loss");
    const traces = drawn.map((l) => ({ type: "scatter", mode: l.x.length < 3 ? "markers" : "lines", x: l.x, y: l.y,
      line: line(l.side), hovertemplate: `step %{x}: loss %{y:.6g}<extra>${whose(l)}</extra>` }));
    // Lines of several optimizers have one colour; each bears its name where it ends.
    const ends = several && drawn.length <= 12 ? drawn.map((l) => [l, l.y.findLastIndex((v) => v !== null)]) : [];
    const annotations = ends.filter(([, i]) => i >= 0).map(([l, i]) => ({ x: l.x[i], y: l.y[i], text: plain(cut(l.label)),
      xref: "x", yref: "y", xanchor: "left", xshift: 6, showarrow: false, font: { color: line(l.side).color, size: 11 } }));
    const clipped = data.losses.filter((l) => l.key === "grad_norm");
    for (const l of clipped)
      traces.push({ type: "scatter", mode: "lines", x: l.x, y: l.y, yaxis: "y3", line: { ...line(l.side), width: 1 }, opacity: 0.7,
        hovertemplate: `step %{x}: norm before clipping %{y:.5g}<extra>${whose(l)}</extra>` });
    const kinds = [...new Set(data.events.map((e) => e.kind))];
    data.events.forEach((e) => traces.push({ type: "scatter", mode: "markers", x: e.x, y: e.x.map(() => plain(e.kind)), yaxis: "y2",
      marker: { symbol: e.side === 0 ? "circle" : "diamond-open", size: 9, color: line(e.side).color },
      text: e.text.map(plain), hovertemplate: `%{y}, step %{x}<br>%{text}<extra>${plain(cut(data.names[e.side]))}</extra>` }));
    const bottom = kinds.length ? 0.12 + 0.05 * kinds.length : 0;
    const middle = clipped.length ? bottom + 0.3 : bottom;
    const axis = { gridcolor: css("--line"), automargin: true };
    await plot(byId("losses"), traces, layout({ height: 340 + 22 * kinds.length, annotations,
      xaxis: { anchor: kinds.length ? "y2" : "y" },
      yaxis: { domain: [middle ? middle + 0.04 : 0, 1], title: { text: "loss" }, exponentformat: "e" },
      yaxis2: { ...axis, domain: [0, Math.max(bottom - 0.05, 0.01)], type: "category", visible: kinds.length > 0 },
      yaxis3: { ...axis, domain: [bottom, Math.max(middle - 0.02, bottom + 0.01)], visible: clipped.length > 0, title: { text: "norm" } } }), config);
  }

  async function drawHyper() {
    const box = byId("hyper");
    while (box.children.length < data.hyper.length) box.append(document.createElement("div"));
    for (let i = 0; i < data.hyper.length; i++) {
      const chart = data.hyper[i];
      await plot(box.children[i], chart.lines.map(([side, x, y]) => ({ type: "scatter", mode: x.length < 3 ? "lines+markers" : "lines", x, y,
        line: { ...line(side), shape: "hv" }, hovertemplate: `step %{x}: %{y:.6g}<extra>${plain(cut(data.names[side]))}</extra>` })),
        layout({ height: 220, title: { text: plain(chart.title), font: { size: 13 } }, yaxis: { exponentformat: "e", rangemode: "tozero" } }), config);
    }
  }

  function at(event) {
    const point = event.points.find((p) => p.data.type === "heatmap");
    return point ? [Number(point.x), Array.isArray(point.pointIndex) ? point.pointIndex[0] : labels.indexOf(point.y)] : null;
  }
  async function draw() {
    await drawMap();
    await drawNorms();
    await drawLosses();
    await drawHyper();
  }

  data.labels.forEach((label, i) => byId("param").append(new Option(label, String(i))));
  byId("param").addEventListener("change", (event) => { chosen = Number(event.target.value); drawNorms(); });
  if (byId("quantity")) byId("quantity").addEventListener("change", drawMap);
  await draw();
  byId("map").on("plotly_hover", (event) => { const found = at(event); if (found) tell(...found); });
  byId("map").on("plotly_click", (event) => { const found = at(event); if (found) { chosen = found[1]; drawNorms(); } });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  // Plotly looks at the window, not at the paper, which is about 700 pixels wide.
  const charts = () => document.querySelectorAll(".js-plotly-plot");
  addEventListener("beforeprint", () => charts().forEach((chart) => Plotly.relayout(chart, { width: chart.closest(".grid") ? 340 : 690 })));
  addEventListener("afterprint", () => charts().forEach((chart) => Plotly.relayout(chart, { width: null, autosize: true })));
  const count = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
  byId("status").textContent = `${count(data.labels.length, "parameter")}, ${count(data.n_steps, "step")}`;
  if (data.steps.length < data.n_steps)
    byId("left-out").textContent = `The run has more steps than a page can hold: ${data.steps.length.toLocaleString("en")} of the`
      + ` ${data.n_steps.toLocaleString("en")} are on the map, evenly spread.`;
  document.documentElement.dataset.ready = "yes";
})();
