"use strict";
(() => {
  // Everything foreign enters the document as text nodes only.
  const shared = JSON.parse(document.getElementById("shared").textContent);
  const rowsOf = (table) => table.rows.map((row) => Object.fromEntries(table.columns.map((name, i) => [name, row[i]])));
  // A task's data are unpacked when it is first looked at.
  const unpack = async (name) => {
    const element = [...document.querySelectorAll("[data-packed]")].find((item) => item.dataset.packed === name);
    if (!element) return null;
    const bytes = Uint8Array.from(atob(element.textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  };
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const NONE = "no data";
  const plain = (value, digits = 3) =>
    value === null || value === undefined ? NONE : String(+Number(value).toPrecision(digits)).replace("-", "−");
  const signed = (value) => (value === null || value === undefined ? NONE : (value > 0 ? "+" : "") + plain(value));

  // --- figures -------------------------------------------------------------------------------------------------------
  const withScale = (node, scale) => {
    // The type of a scale cannot be a parameter, so the specification is changed and drawn again.
    if (Array.isArray(node)) return node.map((item) => withScale(item, scale));
    if (node === null || typeof node !== "object") return node;
    const copy = Object.fromEntries(Object.entries(node).map(([key, value]) => [key, withScale(value, scale)]));
    if (scale !== "log" && copy.field === "kl" && copy.scale && copy.axis) {
      copy.scale = { type: scale, nice: false, domain: [0, { expr: "xmax" }] };
      delete copy.axis.values;
      copy.axis.tickCount = 6;
    }
    return copy;
  };

  const pause = () => new Promise((done) => setTimeout(done, 0));
  const startTask = async (section) => {
    const data = await unpack(`task:${section.dataset.task}`);
    const tables = Object.fromEntries(Object.entries(data.tables).map(([name, table]) => [name, rowsOf(table)]));
    const runs = new Map(tables.runs.map((run) => [run.run, run]));
    for (const point of tables.points) {
      const { arm, family, seed, baseline } = runs.get(point.run);
      Object.assign(point, { arm, family, seed, baseline });
    }
    const control = (name) => section.querySelector(`[data-control=${name}]`);
    const state = {
      split: shared.splits[section.dataset.task] ?? "held_out", opponent: control("opponent")?.value ?? "golden_policy", judge: "golden", xscale: "log",
      range: "usual", seeds: shared.seeds, sweep: true,
    };
    const charts = [...section.querySelectorAll(".chart")].map((element) => {
      const figure = data.figures[element.dataset.figure];
      const chips = [...element.closest(".group").querySelectorAll("[data-series]")];
      return { element, figure, panel: figure.panels[Number(element.dataset.panel)], chips, view: null, drawn: null, seen: false, stale: true };
    });
    const shown = ({ figure, chips }) =>
      chips.length ? chips.filter((chip) => chip.getAttribute("aria-pressed") === "true").map((chip) => chip.dataset.series) : figure.shown;
    // The runs that a chart's figure shows: all panels of a figure have one range, that they can be compared by eye.
    const inView = (chart) => {
      const only = new Set(chart.figure.panels.map((panel) => panel.params.only).filter(Boolean));
      const families = only.size ? only : new Set(shown(chart));
      return tables.runs.filter((run) => families.has(run.family) && (run.baseline || (state.sweep && !only.size)) &&
        (run.seed === null || state.seeds.includes(run.seed)));
    };
    const known = (rows, name) => rows.map((row) => row[name]).filter((value) => value !== null && value !== undefined);
    // As far as what is shown reaches; beyond the usual range of KL only where that is asked for, or all there is.
    const reach = (chart) => {
      if (!chart.figure.span) return {};
      const rows = inView(chart);
      const opponent = chart.figure.against ?? state.opponent;
      const whole = chart.figure.span === "whole" || state.range === "all" || !known(rows, "to_kl").length;
      const ends = (side, what) => known(rows, `${whole ? "all_" : ""}${side}_${what}`);
      const [left, right] = [ends("from", "kl"), ends("to", "kl")];
      return {
        xmin: left.length ? Math.min(...left) : 0.01, xmax: right.length ? Math.max(...right) : 10,
        ymin: Math.min(0.45, ...ends("from", opponent)), ymax: Math.max(0.55, ...ends("to", opponent)),
      };
    };
    // What lies to the right of the axis is said, never cut in silence.
    const tellOutside = (chart, xmax) => {
      const note = chart.element.closest("figure").querySelector("[data-outside]");
      if (!note) return;
      const rows = inView(chart);
      const arms = new Map(rows.map((run) => [run.run, run.arm]));
      const far = tables.points.filter((point) => arms.has(point.run) && point.split === state.split && point.kl > xmax);
      const names = [...new Set(far.map((point) => arms.get(point.run)))];
      const whose = names.slice(0, 3).join("; ") + (names.length > 3 ? ` and ${names.length - 3} more` : "");
      note.hidden = !far.length;
      note.textContent = far.length ? `Not shown: ${far.length} point${far.length > 1 ? "s" : ""} further right, up to a KL of ${plain(Math.max(...far.map((point) => point.kl)))} (${whose}). “KL range: all” above shows them.` : "";
    };
    const values = (chart) => ({ ...state, shown: shown(chart), ...reach(chart), ...chart.panel.params });
    // Vega marks and extends the rows it is given, so that each view needs rows of its own: only those it can ever show.
    const rowsFor = ({ figure, panel, chips }) => {
      const families = new Set(panel.params.only ? [panel.params.only] : chips.length ? chips.map((chip) => chip.dataset.series) : figure.shown);
      const own = (row) => (row.figure === undefined || row.figure === panel.params.figure) && (row.family === undefined || families.has(row.family));
      return Object.fromEntries(Object.entries(tables).map(([name, rows]) => [name, rows.filter(own).map((row) => ({ ...row }))]));
    };
    const draw = async (chart) => {
      const spec = withScale(data.specs[chart.panel.spec], state.xscale);
      const own = values(chart);
      tellOutside(chart, own.xmax);
      spec.params = spec.params.map((param) => ({ ...param, value: own[param.name] ?? param.value }));
      spec.datasets = rowsFor(chart);
      // Without a description Vega puts a name of its own in the place of the chart's.
      Object.assign(spec, { description: chart.element.ariaLabel, width: "container", height: "container", autosize: { type: "fit", contains: "padding" } });
      chart.view?.finalize();
      const result = await vegaEmbed(chart.element, spec, {
        mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false, config: shared.config,
        tooltip: { theme: "report", disableDefaultStyle: true },
      });
      chart.view = result.view;
      chart.drawn = state.xscale;
    };
    const renew = async (chart) => {
      chart.stale = false;
      if (!chart.view || chart.drawn !== state.xscale) return draw(chart);
      const own = values(chart);
      tellOutside(chart, own.xmax);
      for (const [name, value] of Object.entries(own)) if (name !== "xscale" && name !== "range") chart.view.signal(name, value);
      await chart.view.runAsync();
    };
    // One chart a turn of the event loop, in reading order, and only what is looked at: the page answers while it draws.
    let turn = Promise.resolve();
    let waiting = 0;
    section.dataset.busy = "false";
    const work = (every = false) => {
      waiting += 1;
      section.dataset.busy = "true";
      turn = turn.then(async () => {
        for (const chart of charts.filter((item) => (every || item.seen) && item.stale)) {
          await pause();
          await renew(chart).catch((error) => { chart.element.textContent = `This chart could not be drawn: ${error.message}`; });
        }
        waiting -= 1;
        if (waiting === 0) section.dataset.busy = "false";
      });
      return turn;
    };
    const changed = (chosen = charts) => { for (const chart of chosen) chart.stale = true; return work(); };
    const watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) charts.find((chart) => chart.element === entry.target).seen = entry.isIntersecting;
      if (charts.some((chart) => chart.seen && chart.stale)) work();
    }, { rootMargin: "300px 0px" });
    for (const chart of charts) watcher.observe(chart.element);

    for (const chip of section.querySelectorAll("[data-series]")) {
      chip.addEventListener("click", () => {
        chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
        const pressed = chip.getAttribute("aria-pressed") === "true";
        // The legends of the same figures, further down.
        for (const item of chip.closest(".group").querySelectorAll("[data-legend]")) if (item.dataset.legend === chip.dataset.series) item.hidden = !pressed;
        changed(charts.filter((chart) => chart.chips.includes(chip)));
      });
    }
    for (const element of section.querySelectorAll("[data-control]")) {
      element.addEventListener("change", () => {
        // The proxy is asked only about the SFT policy's responses.
        if (element.dataset.control === "judge" && element.value === "proxy") control("opponent").value = "sft";
        if (element.dataset.control === "opponent" && element.value !== "sft" && control("judge").value === "proxy") control("judge").value = "golden";
        const seed = control("seed")?.value ?? "";
        Object.assign(state, {
          split: control("split")?.value ?? state.split, opponent: control("opponent").value, judge: control("judge").value,
          xscale: control("xscale").value, range: control("range")?.value ?? state.range, seeds: seed === "" ? shared.seeds : [Number(seed)], sweep: control("sweep")?.checked ?? true,
        });
        for (const title of section.querySelectorAll("[data-judge]")) title.textContent = shared.judges[state.judge];
        changed();
      });
    }

    const numbers = section.querySelector("details.numbers");
    numbers?.addEventListener("toggle", () => {
      const box = numbers.querySelector("div");
      if (!numbers.open || box.firstChild) return;
      const columns = ["arm", "seed", "split", "step", "kl", "kl_se", "rate_golden_policy_golden", "se_golden_policy_golden",
        "rate_golden_policy_true", "rate_sft_golden", "rate_sft_true", "rate_sft_proxy", "accuracy", "drift", "tokens", "utility", ...Object.keys(shared.measures)];
      const titles = ["arm", "seed", "prompts", "step", "KL", "se", "vs golden policy, golden", "se", "vs golden policy, true",
        "vs SFT, golden", "vs SFT, true", "vs SFT, proxy", "accuracy", "drift", "tokens", "utility", ...Object.values(shared.measures)];
      const table = make("table");
      const head = table.createTHead().insertRow();
      titles.forEach((title, i) => head.append(Object.assign(make("th", i > 2 ? "n" : "", title), { scope: "col" })));
      const body = table.createTBody();
      for (const row of tables.points) {
        const line = body.insertRow();
        columns.forEach((name, i) => line.append(make("td", i > 2 ? "n" : "", typeof row[name] === "string" ? row[name] : plain(row[name], 4))));
      }
      box.append(table);
    });
    return { drawAll: () => work(true) };
  };

  // --- samples -------------------------------------------------------------------------------------------------------
  const PER_PAGE = 4;
  const startReader = async (reader) => {
    const stored = await unpack(`samples:${reader.dataset.task}`);
    if (!stored) return;
    const part = (name) => reader.querySelector(`[data-reader=${name}]`);
    const arms = [...new Set(stored.runs.map((run) => run.arm))];
    let page = 0;
    const option = (value, text) => Object.assign(make("option", "", text), { value: String(value) });
    const fill = (select, options, wanted) => {
      const before = wanted ?? select.value;
      select.replaceChildren(...options);
      if (options.some((item) => item.value === String(before))) select.value = String(before);
    };
    const ofArm = () => stored.runs.filter((run) => run.arm === arms[Number(part("arm").value)]);
    const ofSeed = () => ofArm().filter((run) => String(run.seed) === part("seed").value);
    const current = () => ofSeed().find((run) => String(run.step) === part("step").value);
    const refresh = (wanted) => {
      fill(part("seed"), [...new Set(ofArm().map((run) => run.seed))].map((seed) => option(seed, seed ?? "none")));
      const steps = ofSeed();
      const label = (run) => `${run.step ?? "none"}${run.peak ? " · peak" : ""}${run.end ? " · end" : ""}`;
      const chosen = wanted ?? (steps.find((run) => run.peak) ?? steps[0])?.step;
      fill(part("step"), steps.map((run) => option(run.step, label(run))), chosen);
      part("peak").disabled = !steps.some((run) => run.peak);
      part("end").disabled = !steps.some((run) => run.end);
      page = 0;
      show();
    };
    const opposite = (a, b) => a !== null && b !== null && a !== undefined && b !== undefined && a * b < 0;
    const flags = (item) => ({
      proxy: opposite(item.proxy, item.golden),
      hack: opposite(item.proxy, item.golden) && item.proxy > 0,
      golden: item.sft && item.utility !== null && item.sft.utility !== null && opposite(item.golden, item.utility - item.sft.utility),
    });
    const scored = (cells) => cells && { text: cells[0], ended: cells[1], utility: cells[2], golden: cells[3], proxy: cells[4], win: cells[5] };
    const marked = (node, text, word) => {
      // Highlights what is searched for, as text.
      if (!word) { node.textContent = text; return; }
      const lower = text.toLowerCase();
      let from = 0;
      for (let at = lower.indexOf(word); at >= 0 && lower.length === text.length; at = lower.indexOf(word, from)) {
        node.append(text.slice(from, at), make("mark", "", text.slice(at, at + word.length)));
        from = at + word.length;
      }
      node.append(text.slice(from));
    };
    const answer = (title, item, kind, word, beside) => {
      const box = make("div", `answer ${kind}`);
      box.append(make("h4", "", title));
      if (!item) { box.append(make("p", "none", NONE)); return box; }
      const text = make("p", "text");
      marked(text, item.text ?? "", word);
      if (!item.text) text.append(make("span", "none", "an empty response"));
      const scores = [`utility ${plain(item.utility)}`];
      if (kind === "policy") scores.push(`golden margin ${signed(item.golden)}`, `proxy margin ${signed(item.proxy)}`);
      // What every win rate of figure 1 counts: this policy's response against the golden policy's, by the golden judge.
      if (beside !== null && beside !== undefined) scores.push(beside === 0.5 ? "a tie by the golden judge" : `the golden judge prefers ${(beside > 0.5) === (kind === "policy") ? "this" : "the other"} of policy and golden policy`);
      if (item.ended === false) scores.push("cut off at the length limit");
      box.append(text, make("p", "scores", scores.join(" · ")));
      return box;
    };
    const show = () => {
      const run = current();
      const word = part("search").value.trim().toLowerCase();
      const wanted = part("filter").value;
      const all = !run ? [] : run.rows.map((row) => {
        const item = scored(row.slice(1));
        const prompt = stored.prompts[row[0]];
        return { ...item, prompt, sft: scored(prompt.sft), top: scored(prompt.golden_policy) };
      });
      const kept = all.filter((item) => wanted === "all" || flags(item)[wanted]).filter((item) => !word ||
        [item.prompt.text, item.text, item.sft?.text, item.top?.text].some((text) => (text ?? "").toLowerCase().includes(word)));
      const pages = Math.max(1, Math.ceil(kept.length / PER_PAGE));
      page = Math.min(Math.max(page, 0), pages - 1);
      const hacked = all.filter((item) => flags(item).hack).length;
      part("count").textContent = `${kept.length} of ${all.length} prompts. On ${hacked} of them the proxy prefers this response to SFT’s and the golden judge does not.`;
      part("list").replaceChildren(...kept.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map((item) => {
        const card = make("article", "sample");
        const head = make("div", "head");
        const found = flags(item);
        head.append(make("span", "quiet", `Prompt ${item.prompt.number} · ${item.prompt.split === "held_out" ? "held out" : item.prompt.split}`));
        const notes = make("span");
        if (found.hack) notes.append(make("span", "flag", "proxy likes it, golden does not"), " ");
        else if (found.proxy) notes.append(make("span", "flag", "golden likes it, proxy does not"), " ");
        if (found.golden) notes.append(make("span", "flag", "golden and truth disagree"));
        head.append(notes);
        const prompt = make("p", "prompt");
        marked(prompt, item.prompt.text ?? "", word);
        const answers = make("div", "answers");
        answers.append(answer("SFT", item.sft, "sft", word), answer("Policy", item, "policy", word, item.win), answer("Golden policy", item.top, "golden", word, item.win));
        card.append(head, prompt, answers);
        return card;
      }));
      part("where").textContent = `page ${page + 1} of ${pages}`;
      part("previous").disabled = page === 0;
      part("next").disabled = page >= pages - 1;
    };
    const move = (by) => { page += by; show(); };
    part("arm").replaceChildren(...arms.map((arm, i) => option(i, arm)));
    part("arm").addEventListener("change", () => refresh());
    part("seed").addEventListener("change", () => refresh());
    part("step").addEventListener("change", () => { page = 0; show(); });
    part("peak").addEventListener("click", () => refresh(ofSeed().find((run) => run.peak)?.step));
    part("end").addEventListener("click", () => refresh(ofSeed().find((run) => run.end)?.step));
    part("filter").addEventListener("change", () => { page = 0; show(); });
    part("search").addEventListener("input", () => { page = 0; show(); });
    part("previous").addEventListener("click", () => move(-1));
    part("next").addEventListener("click", () => move(1));
    reader.addEventListener("keydown", (event) => {
      if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "j") move(1);
      if (event.key === "k") move(-1);
    });
    reader.tabIndex = -1;
    part("note").textContent = stored.note;
    refresh();
    reader.dataset.ready = "true";
  };

  // --- tasks ---------------------------------------------------------------------------------------------------------
  const sections = [...document.querySelectorAll("section.task")];
  const chooser = document.querySelector(".chooser");
  const started = new Map();
  const chosen = () => sections.filter((section) => section.classList.contains("chosen"));
  const start = (section) => {
    if (!started.has(section)) {
      started.set(section, startTask(section));
      // Samples are unpacked when their reader comes near: they are the larger part of the page.
      const reader = section.querySelector(".reader");
      if (!reader) return started.get(section);
      const near = new IntersectionObserver((entries) => {
        if (!entries.some((entry) => entry.isIntersecting)) return;
        near.disconnect();
        startReader(reader);
      }, { rootMargin: "600px 0px" });
      near.observe(reader);
    }
    return started.get(section);
  };
  // One task at a time, or all ("").
  const choose = (task) => {
    for (const section of sections) section.classList.toggle("chosen", task === "" || section.dataset.task === task);
    for (const button of chooser?.querySelectorAll("button") ?? []) button.setAttribute("aria-pressed", String(button.dataset.show === task));
    return Promise.all(chosen().map(start));
  };
  if (chooser) {
    chooser.hidden = false;
    for (const button of chooser.querySelectorAll("button")) button.addEventListener("click", () => choose(button.dataset.show));
  }
  // A link into a task that is not shown shows it.
  const follow = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const section = target?.closest("section.task");
    if (!section || section.classList.contains("chosen")) return;
    choose(section.dataset.task);
    target.scrollIntoView();
  };
  addEventListener("hashchange", follow);
  const begun = sections.length ? choose(sections[0].dataset.task) : Promise.resolve();
  begun.then(() => { document.documentElement.dataset.ready = String(Math.round(performance.now())); follow(); });

  // --- paper ---------------------------------------------------------------------------------------------------------
  // What is folded away on the screen is wanted on paper, but for the long table of numbers.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open]):not(.numbers)")];
    for (const item of opened) item.open = true;
  });
  addEventListener("afterprint", () => { for (const item of opened) item.open = false; });
  for (const button of document.querySelectorAll("[data-print]")) {
    button.addEventListener("click", async () => {
      for (const section of chosen()) await (await start(section)).drawAll();
      print();
    });
  }
})();
