"use strict";
(() => {
  const { data, shown, byId, make, percent, tile, small, named, blocks } = window.sidestep;
  const models = data.live, root = document.documentElement;
  // Images that are asked about, and of test images how many are offered at once.
  const MOST = 12, OFFERED = 24, REPEATS = 3, CLASSES = 3;
  const tray = [];
  let turn = 0;

  // Budgets: a slider over those of all networks. Each gets its largest that is not above, or its smallest.
  const steps = [...new Set(models.flatMap((model) => (model.budgets.length > 1 ? model.budgets : [])))].sort((a, b) => a - b);
  const chosen = () => (steps.length ? steps[Number(byId("live-budget").value)] : null);
  function rungOf(model) {
    const below = model.budgets.filter((budget) => budget <= chosen() + 1e-9).length;
    return model.budgets.length > 1 ? Math.max(0, below - 1) : 0;
  }
  function showBudget() {
    if (!steps.length) return;
    const said = models.map((model) => {
      const rung = rungOf(model), accuracy = model.accuracies[rung];
      if (model.budgets.length < 2) return `${model.name} has one budget`;
      return `${model.name} at ${percent(model.budgets[rung])}` + (accuracy === null ? "" : `: ${percent(accuracy, 2)} right`);
    });
    const text = `budget ${percent(chosen())}. ${said.join("; ")}.`;
    byId("live-budget-said").textContent = text;
    byId("live-budget").setAttribute("aria-valuetext", text);
  }

  // One image to one network: in the binary form of the Open Inference Protocol.
  function body(item, model) {
    const exact = item.pixels && item.size[0] === model.size[0] && item.size[1] === model.size[1] && item.channels === model.channels;
    const length = new Uint8Array(4);
    new DataView(length.buffer).setUint32(0, item.file.length, true);
    const content = exact ? [item.pixels] : [length, item.file];
    const shape = exact ? [1, ...model.size, model.channels] : [1];
    const tensor = { name: "image", datatype: exact ? "UINT8" : "BYTES", shape,
      parameters: { binary_data_size: content.reduce((sum, part) => sum + part.length, 0) } };
    const parameters = model.budgets.length > 1 ? { budget: model.budgets[rungOf(model)] } : {};
    const head = new TextEncoder().encode(JSON.stringify({ parameters, inputs: [tensor] }));
    return { head, blob: new Blob([head, ...content]) };
  }
  async function answerOf(item, model) {
    const { head, blob } = body(item, model);
    let response;
    try {
      response = await fetch(`v2/models/${encodeURIComponent(model.name)}/infer`, { method: "POST", body: blob,
        headers: { "Content-Type": "application/octet-stream", "Inference-Header-Content-Length": String(head.length) } });
    } catch { throw new Error("the server does not answer; start `sidestep explore` again"); }
    const said = await response.json();
    if (!response.ok) throw new Error(said.error);
    return Object.fromEntries(said.outputs.map((output) => [output.name, output.data]));
  }

  const wayOf = (path) => path.map((option) => (option < 0 ? "-" : option.toString(36))).join("");
  function card(item, model, said, ms) {
    const names = model.class_names, name = (index) => names[index] ?? String(index);
    const best = said.probabilities.map((share, index) => [share, index]).sort((a, b) => b[0] - a[0]).slice(0, CLASSES);
    const label = name(said.class[0]), judged = item.label !== null && names.includes(item.label);
    const macs = said.macs[0], ran = said.path.filter((option) => option > 0).length;
    const cost = `${(1e-6 * macs).toFixed(2)} M MACs (${percent(macs / model.full_macs)} of the full network)`;
    const left = model.exits > 1 ? `; left at exit ${said.exit[0] + 1} of ${model.exits}` : "";
    const box = make("div", {}, make("h4", {}, model.name),
      make("p", {}, make("strong", {}, label), `${judged ? (label === item.label ? " (right)" : " (wrong)") : ""}: ${cost}, ${ms.toFixed(2)} ms${left}`));
    const rates = make("div", { class: "rates" });
    for (const [share, index] of best) rates.append(make("span", {}, `${name(index)}: ${percent(share)}`), make("i", { style: `width:${100 * share}%` }));
    box.append(rates);
    if (said.path.length) box.append(make("p", { class: "gallery" }, `${ran} of ${said.path.length} blocks ran:`), blocks(wayOf(said.path)));
    else if (model.exits > 1) {
      const way = Array.from({ length: model.exits }, (_, exit) => (exit <= said.exit[0] ? "1" : "-")).join("");
      box.append(make("p", { class: "gallery" }, "Parts up to each exit:"), blocks(way, { what: "parts" }));
    }
    return box;
  }

  // All images of the tray to all networks, one after the other: times are of one image alone.
  async function askAll(items) {
    const mine = ++turn;
    byId("live-error").textContent = "";
    byId("live-state").textContent = items.length ? "asking ..." : "";
    let answers = 0;
    for (const item of items) for (const model of models) {
      const runs = [];
      try {
        for (let run = 0; run < REPEATS; run++) {
          runs.push(await answerOf(item, model));
          if (mine !== turn) return;
        }
      } catch (error) {
        if (mine !== turn) return;
        byId("live-error").textContent = error.message;
        byId("live-state").textContent = "";
        root.dataset.answers = "failed";
        return;
      }
      const times = runs.map((said) => said.ms[0] - said.queue_ms[0]).sort((a, b) => a - b);
      item.cards.get(model.name).replaceChildren(...card(item, model, runs[0], times[Math.floor(REPEATS / 2)]).childNodes);
      answers++;
    }
    root.dataset.answers = `${answers} at ${steps.length ? chosen() : "one budget"}`;
    byId("live-state").textContent = items.length ? `${answers} answers; milliseconds are those in the network, of one image alone, ` +
      `the middle one of ${REPEATS} runs.` : "";
  }
  function add(item) {
    item.cards = new Map(models.map((model) => [model.name, make("div", {}, make("h4", {}, model.name), make("p", {}, "asking ..."))]));
    const remove = make("button", { type: "button", class: "more", onclick: () => {
      tray.splice(tray.indexOf(item), 1);
      item.box.remove();
      askAll(tray);
    } }, "remove");
    item.box = make("article", { class: "tried" }, make("div", {}, item.picture, make("p", { class: "gallery" }, item.name), remove),
      make("div", { class: "said" }, ...item.cards.values()));
    tray.unshift(item);
    byId("tray").prepend(item.box);
    while (tray.length > MOST) tray.pop().box.remove();
  }

  // Images: files of the reader's, or those of the test split.
  async function addFiles(files) {
    for (const file of files) {
      const picture = make("img", { src: URL.createObjectURL(file), alt: file.name, class: "given" });
      add({ name: file.name, picture, label: null, file: new Uint8Array(await file.arrayBuffer()), pixels: null });
    }
    await askAll(tray);
  }
  async function addTest(place) {
    const response = await fetch(`explore/images/${shown.ids[place]}`);
    const [height, width, channels] = JSON.parse(response.headers.get("X-Image-Shape"));
    const pixels = new Uint8Array(await response.arrayBuffer());
    const canvas = make("canvas", { width, height, class: "given", role: "img", "aria-label": named(place) });
    const drawn = new ImageData(width, height);
    for (let at = 0; at < width * height; at++)
      for (let channel = 0; channel < 4; channel++)
        drawn.data[4 * at + channel] = channel === 3 ? 255 : pixels[channels * at + (channels === 1 ? 0 : channel)];
    canvas.getContext("2d").putImageData(drawn, 0, 0);
    const file = await new Promise((done) => canvas.toBlob(done, "image/png"));
    add({ name: named(place), picture: canvas, label: shown.classes[shown.labels[place]], pixels, size: [height, width], channels,
      file: new Uint8Array(await file.arrayBuffer()) });
    await askAll(tray);
  }
  let first = 0;
  function offer() {
    const count = shown.ids.length;
    // A stride that is prime to most counts mixes classes where images lie in their order.
    const places = Array.from({ length: Math.min(OFFERED, count) }, (_, index) => ((first + index) * 7919) % count);
    byId("tests-grid").replaceChildren(...[...new Set(places)].map((place) => make("button", { class: "picture", type: "button",
      title: named(place), "aria-label": `try ${named(place)}`, onclick: () => addTest(place).catch(failed) }, tile(place, small()))));
  }
  const failed = (error) => { byId("live-error").textContent = error.message; };

  byId("live-said").textContent = "Images are answered by " + models.map((model) => `${model.name} (${model.about})`).join(", ") +
    ". Move the budget, and see what runs, what it says, and what it costs.";
  if (steps.length) {
    byId("live-budget").max = steps.length - 1;
    byId("live-budget").value = steps.length - 1;
    byId("live-budget").addEventListener("input", () => { showBudget(); askAll(tray); });
  } else byId("live-slider").hidden = true;
  showBudget();
  if (shown) {
    byId("tests").hidden = false;
    byId("tests-others").addEventListener("click", () => { first += OFFERED; offer(); });
    offer();
  }
  byId("drop").addEventListener("click", () => byId("drop-file").click());
  byId("drop-file").addEventListener("change", (event) => { addFiles([...event.target.files]).catch(failed); event.target.value = ""; });
  for (const kind of ["dragenter", "dragover"])
    document.addEventListener(kind, (event) => { event.preventDefault(); byId("drop").classList.add("over"); });
  document.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    byId("drop").classList.remove("over");
    addFiles([...event.dataTransfer.files]).catch(failed);
  });
  document.addEventListener("paste", (event) => addFiles([...event.clipboardData.files]).catch(failed));
  window.sidestep.tryImage = (place) => {
    addTest(place).catch(failed);
    byId("live").scrollIntoView();
  };
  const asked = /try=(\d+)(?:&budget=([\d.]+))?/.exec(location.hash);
  if (asked && shown) {
    if (asked[2] && steps.length) byId("live-budget").value = Math.max(0, steps.filter((step) => step <= Number(asked[2]) / 100 + 1e-9).length - 1);
    showBudget();
    const place = shown.ids.indexOf(Number(asked[1]));
    if (place >= 0) addTest(place).catch(failed);
  }
})();
