"use strict";
// The trajectory viewer. Model output reaches the page through textContent alone, never as markup.
(() => {
  const source = document.getElementById("trajectories-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const list = document.getElementById("responses");
  const view = document.getElementById("trajectory");
  const status = document.getElementById("shown");
  const filters = document.getElementById("filters");
  let shown = [];
  let selected = -1;
  let unfolded = false;

  const make = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "class") element.className = value;
      else element.setAttribute(name, value);
    }
    for (const child of children) {
      if (child !== null && child !== undefined) element.append(child);
    }
    return element;
  };
  const known = (value) => value !== null && value !== undefined;
  const fixed = (value, digits) => (known(value) ? value.toFixed(digits).replace("-", "−") : "–");
  const signed = (value) => {
    if (!known(value)) return "–";
    const text = Math.abs(value).toFixed(2);
    if (text === "0.00") return "0.00";
    return (value > 0 ? "▲ +" : "▼ −") + text;
  };
  const side = (value) => (known(value) && Math.abs(value) >= 0.005 ? (value > 0 ? "plus" : "minus") : "");
  const tint = (element, value) => {
    const strength = known(value) ? Math.min(1, Math.abs(value) / 0.5) : 0;
    if (side(value)) element.classList.add(side(value));
    element.style.setProperty("--a", (0.07 + 0.48 * strength).toFixed(3));
    return element;
  };
  // A trailing line break belongs to the step; it is drawn as a mark, since it would not be seen.
  const words = (element, text) => {
    const body = text.replace(/\n+$/, "");
    element.append(body);
    const breaks = text.length - body.length;
    if (breaks) element.append(make("span", { class: "eol", "aria-hidden": "true" }, "↵".repeat(breaks)));
    return element;
  };
  const outcome = (t) => {
    if (!t.finished) return "✗ cut off";
    const part = t.reward > 0 && t.reward < 1 ? ", reward " + t.reward.toFixed(2) : "";
    return (t.correct ? "✓ correct" : "✗ wrong") + part;
  };

  const candidates = (step) => {
    const head = make("tr", {});
    for (const name of ["candidate step", "sampled", "right", "V", "Q", "Â", "log π before", "after", "change"]) {
      head.append(make("th", { scope: "col" }, name));
    }
    const body = make("tbody", {});
    for (const c of step.candidates) {
      const change = known(c.before) && known(c.after) ? c.after - c.before : null;
      const text = words(make("td", {}), c.text);
      if (c.own) text.append(make("span", { class: "tag" }, "taken here"));
      if (c.terminal) text.append(make("span", { class: "tag" }, "last step"));
      body.append(
        make("tr", { class: c.own ? "own" : "" },
          text,
          make("td", {}, "×" + c.count),
          make("td", { title: "right ones of the sampled continuations through this step" }, c.n ? c.right + " of " + c.n : "–"),
          make("td", {}, fixed(c.value, 3)),
          make("td", {}, fixed(c.q, 3)),
          tint(make("td", {}, signed(c.advantage)), c.advantage),
          make("td", {}, fixed(c.before, 2)),
          make("td", {}, fixed(c.after, 2)),
          make("td", {}, known(change) ? signed(change) : "–")));
    }
    const caption = make("caption", { class: "unseen" }, "Candidate steps of this state");
    return make("div", { class: "scroll" }, make("table", {}, caption, make("thead", {}, head), body));
  };

  const stepItem = (step, index) => {
    const value = make("div", { class: "value" });
    value.append(make("span", { class: "unseen" }, "value before step " + (index + 1) + ": "), fixed(step.value, 2));
    if (known(step.value)) {
      const meter = make("span", { class: "meter", "aria-hidden": "true" }, make("i", {}));
      meter.firstChild.style.width = 100 * step.value + "%";
      if (known(step.mc)) {
        const tick = make("u", {});
        tick.style.left = 100 * step.mc + "%";
        meter.append(tick);
      }
      value.append(meter);
    }
    if (known(step.mc)) {
      value.title = "V " + fixed(step.value, 3) + "; " + step.right + " of " + step.completions + " completions correct";
      value.append(make("span", { class: "unseen" }, "; " + step.right + " of " + step.completions + " completions correct"));
    }
    const text = tint(words(make("p", { class: "text" }), step.text), step.advantage);
    const advantage = make("div", { class: "advantage " + side(step.advantage) },
      make("span", { class: "unseen" }, "advantage "), signed(step.advantage));
    const item = make("li", {}, make("div", { class: "row" }, value, text, advantage));
    if (step.candidates.length) {
      const pieces = [step.candidates.length + (step.candidates.length === 1 ? " candidate" : " candidates")];
      if (known(step.gap)) pieces.push("gap " + fixed(step.gap, 2));
      if (known(step.kept)) pieces.push(step.kept ? "trained on" : "not trained on");
      if (!step.sampled && known(step.advantage)) pieces.push("this step was not among them; its Q is V where it leads");
      const details = make("details", {}, make("summary", {}, pieces.join(" · ")), candidates(step));
      details.open = unfolded;
      item.append(details);
    } else if (!known(step.mc)) {
      item.append(make("details", {}, make("summary", {}, "no completions from here")));
    }
    return item;
  };

  const path = (t) => {
    const space = "http://www.w3.org/2000/svg";
    const draw = (tag, attributes) => {
      const element = document.createElementNS(space, tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      return element;
    };
    const points = [];
    t.steps.forEach((step, i) => { if (known(step.value)) points.push([i, step.value]); });
    if (points.length < 2) return null;
    points.push([t.steps.length, t.reward]);
    const width = 640, height = 74, left = 26, right = 8;
    const x = (i) => left + (i / t.steps.length) * (width - left - right);
    const y = (v) => 8 + (1 - v) * (height - 16);
    const svg = draw("svg", { class: "path", viewBox: `0 0 ${width} ${height}`, role: "img" });
    svg.setAttribute("aria-label", "Value along the response, from " + fixed(points[0][1], 2) + " to the reward " + points.at(-1)[1]);
    for (const level of [0, 1]) {
      svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(level), y2: y(level) }));
      const label = draw("text", { class: "tick", x: left - 7, y: y(level) + 4, "text-anchor": "end" });
      label.textContent = level;
      svg.append(label);
    }
    svg.append(draw("path", { class: "line", d: "M" + points.map(([i, v]) => x(i) + "," + y(v)).join("L") }));
    points.forEach(([i, v], n) => {
      const after = n ? t.steps[points[n - 1][0]].advantage : null;
      const tone = side(after) === "plus" ? "good" : side(after) === "minus" ? "bad" : "dim";
      svg.append(draw("circle", { class: "dot " + tone, cx: x(i), cy: y(v), r: 5 }));
    });
    return svg;
  };

  const show = (t, move) => {
    view.replaceChildren();
    if (!t) {
      view.append(make("p", { class: "empty" }, "No response matches the filters."));
      return;
    }
    const button = make("button", { type: "button", class: "unfold" }, unfolded ? "Fold all" : "Unfold all candidates");
    button.addEventListener("click", () => { unfolded = !unfolded; show(t, false); view.querySelector(".unfold").focus(); });
    view.append(
      make("h3", {}, "Problem " + t.problem),
      make("p", { class: "prompt" }, t.prompt),
      make("p", { class: "facts" },
        make("span", { class: "badge " + (t.correct ? "yes" : "no") }, outcome(t)),
        make("span", {}, "expected answer ", make("b", {}, t.answer || "–")),
        make("span", {}, "solved by ", make("b", {}, t.solved + " of " + t.sampled), " samples"),
        make("span", {}, "iteration ", make("b", {}, String(t.iteration))),
        button));
    const curve = path(t);
    if (curve) view.append(curve);
    const head = make("div", { class: "row head", "aria-hidden": "true" },
      make("span", {}, "V"), make("span", {}, "step"), make("span", {}, "Â"));
    const steps = make("ol", { class: "steps" });
    t.steps.forEach((step, i) => steps.append(stepItem(step, i)));
    view.append(head, steps);
    if (move) view.scrollTop = 0;
  };

  const select = (position, focus) => {
    selected = shown.length ? Math.max(0, Math.min(shown.length - 1, position)) : -1;
    [...list.children].forEach((item, i) => item.setAttribute("aria-selected", String(i === selected)));
    const item = list.children[selected];
    if (item) {
      list.setAttribute("aria-activedescendant", item.id);
      if (focus) item.scrollIntoView({ block: "nearest" });
    } else list.removeAttribute("aria-activedescendant");
    show(shown[selected], true);
  };

  const matches = (t) => {
    const wanted = filters.elements.outcome.value;
    const iteration = filters.elements.iteration ? filters.elements.iteration.value : "";
    const query = filters.elements.search.value.trim().toLowerCase();
    if (wanted && (wanted === "correct") !== t.correct) return false;
    if (iteration && String(t.iteration) !== iteration) return false;
    if (!query) return true;
    const text = [t.problem, t.prompt, t.answer, ...t.steps.map((s) => s.text)].join("\n").toLowerCase();
    return text.includes(query);
  };

  const refresh = () => {
    shown = data.filter(matches);
    list.replaceChildren(...shown.map((t, i) => {
      const largest = Math.max(0, ...t.steps.map((s) => s.gap || 0));
      const item = make("li", { role: "option", id: "response-" + i, "aria-selected": "false" },
        make("span", { class: "what" }, t.prompt.replace(/\s+/g, " ").slice(0, 80)),
        make("span", { class: "which" },
          make("span", { class: "badge " + (t.correct ? "yes" : "no") }, outcome(t)),
          make("span", {}, (largest ? "gap " + largest.toFixed(2) + " · " : "") + "iter " + t.iteration)));
      item.addEventListener("click", () => select(i, false));
      return item;
    }));
    status.textContent = shown.length + " of " + data.length + " responses";
    select(0, false);
  };

  list.addEventListener("keydown", (event) => {
    const moves = { ArrowDown: selected + 1, ArrowUp: selected - 1, Home: 0, End: shown.length - 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    select(moves[event.key], true);
  });
  // Arrow keys also walk from one step's candidates to the next.
  view.addEventListener("keydown", (event) => {
    if (event.target.tagName !== "SUMMARY" || !["ArrowDown", "ArrowUp"].includes(event.key)) return;
    const all = [...view.querySelectorAll("summary")];
    const next = all[all.indexOf(event.target) + (event.key === "ArrowDown" ? 1 : -1)];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
  filters.addEventListener("input", refresh);
  filters.addEventListener("submit", (event) => event.preventDefault());
  refresh();
})();
