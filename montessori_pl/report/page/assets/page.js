"use strict";
// The lists of the page. All texts are set as text: nothing that a model has written becomes HTML.

const RUNS = JSON.parse(document.getElementById("data").textContent);
const PER_PAGE = 5;
// Words of two completions are compared up to this length; the time grows with its square.
const MAX_WORDS = 2000;
// Words, blanks, and each other sign; Chinese and Japanese write no blanks, and each of their characters stands alone.
const WORDS = /(\s+|[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\p{L}\p{M}\p{N}_\s])/u;

/** An element with attributes and children; children that are texts become text nodes. */
function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

/** A text as it was written, in the direction of its own letters. */
function written(text) {
  return element("pre", { dir: "auto" }, text);
}

function number(value) {
  if (value === null || value === undefined) return "unknown";
  const size = Math.abs(value);
  return size !== 0 && (size < 0.001 || size >= 1e5) ? value.toExponential(2) : String(+value.toPrecision(3));
}

function scored(score) {
  if (!score) return "no score";
  return score[1] === null ? number(score[0]) : `${number(score[0])} ± ${number(score[1])}`;
}

function choice(label, options, onChange) {
  const select = element("select", {}, ...options.map(([value, text]) => element("option", { value }, text)));
  select.addEventListener("change", () => onChange(select.value));
  return element("label", {}, label, select);
}

/** Which rows of `rows` are shown, with a search, further controls, and pages. */
function list(place, { rows, total, how, what, show, text, controls = [], keep = () => true, order = (found) => found }) {
  const state = { page: 0, search: "" };
  const search = element("input", { type: "search", placeholder: "search" });
  const count = element("span", { class: "count", role: "status" });
  const back = element("button", { type: "button" }, "previous");
  const on = element("button", { type: "button" }, "next");
  const body = element("div", { class: "rows" });

  function draw() {
    const wanted = state.search.toLowerCase();
    const found = order(rows.filter((row) => keep(row) && (!wanted || text(row).toLowerCase().includes(wanted))));
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    state.page = Math.min(state.page, pages - 1);
    const capped = rows.length < total ? `; this page holds ${rows.length} of ${total}: ${how}` : "";
    count.textContent = `${what}: ${found.length}, page ${state.page + 1} of ${pages}${capped}`;
    back.disabled = state.page === 0;
    on.disabled = state.page === pages - 1;
    body.replaceChildren(...found.slice(state.page * PER_PAGE, (state.page + 1) * PER_PAGE).map(show));
  }

  function turn(by) {
    state.page += by;
    draw();
  }

  search.addEventListener("input", () => { state.search = search.value; state.page = 0; draw(); });
  back.addEventListener("click", () => turn(-1));
  on.addEventListener("click", () => turn(1));
  const redraw = () => { state.page = 0; draw(); };
  const bar = element("div", { class: "controls" }, ...controls.map((make) => make(redraw)),
    element("label", {}, "Search", search), back, on, count);
  place.append(bar, body);
  draw();
}

/** The lists of one kind, one for each stage, of which one is shown at a time. */
function byStage(place, lists, show) {
  const body = element("div");
  const draw = (index) => { body.replaceChildren(); show(body, lists[index]); };
  if (lists.length > 1) {
    const options = lists.map((one, index) => [index, one.stage]);
    place.append(element("div", { class: "controls" }, choice("Stage", options, draw)));
  } else {
    place.append(element("p", { class: "soft" }, lists[0].stage));
  }
  place.append(body);
  draw(0);
}

function cell(title, kind, ...children) {
  return element("div", { class: `cell ${kind}` }, element("h4", {}, title), ...children);
}

function soft(text) {
  return element("p", { class: "soft" }, text);
}

/** The words of one text that are not in its longest common subsequence with another, marked. */
function marked(ours, theirs) {
  const [a, b] = [ours, theirs].map((text) => text.split(WORDS).filter(Boolean));
  if (a.length > MAX_WORDS || b.length > MAX_WORDS) return written(ours);
  const length = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      length[i][j] = a[i] === b[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
    }
  }
  const made = written("");
  for (let i = 0, j = 0; i < a.length;) {
    if (j < b.length && a[i] === b[j]) {
      made.append(a[i]);
      i++; j++;
    } else if (j < b.length && length[i][j + 1] > length[i + 1][j]) {
      j++;
    } else {
      made.append(a[i].trim() ? element("mark", {}, a[i]) : a[i]);
      i++;
    }
  }
  return made;
}

