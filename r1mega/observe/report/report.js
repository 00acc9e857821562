"use strict";
(() => {
  const $ = (id) => document.getElementById(id);

  // Colours: as the system has them, light, dark; remembered where the browser allows it for this page.
  const root = document.documentElement, theme = $("theme"), themes = ["automatic", "light", "dark"];
  const remembered = () => { try { return localStorage.getItem("r1mega-theme"); } catch { return null; } };
  const setTheme = (name) => {
    if (name === "automatic") delete root.dataset.theme; else root.dataset.theme = name;
    theme.textContent = `◐ ${name}`;
    theme.setAttribute("aria-label", `Colours: ${name}`);
    try { localStorage.setItem("r1mega-theme", name); } catch { /* a file:// page may have no storage: the choice lasts until it is closed */ }
  };
  setTheme(themes.includes(remembered()) ? remembered() : "automatic");
  theme.hidden = false;
  theme.addEventListener("click", () => setTheme(themes[(themes.indexOf(root.dataset.theme ?? "automatic") + 1) % 3]));

  // Charts: the values nearest to the pointer, or to the arrow keys' place.
  const tip = $("tip"), left = 50, right = 368, top = 10, bottom = 172; // the plot's frame in the drawing, as charts.py has it
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (xs[middle] < x) low = middle; else high = middle; }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  };
  const show = (svg, x) => {
    const lines = svg.lines ??= JSON.parse(svg.dataset.lines);
    const picked = lines.map((line) => nearest(line.x, x));
    const at = lines.map((line, i) => line.x[picked[i]]).reduce((a, b) => (Math.abs(a - x) <= Math.abs(b - x) ? a : b));
    svg.at = at;
    tip.textContent = [`step ${at.toLocaleString("en")}`, ...lines.map((line, i) => `${lines.length > 1 ? line.n + "  " : ""}${line.y[picked[i]]}` +
      (line.x[picked[i]] === at ? "" : `  (step ${line.x[picked[i]]})`))].join("\n");
    tip.hidden = false;
    const [x0, x1] = [Number(svg.dataset.x0), Number(svg.dataset.x1)], px = left + (at - x0) / (x1 - x0) * (right - left);
    svg.querySelector(".cursor").setAttribute("d", `M${px} ${top}V${bottom}`);
    const box = svg.getBoundingClientRect(), place = box.left + px / 380 * box.width;
    tip.style.left = `${Math.max(4, Math.min(place + 12, innerWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(4, box.top - tip.offsetHeight - 2 < 50 ? box.top + 12 : box.top - tip.offsetHeight - 2)}px`;
  };
  const hide = (svg) => { tip.hidden = true; svg.querySelector(".cursor").setAttribute("d", ""); };
  for (const svg of document.querySelectorAll(".chart svg")) {
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), x0 = Number(svg.dataset.x0), x1 = Number(svg.dataset.x1);
      show(svg, x0 + ((event.clientX - box.left) / box.width * 380 - left) / (right - left) * (x1 - x0));
    });
    svg.addEventListener("pointerleave", () => hide(svg));
    svg.addEventListener("blur", () => hide(svg));
    svg.addEventListener("keydown", (event) => {
      const turn = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (event.key === "Escape") hide(svg);
      if (turn === undefined) return;
      event.preventDefault();
      const xs = (svg.lines ??= JSON.parse(svg.dataset.lines))[0].x;
      const from = svg.at === undefined ? (turn > 0 ? -1 : xs.length) : nearest(xs, svg.at);
      show(svg, xs[Math.max(0, Math.min(xs.length - 1, from + turn))]);
    });
  }

  // Rollouts: filtered, and a page of prompts at a time.
  const form = $("filters"), more = $("more"), page = 20;
  if (form) {
    const prompts = [...document.querySelectorAll(".prompt")].map((block) => ({
      block, text: block.textContent.toLowerCase(), samples: [...block.querySelectorAll(".sample")], columns: [...block.querySelectorAll(".column")],
    }));
    let most = page;
    const apply = () => {
      const field = (name) => form.elements[name].value.trim(), least = (name, otherwise) => (field(name) === "" ? otherwise : Number(field(name)));
      const stage = field("stage"), text = field("text").toLowerCase(), shared = form.elements.shared.checked;
      const steps = [least("step_from", -Infinity), least("step_to", Infinity)], rewards = [least("reward_from", -Infinity), least("reward_to", Infinity)];
      const byReward = field("reward_from") !== "" || field("reward_to") !== "";
      let found = 0, samples = 0;
      for (const prompt of prompts) {
        let kept = 0;
        const whole = (!text || prompt.text.includes(text)) && (!shared || Number(prompt.block.dataset.stages) > 1);
        for (const sample of prompt.samples) {
          const { step, reward } = sample.dataset;
          const fits = whole && (!stage || sample.dataset.stage === stage) && Number(step) >= steps[0] && Number(step) <= steps[1] &&
            (!byReward || (reward !== undefined && Number(reward) >= rewards[0] && Number(reward) <= rewards[1]));
          sample.hidden = !fits;
          kept += fits;
        }
        for (const column of prompt.columns) column.hidden = !column.querySelector(".sample:not([hidden])");
        found += kept > 0;
        samples += kept;
        prompt.block.hidden = kept === 0 || found > most;
      }
      $("found").textContent = `${samples.toLocaleString("en")} samples of ${found.toLocaleString("en")} prompts`;
      more.hidden = found <= most;
      more.textContent = `Show more prompts (${Math.max(0, found - most)} left)`;
    };
    form.hidden = false;
    form.addEventListener("input", () => { most = page; apply(); });
    form.addEventListener("reset", () => setTimeout(() => { most = page; apply(); }));
    form.addEventListener("submit", (event) => event.preventDefault());
    more.addEventListener("click", () => {
      const next = prompts.filter((prompt) => prompt.block.hidden)[0];
      most += page;
      apply();
      next?.block.querySelector("summary").focus();
    });
    apply();
  }

  // On paper everything is open that is not a transcript.
  addEventListener("beforeprint", () => { for (const one of document.querySelectorAll("details:not(.prompt)")) one.open = true; });
})();
