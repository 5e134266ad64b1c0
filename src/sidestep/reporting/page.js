"use strict";
(() => {
  const root = document.documentElement;
  const errors = [];
  const failed = (message) => { errors.push(String(message)); root.dataset.errors = errors.join("\n"); };
  window.addEventListener("error", (event) => failed(event.message));
  window.addEventListener("unhandledrejection", (event) => failed(event.reason));

  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "onclick") element.addEventListener("click", value);
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  };
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

  // Budgets: accuracy and cost from what every exit said of every image, as `evaluate --budget` finds them.
  function atBudget(known, place) {
    const rates = new Array(known.exits).fill(0);
    let right = 0, macs = 0;
    for (let image = 0; image < known.images; image++) {
      let exit = 0;
      while (exit < known.exits - 1 && known.levels[exit * known.images + image] < known.ranks[exit][place]) exit++;
      rates[exit]++;
      right += known.right[exit * known.images + image];
      macs += known.macs[known.alike ? exit : exit * known.images + image];
    }
    return { accuracy: right / known.images, macs: macs / known.images, rates: rates.map((n) => n / known.images) };
  }

  function showSlider(packed, number) {
    const box = byId(`slider-${number}`);
    if (!box) return;
    const known = { ...packed, levels: bytes(packed.levels), right: bytes(packed.right),
      macs: new Float64Array(bytes(packed.macs).buffer) };
    const [range, output, rates] = [box.querySelector("input"), box.querySelector("output"), box.querySelector(".rates")];
    const show = () => {
      const place = Number(range.value), point = atBudget(known, place);
      const thresholds = known.thresholds[place].map((threshold) => threshold.toPrecision(6)).join(", ");
      const said = `budget ${percent(known.budgets[place], 0)}: ${percent(point.accuracy, 2)} right at ` +
        `${(2e-9 * point.macs).toFixed(4)} GFLOPs, ${percent(point.macs / known.full)} of the full network`;
      output.textContent = `${said}; thresholds ${thresholds}`;
      range.setAttribute("aria-valuetext", said);
      rates.replaceChildren(...point.rates.flatMap((rate, exit) => [
        make("span", {}, `exit ${exit + 1}: ${percent(rate)}`), make("i", { style: `width:${100 * rate}%` })]));
    };
    const asked = /budget=(\d+)/.exec(location.hash);
    if (asked) {
      const place = known.budgets.findIndex((budget) => Math.round(100 * budget) === Number(asked[1]));
      if (place >= 0) range.value = place;
    }
    range.addEventListener("input", show);
    show();
  }

  // Pictures of images.
  const shown = data.images;
  const placeOf = new Map((shown ? shown.ids : []).map((id, place) => [id, place]));
  function tile(place, scale) {
    const [x, y] = [place % shown.columns, Math.floor(place / shown.columns)];
    const rows = Math.ceil(shown.ids.length / shown.columns);
    const style = `width:${shown.width * scale}px;height:${shown.height * scale}px;` +
      `background-size:${shown.width * scale * shown.columns}px ${shown.height * scale * rows}px;` +
      `background-position:-${x * shown.width * scale}px -${y * shown.height * scale}px`;
    return make("span", { class: "tile sprite", style });
  }
  const small = () => Math.max(1, Math.round(48 / shown.width));
  const named = (place) => `image ${shown.ids[place]}, ${shown.classes[shown.labels[place]]}`;
  function picture(place, run) {
    const wrong = run && run.predictions[place] !== shown.labels[place];
    const said = named(place) + (wrong ? `, taken for ${shown.classes[run.predictions[place]]}` : "");
    return make("button", { class: `picture${wrong ? " wrong" : ""}`, type: "button", title: said, "aria-label": said,
      "data-place": place, "aria-pressed": "false", onclick: () => showOne(place) }, tile(place, small()));
  }
  function showGalleries() {
    for (const [id, rows] of Object.entries(data.galleries)) {
      const box = byId(id);
      if (!box || !shown) continue;
      for (const row of rows) {
        const places = row.ids.map((image) => placeOf.get(image)).filter((place) => place !== undefined);
        box.append(make("p", { class: "gallery" }, row.title),
          make("div", { class: "pictures" }, ...places.map((place) => picture(place, null))));
      }
    }
  }

  // One image: the network with what ran, and what its routers and exits said.
  const SVG = "http://www.w3.org/2000/svg";
  function drawn(tag, attributes, text) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }
  // A way through units: "0" for a skipped one, "-" for one behind the exit, anything else for one that ran.
  function blocks(way, { asked = null, marks = [], what = "blocks" } = {}) {
    const count = way.length, wide = 18, side = 22, high = asked === null ? 26 : 40;
    const width = Math.min(count, wide) * side + 4, height = Math.max(1, Math.ceil(count / wide)) * high;
    const list = [...way].map((letter, unit) => ("0-".includes(letter) ? 0 : unit + 1)).filter(Boolean).join(", ");
    const svg = drawn("svg", { class: "blocks", role: "img", width, height, viewBox: `0 0 ${width} ${height}`,
      "aria-label": `${what} that ran: ${list || "none"}` });
    for (let unit = 0; unit < count; unit++) {
      const x = 2 + (unit % wide) * side, y = 2 + Math.floor(unit / wide) * high;
      const kind = way[unit] === "-" ? "behind" : way[unit] === "0" ? "skipped" : "ran";
      svg.append(drawn("rect", { class: kind, x, y, width: side - 4, height: 20, rx: 3 }),
        drawn("text", { class: kind, x: x + 9, y: y + 14 }, unit + 1));
      if (asked !== null) svg.append(drawn("text", { class: "asked", x: x + 9, y: y + 31 }, asked[unit]));
      if (marks.includes(unit + 1) && unit + 1 < count)
        svg.append(drawn("path", { d: `M${x + side - 3} ${y - 2}v24` }));
    }
    return svg;
  }
  function network(run, place) {
    const way = run.options[place], count = way.length;
    return blocks(way, { asked: run.routers === null ? null : run.routers.subarray(place * count, (place + 1) * count),
      marks: run.exits === null ? [] : run.unitsBefore });
  }
  function exitsSaid(run, place) {
    if (!run.exitPredictions) return [];
    const rows = run.exitPredictions.map((said, exit) => make("tr", {}, make("td", {}, `exit ${exit + 1}` +
      (run.exits !== null && run.exits[place] === exit ? " (left here)" : "")), make("td", {}, shown.classes[said[place]]),
      make("td", {}, percent(run.exitConfidences[exit][place]))));
    const head = make("tr", {}, ...["exit", "said", "confidence"].map((text) => make("th", { scope: "col" }, text)));
    return [make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows))];
  }
  function nearest(run, place, count) {
    const own = run.options[place], left = run.exits;
    const apart = run.options.map((other, index) => {
      let units = left !== null && left[index] !== left[place] ? 1 : 0;
      for (let unit = 0; unit < own.length; unit++) if (own[unit] !== other[unit]) units++;
      return [units, index];
    });
    return apart.filter(([, index]) => index !== place).sort((a, b) => a[0] - b[0] || a[1] - b[1]).slice(0, count);
  }
  function cardOf(run, place) {
    const right = run.predictions[place] === shown.labels[place];
    const cost = `${(1e-6 * run.macs[place]).toFixed(2)} M MACs (${percent(run.macs[place] / run.full)} of the full network)` +
      (run.ms ? `, ${run.ms[place].toFixed(3)} ms` : "");
    const card = make("div", {}, make("h3", {}, run.name), make("p", {}, `${shown.classes[run.predictions[place]]} ` +
      `(${right ? "right" : "wrong"}), confidence ${percent(run.confidences[place])}; ${cost}`));
    if (run.options[place].length) {
      card.append(network(run, place));
      const near = nearest(run, place, 8);
      const units = near.length ? near[near.length - 1][0] : 0;
      card.append(make("p", { class: "gallery" }, "Faded blocks were skipped" +
        (run.exits === null ? "" : ", dotted ones lie behind the exit; a stroke is an exit") +
        (run.routers === null ? "." : "; below each: how likely its router runs it, in percent.")));
      card.append(...exitsSaid(run, place), make("p", { class: "gallery" }, `Nearest by path (up to ${units} units apart):`),
        make("div", { class: "pictures" }, ...near.map(([, index]) => picture(index, run))));
    } else card.append(...exitsSaid(run, place));
    return card;
  }
  function showOne(place) {
    const box = byId("one");
    box.replaceChildren(make("h3", {}, named(place)), tile(place, Math.max(1, Math.round(160 / shown.width))),
      ...(data.live ? [make("p", {}, make("button", { type: "button", class: "more", onclick: () => window.sidestep.tryImage(place) },
        "Try it with other budgets"))] : []),
      make("div", { class: "said" }, ...data.runs.map((run) => cardOf(run, place))));
    for (const button of document.querySelectorAll(".picture"))
      button.setAttribute("aria-pressed", String(Number(button.dataset.place) === place));
    root.dataset.image = shown.ids[place];
    box.focus();
    box.scrollIntoView({ block: "nearest" });
  }

  // Filters.
  const PAGE = 120;
  let wanted = PAGE;
  const options = (select, values) => select.replaceChildren(...values.map(([value, text]) => make("option", { value }, text)));
  function quarters(run) {
    const sorted = [...run.macs].sort((a, b) => a - b);
    return [0.25, 0.5, 0.75].map((share) => sorted[Math.floor(share * sorted.length)]);
  }
  function fillPaths(run) {
    const counts = new Map();
    for (const path of run.paths) counts.set(path, (counts.get(path) || 0) + 1);
    const common = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 100);
    options(byId("by-path"), [["", "any"], ...common.map(([path, count]) => [path, `${path} (${count})`])]);
  }
  function filter() {
    const run = data.runs[Number(byId("by-run").value)], limits = quarters(run);
    const [label, answer, cost, path] = ["by-class", "by-answer", "by-cost", "by-path"].map((id) => byId(id).value);
    const places = shown.ids.map((_, place) => place).filter((place) => {
      const right = run.predictions[place] === shown.labels[place];
      const quarter = limits.filter((limit) => run.macs[place] >= limit).length;
      return (label === "" || shown.labels[place] === Number(label)) && (answer === "" || (answer === "right") === right) &&
        (cost === "" || quarter === Number(cost)) && (path === "" || run.paths[place] === path);
    });
    byId("found").textContent = `${places.length} of ${shown.ids.length} images; dashed below: wrong in ${run.name}.`;
    byId("grid").replaceChildren(...places.slice(0, wanted).map((place) => picture(place, run)));
    if (places.length > wanted) byId("grid").append(make("button", { type: "button", class: "more",
      onclick: () => { wanted += PAGE; filter(); } }, `${Math.min(PAGE, places.length - wanted)} more`));
    root.dataset.found = places.length;
  }
  function showExplorer() {
    if (shown) document.head.append(make("style", {}, `.sprite{background-image:url(${shown.sprite})}`));
    if (!shown || !data.runs.length) return;
    for (const run of data.runs) if (run.routers !== null) run.routers = bytes(run.routers);
    byId("explorer").hidden = byId("to-explorer").hidden = false;
    byId("explorer-said").textContent = `${shown.ids.length} images of the test split: those shown above, images that some run ` +
      "gets wrong, and others by chance. Choose one to see what every run did with it.";
    options(byId("by-run"), data.runs.map((run, index) => [index, run.name]));
    options(byId("by-class"), [["", "any"], ...shown.classes.map((name, label) => [label, name])]);
    fillPaths(data.runs[0]);
    byId("by-run").addEventListener("change", () => fillPaths(data.runs[Number(byId("by-run").value)]));
    byId("filters").addEventListener("change", () => { wanted = PAGE; filter(); });
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    filter();
    const asked = /image=(\d+)/.exec(location.hash);
    if (asked && placeOf.has(Number(asked[1]))) showOne(placeOf.get(Number(asked[1])));
  }
  function filterByPath(name, path) {
    const index = data.runs.findIndex((run) => run.name === name);
    if (index < 0) return;
    byId("by-run").value = index;
    fillPaths(data.runs[index]);
    const known = [...byId("by-path").options].some((option) => option.value === path);
    byId("by-path").value = known ? path : "";
    filter();
  }

  // Charts, in colours that can be seen on a dark page where the reader has one.
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const isColour = /^(color|fill|stroke|background|value|range|\w+Color)$/;
  function coloured(value, key = "") {
    if (typeof value === "string") return isColour.test(key) ? data.dark[value] ?? value : value;
    if (Array.isArray(value)) return value.map((each) => coloured(each, key));
    // What data and orders say are names, whatever they are called.
    if (value === null || typeof value !== "object" || ["data", "sort", "domain"].includes(key)) return value;
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, coloured(each, name)]));
  }
  // On narrow screens charts become as wide as there is room, and what stands side by side stands below each other.
  const ROOMY = 820, BESIDE = 120;
  function fitted(value, room, key = "") {
    if (Array.isArray(value)) return value.map((each) => fitted(each, room));
    if (value === null || typeof value !== "object" || ["data", "datasets", "encoding"].includes(key)) return value;
    return Object.fromEntries(Object.entries(value).map(([name, each]) => {
      if (name === "width" && typeof each === "number") return [name, Math.min(each, room - BESIDE)];
      return [name === "hconcat" ? "vconcat" : name, fitted(each, room, name)];
    }));
  }
  function specFor(spec, room) {
    const shownSpec = dark.matches ? coloured(spec) : spec;
    if (room >= ROOMY) return shownSpec;
    const narrow = fitted(shownSpec, room);
    narrow.config = { ...narrow.config, legend: { ...narrow.config.legend, orient: "top", columns: 2 } };
    return narrow;
  }
  async function drawCharts() {
    let count = 0, wide = 0;
    for (const [id, spec] of Object.entries(data.specs)) {
      const box = byId(id), room = box.parentElement.clientWidth;
      const { view } = await window.vegaEmbed(box, specFor(spec, room), { renderer: "svg", actions: false });
      const svg = box.querySelector("svg");
      if (svg) count++;
      if (svg && svg.getBoundingClientRect().width > room) wide++;
      if (data.paths[id]) view.addSignalListener("path_shown", (_, value) => {
        filterByPath(data.paths[id], value && value.path ? value.path[0] : "");
      });
    }
    root.dataset.wide = wide;
    root.dataset.drawn = count;
  }

  window.sidestep = { data, shown, byId, make, percent, tile, small, named, blocks };
  data.sliders.forEach(showSlider);
  showExplorer();
  showGalleries();
  drawCharts().catch(failed);
  dark.addEventListener("change", () => drawCharts().catch(failed));
})();
