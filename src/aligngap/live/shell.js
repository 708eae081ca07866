"use strict";
(() => {
  // Everything foreign enters the document as text nodes only.
  const $ = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const clock = (seconds) => {
    const whole = Math.round(seconds), pad = (n) => String(n).padStart(2, "0");
    const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
    return h ? `${h}:${pad(m)}:${pad(s)}` : `${m}:${pad(s)}`;
  };
  const plain = (value, digits = 3) => (value === null || value === undefined ? "" : String(+Number(value).toPrecision(digits)).replace("-", "−"));
  const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
  const until = async (condition, milliseconds) => {
    for (const end = Date.now() + milliseconds; Date.now() < end && !condition(); ) await pause(40);
    return condition();
  };
  const MARKS = { finished: "✓", cached: "✓", running: "●", waiting: "○", failed: "✕", blocked: "–", interrupted: "‖" };
  const SHOWN = { running: "running", finished: "finished", failed: "failed", interrupted: "interrupted", starting: "starting", unreadable: "cannot be read" };
  const TONES = { finished: "supported", failed: "contradicted", interrupted: "contradicted", unreadable: "contradicted" };

  // --- where the run stands ------------------------------------------------------------------------------------------
  const say = (element, text) => { if (element.textContent !== text) element.textContent = text; };
  const fill = (body, rows) => body.replaceChildren(...rows);
  const cells = (row, ...values) => { for (const [className, value] of values) { const cell = make("td", className); cell.append(value ?? ""); row.append(cell); } return row; };
  const bar = (done, total) => {
    const box = make("span", "nowrap");
    if (!total) return box;
    const line = Object.assign(make("progress"), { max: total, value: done });
    line.setAttribute("aria-hidden", "true");
    box.append(line, `${done} of ${total}`);
    return box;
  };
  const losses = (metrics) => Object.entries(metrics ?? {}).map(([name, value]) => (name === "loss" ? plain(value) || "not finite" : "")).join("");
  let stagesShown = null;
  const showStages = async (state) => {
    if (!$("all").open || stagesShown === state.stages) return;
    const rows = await (await fetch("/stages", { cache: "no-store" })).json();
    stagesShown = state.stages;
    fill($("all").querySelector("tbody"), rows.map((stage) => cells(make("tr", stage.status),
      ["nowrap", `${MARKS[stage.status] ?? "?"} ${stage.status}`], ["", stage.kind.replaceAll("_", " ")], ["", stage.label],
      ["n", stage.seconds ? plain(stage.seconds) : ""], ["", stage.reason])));
  };
  const showFigures = (page, now) => {
    const parts = [];
    if (page.version) {
      const age = now - page.made;
      parts.push(page.final ? "The report below is the finished one." : `The report below is ${clock(Math.max(0, age))} old and rests on ${page.arms} of ${page.of} arms; estimates will change.`);
    } else parts.push(page.making ? "The first report is being made." : "No arm has been evaluated yet: the report comes with the first one.");
    if (page.problem) parts.push(`It could not be renewed: ${page.problem}.`);
    else if (page.version && page.making && !page.final) parts.push("A new one is being made.");
    say($("figures"), parts.join(" "));
  };
  const show = async (state, now) => {
    say($("title"), state.title);
    if (document.title !== state.title) document.title = state.title;
    const closing = state.closing ? "writing results" : SHOWN[state.state] ?? state.state;
    say($("state"), closing);
    $("state").className = `badge ${TONES[state.state] ?? "inconclusive"}`;
    document.documentElement.dataset.state = state.state;
    const total = Object.values(state.counts).reduce((a, b) => a + b, 0);
    const ended = ["finished", "cached", "failed", "blocked"].reduce((sum, name) => sum + (state.counts[name] ?? 0), 0);
    const also = ["failed", "blocked"].filter((name) => state.counts[name]).map((name) => `, ${state.counts[name]} ${name}`).join("");
    say($("count"), total ? `${ended} of ${total} stages${also}` : "");
    const left = state.state === "running" && state.left !== null ? `about ${clock(state.left)} left` : "";
    say($("left"), left);
    $("bar").value = state.fraction ?? (total ? ended / total : 0);
    const messages = {
      interrupted: "The run was interrupted. What is finished is kept; the same `aligngap run` command goes on.",
      starting: "Nothing has been run here yet.",
    };
    const message = state.message ?? messages[state.state] ?? "";
    say($("message"), message);
    $("message").hidden = !message;
    fill($("work").querySelector("tbody"), state.running.map((stage) => cells(make("tr", stage.status), ["", stage.label], ["", bar(stage.done, stage.total)],
      ["n", plain(stage.rate)], ["n", stage.left === null ? "" : clock(stage.left)], ["n", losses(stage.metrics)])));
    $("work").hidden = state.state !== "running" && !state.running.length;
    const seconds = state.times.reduce((sum, row) => sum + row.seconds, 0);
    fill($("times").querySelector("tbody"), state.times.map((row) => cells(make("tr"), ["", row.kind.replaceAll("_", " ")],
      ["n", row.timed < row.stages ? `${row.stages} (${row.timed} timed)` : String(row.stages)], ["n", row.timed ? clock(row.seconds) : "no data"],
      ["n", row.timed && seconds ? `${(100 * row.seconds / seconds).toFixed(1)}%` : ""])));
    $("times").hidden = !state.times.length;
    $("all").hidden = !total;
    showFigures(state.page, now);
    await showStages(state);
    renew(state.page.version);
  };

  // --- the report ----------------------------------------------------------------------------------------------------
  // A new report is loaded unseen beside the old one, is given the reader's place and choices, and only then shown.
  const main = $("report");
  let current = null, coming = false, touched = 0;
  const sections = (page) => [...page.querySelectorAll("section.task")];
  const same = (page, section) => sections(page).find((other) => other.dataset.task === section.dataset.task);
  const begun = (section) => section?.dataset.busy !== undefined;
  const pressed = (button) => button.getAttribute("aria-pressed") === "true";
  const shownTask = (page) => [...page.querySelectorAll(".chooser button")].find(pressed)?.dataset.show;
  const chooseTask = (page, task) => [...page.querySelectorAll(".chooser button")].find((button) => button.dataset.show === task && !pressed(button))?.click();
  const set = (control, like) => {
    if (control.type === "checkbox") control.checked = like.checked;
    else if ([...control.options].some((option) => option.value === like.value)) control.value = like.value;
  };
  const groupOf = (chip) => chip.closest(".group")?.querySelector("[data-figure]")?.dataset.figure;
  const placeOf = (item, kind) => {
    const home = item.parentElement.closest("[id]");
    return home && { home: home.id, index: [...home.querySelectorAll(kind)].indexOf(item) };
  };
  const carryChoices = async (from, to) => {
    const wanted = shownTask(from);
    for (const old of sections(from).filter(begun)) {
      const fresh = same(to, old);
      if (!fresh) continue;
      chooseTask(to, old.dataset.task);
      await until(() => begun(fresh), 5000);
      const controls = [...old.querySelectorAll("[data-control]")].map((like) => [fresh.querySelector(`[data-control=${like.dataset.control}]`), like]).filter(([control]) => control);
      for (const [control, like] of controls) set(control, like);
      controls[0]?.[0].dispatchEvent(new Event("change"));
      const chips = new Map([...fresh.querySelectorAll("[data-series]")].map((chip) => [`${groupOf(chip)}\n${chip.dataset.series}`, chip]));
      for (const like of old.querySelectorAll("[data-series]")) {
        const chip = chips.get(`${groupOf(like)}\n${like.dataset.series}`);
        if (chip && pressed(chip) !== pressed(like)) chip.click();
      }
    }
    if (wanted !== undefined) chooseTask(to, wanted);
    for (const item of from.querySelectorAll("details")) {
      const place = placeOf(item, "details");
      const fresh = place && to.getElementById(place.home)?.querySelectorAll("details")[place.index];
      if (fresh && fresh.open !== item.open) fresh.open = item.open;
    }
  };
  const anchorOf = (page) => [...page.querySelectorAll("[id]")].filter((item) => item.getClientRects().length && item.getBoundingClientRect().top <= 90).at(-1);
  const carryPlace = (from, to) => {
    const anchor = anchorOf(from), fresh = anchor?.id && to.getElementById(anchor.id);
    const by = fresh ? fresh.getBoundingClientRect().top - anchor.getBoundingClientRect().top : from.scrollingElement.scrollTop - to.scrollingElement.scrollTop;
    to.defaultView.scrollBy({ top: by, behavior: "instant" });
  };
  const carrySamples = (from, to) => {
    for (const old of from.querySelectorAll(".reader[data-ready]")) {
      const fresh = to.getElementById(old.id);
      const part = (reader, name) => reader?.querySelector(`[data-reader=${name}]`);
      if (!part(fresh, "arm")) continue;
      const apply = () => {
        const arm = part(old, "arm").selectedOptions[0]?.textContent;
        const option = [...part(fresh, "arm").options].find((item) => item.textContent === arm);
        if (!option) return;
        part(fresh, "arm").value = option.value;
        part(fresh, "arm").dispatchEvent(new Event("change"));
        for (const name of ["seed", "step", "filter"]) { set(part(fresh, name), part(old, name)); part(fresh, name).dispatchEvent(new Event("change")); }
        part(fresh, "search").value = part(old, "search").value;
        part(fresh, "search").dispatchEvent(new Event("input"));
        for (let page = Number(part(old, "where").textContent.split(" ")[1]) || 1; page > 1; page -= 1) part(fresh, "next").click();
      };
      if (fresh.dataset.ready) { apply(); continue; }
      // It is filled when it comes near, which may be later.
      const watcher = new MutationObserver(() => { watcher.disconnect(); apply(); });
      watcher.observe(fresh, { attributes: true, attributeFilter: ["data-ready"] });
    }
  };
  const settled = (page) => sections(page).filter((section) => section.classList.contains("chosen")).every((section) => section.dataset.busy === "false");
  const renew = async (version) => {
    // Not under the reader's hands.
    if (!version || coming || version === current?.version || (current && Date.now() - touched < 3000)) return;
    coming = true;
    const frame = make("iframe", "coming");
    frame.title = "Report of what is finished so far";
    frame.src = `/report?v=${version}`;
    document.body.classList.add("has-report");
    main.append(frame);
    await new Promise((done) => frame.addEventListener("load", done, { once: true }));
    const page = frame.contentDocument;
    await until(() => page.documentElement.dataset.ready, 20000);
    const old = current?.frame.contentDocument;
    if (old) {
      await carryChoices(old, page);
      carryPlace(old, page);
      await pause(200);  // the browser tells the page what is in view
      await until(() => settled(page), 10000);
      carrySamples(old, page);
      carryPlace(old, page);
    }
    for (const event of ["pointerdown", "keydown", "wheel", "input"]) page.addEventListener(event, () => { touched = Date.now(); }, { passive: true, capture: true });
    const focused = document.activeElement === current?.frame;
    frame.className = "";
    current?.frame.remove();
    if (focused) frame.focus();
    current = { frame, version };
    $("alone").hidden = false;
    document.documentElement.dataset.version = String(version);
    coming = false;
  };

  // --- once a second -------------------------------------------------------------------------------------------------
  $("all").addEventListener("toggle", () => { stagesShown = null; });
  const poll = async () => {
    const answer = await fetch("/state", { cache: "no-store" }).catch(() => null);
    if (answer?.ok) {
      // Ages by the clock of the machine that is watched.
      await show(await answer.json(), Date.parse(answer.headers.get("date")) / 1000).catch((error) => console.error(error));
    } else {
      document.documentElement.dataset.state = "lost";
      say($("state"), "not followed");
      $("state").className = "badge contradicted";
      say($("message"), "`aligngap watch` has ended or cannot be reached: what is shown is the last that came.");
      $("message").hidden = false;
    }
    setTimeout(poll, document.hidden ? 5000 : 1000);
  };
  poll();
})();