function pairs(place, found) {
  let within = "all", by = "margin";
  // The scores of one student, of which both sides have one with an error.
  const clear = (row) => Object.keys(row.chosen.scores).every((key) => {
    const [good, bad] = [row.chosen.scores[key], row.rejected.scores[key]];
    return good && bad && good[1] !== null && bad[1] !== null && good[0] - bad[0] > 2 * Math.hypot(good[1], bad[1]);
  });
  const side = (row, name, other) => {
    const one = row[name];
    return cell(name, name === "chosen" ? "good" : "bad", marked(one.completion, row[other].completion),
      one.finished ? null : soft("cut at its token limit"),
      one.response ? soft(`response: ${one.response}`) : null,
      ...Object.entries(one.scores).map(([key, score]) => soft(`${key}: ${scored(score)}`)));
  };
  list(place, {
    ...found,
    what: "pairs",
    text: (row) => [row.prompt, row.chosen.completion, row.rejected.completion, row.chosen.response].join("\n"),
    keep: (row) => within === "all" || clear(row) === (within === "clear"),
    order: (rows) => [...rows].sort((a, b) => by === "margin" ? b.margin - a.margin : by === "small"
      ? a.margin - b.margin : b.weight - a.weight),
    controls: [
      (redraw) => choice("Show", [["all", "all pairs"], ["clear", "clear of noise: 2 standard errors, every student"],
        ["noise", "not clear of noise"]], (value) => { within = value; redraw(); }),
      (redraw) => choice("Order", [["margin", "largest margin"], ["small", "smallest margin"],
        ["weight", "largest weight"]], (value) => { by = value; redraw(); }),
    ],
    show: (row) => element("article", { class: "row" },
      element("h4", {}, `margin ${number(row.margin)}, weight ${number(row.weight)}`),
      element("div", { class: "beside" }, side(row, "chosen", "rejected"), side(row, "rejected", "chosen")),
      element("details", {}, element("summary", {}, "prompt and shots"), written(row.prompt),
        row.shots.length ? soft(`seed tasks shown: ${row.shots.join(", ")}`) : null)),
  });
}

function ends(place, found) {
  const side = (one, name) => one === null ? element("div") : cell(`${name}: ${scored(one.score)}`,
    name === "best" ? "good" : "bad", written(one.instruction), one.response ? written(`→ ${one.response}`) : null,
    soft([one.id, one.teacher].filter(Boolean).join(", ")));
  list(place, {
    ...found,
    total: found.rows.length,
    what: `the best and the worst of ${found.total} examples`,
    text: (row) => [row.best, row.worst].map((one) => one ? `${one.instruction}\n${one.response}` : "").join("\n"),
    show: (row) => element("article", { class: "row" },
      element("div", { class: "beside" }, side(row.best, "best"), side(row.worst, "worst"))),
  });
}

function samples(place, found) {
  list(place, {
    ...found,
    what: "evaluations",
    text: (row) => row.samples.join("\n"),
    show: (row) => element("article", { class: "row" }, element("h4", {}, `step ${row.step}`),
      element("div", { class: "beside" }, ...row.samples.map((text) => element("div", { class: "cell" }, written(text))))),
  });
}

function rejections(place, found) {
  let reason = "";
  list(place, {
    ...found,
    what: "samples",
    text: (row) => `${row.reason}\n${row.detail}\n${row.text}`,
    keep: (row) => !reason || row.reason === reason,
    controls: [(redraw) => choice("Reason",
      [["", `all (${found.total})`], ...found.reasons.map(([name, count]) => [name, `${name} (${count})`])],
      (value) => { reason = value; redraw(); })],
    show: (row) => element("article", { class: "row" }, element("h4", {}, row.reason), written(row.text),
      row.detail ? soft(row.detail) : null),
  });
}

function items(place, found) {
  const names = found.columns;
  let from = names[0], to = names[names.length - 1], filter = "all";
  const right = (row, name) => row.answers[name] ? row.answers[name][1] : null;
  const tests = {
    all: () => true,
    worse: (row) => right(row, from) === true && right(row, to) === false,
    better: (row) => right(row, from) === false && right(row, to) === true,
    wrong: (row) => right(row, to) === false,
    cut: (row) => Boolean(row.answers[to] && row.answers[to][2]),
  };
  const answer = (row, name) => {
    const given = row.answers[name];
    if (!given) return cell(name, "", soft("not answered yet"));
    const [text, isRight, cut] = given;
    return cell(`${name}: ${isRight ? "right" : "wrong"}`, isRight ? "good" : "bad",
      text === null ? soft("no room for an answer") : written(text), cut ? soft("cut at its token limit") : null);
  };
  const columns = names.map((name) => [name, name]);
  const toSelect = (redraw) => {
    const made = choice("to", columns, (value) => { to = value; redraw(); });
    made.querySelector("select").value = to;
    return made;
  };
  list(place, {
    ...found,
    what: "items",
    text: (row) => [row.id, row.question || "", row.expected || "",
      ...Object.values(row.answers).map(([text]) => text || "")].join("\n"),
    keep: (row) => tests[filter](row),
    controls: [
      (redraw) => choice("Show", [["all", "all items"], ["worse", "got worse"], ["better", "got better"],
        ["wrong", "wrong at the end"], ["cut", "cut at the end"]], (value) => { filter = value; redraw(); }),
      (redraw) => choice("from", columns, (value) => { from = value; redraw(); }),
      toSelect,
    ],
    show: (row) => element("article", { class: "row" },
      row.question === undefined ? element("h4", {}, `item ${row.id}`) : written(row.question),
      row.expected === undefined ? null : soft(`expected: ${row.expected}`),
      element("div", { class: "beside" }, ...names.map((name) => answer(row, name)))),
  });
}

const KINDS = {
  items: (place, found) => items(place, found),
  pairs: (place, found) => byStage(place, found, pairs),
  scored: (place, found) => byStage(place, found, ends),
  samples: (place, found) => byStage(place, found, samples),
  rejections: (place, found) => byStage(place, found, rejections),
};

for (const place of document.querySelectorAll("[data-list]")) {
  KINDS[place.dataset.list](place, RUNS[Number(place.dataset.run)][place.dataset.list]);
}

const chooser = document.getElementById("run");
if (chooser) {
  const sections = document.querySelectorAll(".run");
  const choose = () => sections.forEach((section, index) => { section.hidden = String(index) !== chooser.value; });
  chooser.addEventListener("change", choose);
  choose();
}
