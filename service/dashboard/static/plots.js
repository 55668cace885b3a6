// The training curve by uPlot: asked for when the page's live part says that steps were made, drawn in the
// page's own colours, and beside it the table of a few figures.
"use strict";

(() => {
  const card = document.querySelector("[data-curve]");
  if (!card || !window.uPlot) return;

  const HEIGHT = 208;
  const MOST_POINTS = 2400;
  const FIGURES = [
    "train_loss", "valid_loss", "train_mean_token_accuracy", "valid_mean_token_accuracy",
    "learning_rate", "tokens_per_second",
  ];
  const PLOTS = {
    train_loss: [["train_loss", "training", "--accent"], ["valid_loss", "validation", "--warn"]],
    train_mean_token_accuracy: [
      ["train_mean_token_accuracy", "training", "--accent"],
      ["valid_mean_token_accuracy", "validation", "--warn"],
    ],
    learning_rate: [["learning_rate", "learning rate", "--accent"]],
  };
  const TABLE_ROWS = 12;

  const empty = () => Object.fromEntries(["step", ...FIGURES].map((name) => [name, []]));
  let curve = empty();
  let attempt = null;
  const drawn = new Map();

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const written = (value) => {
    if (value === null || value === undefined) return "–";
    return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
  };

  const options = (element, lines) => {
    const axis = (more) => ({
      stroke: colour("--muted"), font: "12px system-ui, sans-serif",
      grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 }, ...more,
    });
    return {
      width: element.clientWidth,
      height: HEIGHT,
      scales: { x: { time: false } },
      cursor: { drag: { x: false, y: false } },
      axes: [axis({ space: 60 }), axis({ size: 66, values: (_, ticks) => ticks.map(written) })],
      series: [
        { label: "step", value: (_, value) => (value === null ? "–" : value.toLocaleString("en")) },
        ...lines.map(([name, label, ink]) => ({
          label, stroke: colour(ink), width: 2, spanGaps: true, value: (_, value) => written(value),
          points: { show: name.startsWith("valid") || curve.step.length < 3, size: 6, fill: colour(ink) },
        })),
      ],
    };
  };

  const draw = () => {
    for (const [name, wanted] of Object.entries(PLOTS)) {
      const element = card.querySelector(`[data-plot="${name}"]`);
      const lines = wanted.filter(([figure]) => curve[figure].some((value) => value !== null));
      if (!lines.length) continue;
      const data = [curve.step, ...lines.map(([figure]) => curve[figure])];
      const known = drawn.get(name);
      if (known && known.lines === lines.length && curve.step.length >= 3 && known.many) {
        known.plot.setData(data);
      } else {
        if (known) known.plot.destroy();
        element.replaceChildren();
        const plot = new uPlot(options(element, lines), data, element);
        drawn.set(name, { plot, lines: lines.length, many: curve.step.length >= 3 });
      }
      element.dataset.points = curve.step.length;
    }
    tabulate();
  };

  const tabulate = () => {
    const body = card.querySelector("[data-curve-table]");
    const last = curve.step.length - 1;
    if (last < 0) return;
    const rows = Math.min(TABLE_ROWS, last + 1);
    const columns = [
      "step", "train_loss", "valid_loss", "train_mean_token_accuracy", "learning_rate", "tokens_per_second",
    ];
    body.replaceChildren(...Array.from({ length: rows }, (_, row) => {
      const at = rows === 1 ? 0 : Math.round((row * last) / (rows - 1));
      const line = document.createElement("tr");
      columns.forEach((name, column) => {
        const cell = document.createElement(column ? "td" : "th");
        if (!column) cell.scope = "row";
        cell.className = "number";
        cell.textContent = written(curve[name][at]);
        line.append(cell);
      });
      return line;
    }));
  };

  const redraw = () => {
    for (const { plot } of drawn.values()) plot.destroy();
    drawn.clear();
    if (curve.step.length) draw();
  };

  let asking = false;
  let again = false;
  const ask = async () => {
    if (asking) { again = true; return; }
    asking = true;
    try {
      const after = curve.step.length ? curve.step[curve.step.length - 1] : 0;
      const answer = await fetch(`${card.dataset.curve}?after=${after}`, { redirect: "manual" });
      if (!answer.ok) return;
      const found = await answer.json();
      // Another attempt may have repeated steps; and what came in many small pieces is thinned anew.
      const anew = after && (found.attempt !== attempt || curve.step.length > MOST_POINTS);
      attempt = found.attempt;
      if (anew) {
        curve = empty();
        again = true;
        return;
      }
      if (!found.step.length) return;
      for (const name of Object.keys(curve)) curve[name] = curve[name].concat(found[name]);
      draw();
    } catch {
      // Out of reach, or signed out: the live part of the page says so and asks again.
    } finally {
      asking = false;
      if (again) { again = false; ask(); }
    }
  };

  let shown = "";
  const look = () => {
    const live = document.getElementById("live");
    if (!live || live.dataset.event === shown) return;
    shown = live.dataset.event;
    ask();
  };
  document.addEventListener("htmx:afterSettle", look);
  document.addEventListener("theme-changed", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  new ResizeObserver(() => {
    for (const [name, { plot }] of drawn) {
      const width = card.querySelector(`[data-plot="${name}"]`).clientWidth;
      if (width && width !== plot.width) plot.setSize({ width, height: HEIGHT });
    }
  }).observe(card);
  look();
})();
