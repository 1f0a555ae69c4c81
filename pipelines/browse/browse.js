"use strict";
// All text from files, models and people is set by textContent: nothing here parses HTML.

const PAGE_CLIPS = 50;
const EXACT_AFTER_MS = 500;
const RUN_INTERVAL_MS = 15000;
const SPEEDS = [1, 2, 4];
const KEYS = {
  browse: [
    ["j  k", "next, previous clip"],
    ["Space", "play, pause"],
    ["1 … 5", "jump to a segment"],
    [", .", "slower, faster"],
    ["f", "flag, or withdraw the flag"],
    ["e", "edit the captions"],
    ["Ctrl Enter", "save"],
    ["Esc", "cancel, or back to the list"],
    ["/", "search"],
    ["c  p", "clips, policy"],
    ["?", "these keys"],
  ],
  audit: [
    ["g", "good"],
    ["b", "bad"],
    ["u", "remove the mark"],
    ["j  k", "next, previous clip"],
    ["Space", "play, pause"],
    ["1 … 5", "jump to a segment"],
    [", .", "slower, faster"],
    ["r", "results"],
    ["?", "these keys"],
  ],
};

const $ = (id) => document.getElementById(id);
const state = {
  info: null,
  view: "clips",
  query: { sort: "clip_id", descending: false, ranges: {} },
  offset: 0,
  total: 0,
  rows: [],
  chosen: null,
  clip: null,
  editing: false,
  policy: {},
  previewed: null,
  audit: { clips: [], at: 0 },
  speed: 1,
};

// ---- building elements ----

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const button = (text, action, more = {}, key = null) =>
  el(
    "button",
    { type: "button", onclick: action, "aria-keyshortcuts": key, ...more },
    text,
    key ? el("kbd", { "aria-hidden": "true" }, key) : null,
  );
const options = (select, pairs, chosen) => {
  select.replaceChildren(...pairs.map(([value, text]) => el("option", { value }, text)));
  select.value = chosen ?? pairs[0]?.[0] ?? "";
};
const figure = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));
const pill = (kind, text = kind) => el("span", { class: `pill ${kind}` }, text);
const prose = (text) => el("bdi", { dir: "auto" }, text);
const thousands = (n) => n.toLocaleString("en").replaceAll(",", "\u2009");
const seconds = (s) => `${s.toFixed(1)} s`;
const fileName = (video) => video.split("/").pop() || video;
const hoursText = (h) =>
  h >= 1
    ? `${h.toFixed(1)} h`
    : h >= 1 / 60
      ? `${(h * 60).toFixed(1)} min`
      : `${(h * 3600).toFixed(0)} s`;

function valueText(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (value !== 0 && Math.abs(value) < 1e-4) return "≈0";
  return Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}

function ruleText(rule) {
  if (!rule) return "";
  if ("is" in rule) return `is ${rule.is}`;
  if ("in" in rule) return rule.in.join(" or ");
  if (rule.min !== undefined && rule.max !== undefined) return `${rule.min} to ${rule.max}`;
  return rule.min !== undefined ? `≥ ${rule.min}` : `≤ ${rule.max}`;
}

let toastTimer = 0;
function toast(text) {
  $("status").textContent = text;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => {
    $("status").textContent = "";
  }, 4000);
}

function showError(error) {
  $("alert").textContent = error ? error.message : "";
  $("alert").hidden = !error;
}

// ---- requests ----

const address = new URL(location.href);
const token = address.searchParams.get("token") || sessionStorage.getItem("token") || "";
if (address.searchParams.has("token")) {
  sessionStorage.setItem("token", token); // of this port alone, and of this tab
  address.searchParams.delete("token");
  history.replaceState(null, "", address);
}

async function ask(path, body, signal) {
  const request = { headers: { "X-Longtake-Token": token }, signal };
  if (body !== undefined) {
    request.method = "POST";
    request.headers["Content-Type"] = "application/json";
    request.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the command that serves this page has ended; start it again");
  }
  const found = await answer.json().catch((error) => {
    if (error.name === "AbortError") throw error; // after the headers had come
    return { error: `error ${answer.status}` };
  });
  if (!answer.ok) throw Object.assign(new Error(found.error), { status: answer.status });
  return found;
}

const shownVideo = () => document.querySelector(`#view-${state.view} video`);
const withToken = (path) => `${path}?token=${encodeURIComponent(token)}`;
const frameUrl = (clipId, i) => withToken(`/frames/${encodeURIComponent(clipId)}/${i}`);

async function guarded(work) {
  try {
    const found = await work();
    showError(null);
    return found;
  } catch (error) {
    if (error.name !== "AbortError") showError(error);
    return null;
  }
}

async function checkRun() {
  const found = await ask("/api/run").catch(() => ({ running: null }));
  $("banner").hidden = !found.running;
  $("banner").textContent = found.running
    ? `A run is writing to this output: reviews can't be saved until it ends. ${found.running}`
    : "";
}

async function saveReview(review, done) {
  const reviewer = $("reviewer").value.trim();
  if (!reviewer) {
    showError(new Error("Enter your name first: it is stored with each review."));
    $("reviewer").focus();
    return false;
  }
  const written = await guarded(() => ask("/api/reviews", { ...review, reviewer }));
  if (written) toast(done);
  else checkRun();
  return written !== null;
}

// ---- views ----

function show(view) {
  state.view = view;
  for (const section of document.querySelectorAll("main > section"))
    section.hidden = section.id !== `view-${view}`;
  for (const tab of document.querySelectorAll("nav [data-view]")) {
    if (tab.dataset.view === view) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  for (const video of document.querySelectorAll("video")) video.pause();
  showError(null);
  if (view === "policy" && !$("rules").children.length) drawRules();
  if (view === "policy" && !$("funnel").children.length) preview();
  if (view === "compare") drawComparison();
  if (view === "results") drawResults();
}

// ---- the list ----

function fillFilters() {
  const info = state.info;
  const counted = (entries) => entries.map(([name, n]) => [name, `${name} (${thousands(n)})`]);
  options($("filter-status"), [["", "all"], ...counted(Object.entries(info.statuses))], "");
  const rules = Object.entries(info.rules).sort((a, b) => b[1] - a[1]);
  options($("filter-rule"), [["", "any"], ...rules.map(([name]) => [name, name])], "");
  options(
    $("sort"),
    info.sorted_by.map((name) => [name, name]),
    "clip_id",
  );
  const measured = info.scores
    .filter((score) => score.measured)
    .map((score) => [score.name, score.name]);
  options($("range-score"), measured);
}

function readFilters() {
  const query = state.query;
  query.text = $("text").value.trim() || undefined;
  query.status = $("filter-status").value ? [$("filter-status").value] : undefined;
  query.rule = $("filter-rule").value || undefined;
  query.sort = $("sort").value;
  query.flagged = $("only-flagged").checked || undefined;
  query.corrected = $("only-corrected").checked || undefined;
  drawChips();
  return loadClips(0);
}

function drawChips() {
  const query = state.query;
  const chip = (text, of, name) => {
    const remove = () => {
      delete of[name];
      drawChips();
      loadClips(0);
    };
    return el(
      "li",
      {},
      button(`${text}  ×`, remove, { "aria-label": `Remove the filter ${text}` }),
    );
  };
  const chips = Object.entries(query.ranges).map(([name, [low, high]]) => {
    const rule = { ...(low !== null && { min: low }), ...(high !== null && { max: high }) };
    return chip(`${name} ${ruleText(rule)}`, query.ranges, name);
  });
  if (query.preview) chips.push(chip(`${query.preview.change} by the policy`, query, "preview"));
  if (query.change) chips.push(chip(`${query.change} against the other output`, query, "change"));
  $("chips").replaceChildren(...chips);
}

let listRequest = null;
async function loadClips(offset, choose = true) {
  listRequest?.abort();
  listRequest = new AbortController();
  const found = await guarded(() =>
    ask("/api/clips", { ...state.query, offset, limit: PAGE_CLIPS }, listRequest.signal),
  );
  if (!found) return;
  Object.assign(state, { offset, total: found.total, rows: found.rows });
  drawList();
  if (choose && state.rows.length && !state.rows.some((row) => row.clip_id === state.chosen))
    chooseClip(0, false);
  if (!state.rows.length)
    $("clip").replaceChildren(el("p", { class: "empty" }, "No clip passes these filters."));
}

const thumbnail = (row) =>
  row.has_frame
    ? el("img", { src: frameUrl(row.clip_id, 0), alt: "", loading: "lazy", width: 160, height: 90 })
    : el("span", { class: "no-frame" });

function drawList() {
  const { rows, offset, total } = state;
  const by = state.query.sort;
  const last = offset + rows.length;
  $("count").textContent = total
    ? `${thousands(offset + 1)}–${thousands(last)} of ${thousands(total)} clips`
    : "0 clips";
  $("previous").disabled = offset === 0;
  $("next").disabled = last >= total;
  $("rows").replaceChildren(
    ...rows.map((row, i) => {
      const isScore = by in row && !["clip_id", "video", "status", "rule", "start_s"].includes(by);
      const second = row.status === "kept" ? row.caption || "no caption yet" : row.reason || "";
      const facts = isScore ? `${by} ${valueText(row[by])}` : seconds(row.duration_s);
      return el(
        "li",
        {},
        el(
          "button",
          {
            type: "button",
            onclick: () => chooseClip(i, false, true),
            "aria-current": row.clip_id === state.chosen && "true",
          },
          thumbnail(row),
          el(
            "span",
            { class: "text" },
            el("span", { class: "file" }, el("bdi", {}, fileName(row.video)), pill(row.status)),
            el(
              "span",
              { class: "line" },
              facts,
              row.flag !== null ? el("span", { class: "flag" }, " · flagged") : null,
              row.is_corrected ? " · corrected" : null,
            ),
            el("span", { class: "line" }, prose(second)),
          ),
        ),
      );
    }),
  );
}

async function chooseClip(i, focus, opens = false) {
  const row = state.rows[i];
  if (!row) return;
  state.chosen = row.clip_id;
  state.editing = false;
  const buttons = [...$("rows").querySelectorAll("button")];
  buttons.forEach((item, k) =>
    k === i ? item.setAttribute("aria-current", "true") : item.removeAttribute("aria-current"),
  );
  buttons[i]?.scrollIntoView({ block: "nearest" });
  if (focus) buttons[i]?.focus({ preventScroll: true });
  if (opens) document.body.classList.add("shows-clip");
  const clip = await guarded(() => ask(`/api/clips/${encodeURIComponent(row.clip_id)}`));
  if (clip && state.chosen === row.clip_id) {
    state.clip = clip;
    drawClip();
  }
}

async function step(by) {
  if (state.view === "audit") return goTo(state.audit.at + by);
  const at = state.rows.findIndex((row) => row.clip_id === state.chosen) + by;
  if (at >= 0 && at < state.rows.length)
    return chooseClip(
      at,
      document.activeElement?.closest("#rows") !== null || document.activeElement === document.body,
    );
  const offset = state.offset + by * PAGE_CLIPS;
  if (offset < 0 || offset >= state.total) return null;
  await loadClips(offset, false);
  return chooseClip(by > 0 ? 0 : state.rows.length - 1, true);
}

// ---- one clip ----

function player(clip) {
  if (clip.media.error) return el("div", { class: "player" }, el("p", {}, clip.media.error));
  const start = clip.media.start_s;
  const isAudit = state.view === "audit"; // the controls would show the length of the source
  const video = el("video", {
    controls: !isAudit,
    preload: "metadata",
    playsinline: true,
    "aria-label": "The clip",
  });
  video.muted = isAudit;
  if (isAudit) video.addEventListener("click", togglePlay);
  video.src =
    withToken(`/media/${encodeURIComponent(clip.clip_id)}`) + (start ? `#t=${start}` : "");
  video.playbackRate = state.speed;
  const note = el("p", { hidden: true });
  video.addEventListener("error", () => {
    note.hidden = false;
    note.textContent =
      "This browser can't play the video's codec; the key frames below are of the clip.";
  });
  video.addEventListener("loadedmetadata", () => {
    video.playbackRate = state.speed;
    if (start) video.currentTime = start;
  });
  video.addEventListener("timeupdate", () => {
    const at = video.currentTime - start;
    drawTime(clip, at);
    if (at >= clip.media.length_s && !video.paused && !video.ended) {
      video.pause();
      video.currentTime = start;
    }
  });
  return el("div", { class: "player" }, video, note);
}

function drawTime(clip, at_s) {
  const share = Math.min(1, Math.max(0, at_s / (clip.media.length_s || clip.duration_s)));
  const head = document.querySelector(`#view-${state.view} .playhead span`);
  if (head) head.style.width = `${100 * share}%`;
  clip.segments.forEach((segment, i) => {
    const item = document.querySelector(`#view-${state.view} [data-segment="${i}"]`);
    const now = at_s >= segment.start_s && at_s < segment.end_s;
    if (now) item?.setAttribute("aria-current", "true");
    else item?.removeAttribute("aria-current");
  });
}

function jump(i) {
  const video = shownVideo();
  const clip = state.clip;
  if (!video || !clip?.segments[i]) return;
  video.currentTime = clip.media.start_s + clip.segments[i].start_s + 0.01;
  drawTime(clip, clip.segments[i].start_s + 0.01);
}

function timeLine(clip, textOf) {
  const items = clip.segments.map((segment, i) => {
    const span = `${segment.start_s.toFixed(1)} to ${segment.end_s.toFixed(1)} s`;
    const image = segment.has_frame
      ? el("img", {
          src: frameUrl(clip.clip_id, i),
          alt: `Key frame of segment ${i + 1}`,
          width: 320,
          height: 180,
        })
      : el("span", { class: "no-frame" });
    return el(
      "li",
      {},
      el(
        "button",
        {
          type: "button",
          "data-segment": i,
          onclick: () => jump(i),
          "aria-label": `Play segment ${i + 1}, ${span}`,
        },
        image,
        el("span", { class: "time" }, span),
      ),
      textOf(i),
    );
  });
  return el(
    "div",
    { class: "line-of-time" },
    el("div", { class: "playhead", "aria-hidden": "true" }, el("span")),
    el("ol", { class: "segments" }, ...items),
  );
}

function drawClip() {
  const clip = state.clip;
  const row = state.rows.find((one) => one.clip_id === clip.clip_id);
  const where = [
    `${clip.start_s.toFixed(2)} to ${clip.end_s.toFixed(2)} s`,
    `${clip.width} × ${clip.height}`,
    `${valueText(clip.fps)} fps`,
    clip.split,
    clip.shard,
  ];
  const reasons = clip.reasons.map((reason) => el("li", {}, `✕ ${reason}`));
  const parts = [
    button(
      "‹ List",
      () => {
        document.body.classList.remove("shows-clip");
      },
      { class: "back" },
    ),
    el(
      "header",
      { class: "clip-head" },
      el("h2", {}, el("bdi", {}, fileName(clip.video))),
      pill(clip.status),
      el(
        "p",
        { class: "quiet" },
        where.filter(Boolean).join(" · "),
        " · ",
        el("code", {}, clip.clip_id),
      ),
    ),
    reasons.length
      ? el("ul", { class: "reasons", "aria-label": "Reasons against it" }, ...reasons)
      : null,
    player(clip),
    ...(state.editing ? [captionForm(clip)] : clipTexts(clip)),
    clip.other !== undefined ? otherClip(clip) : null,
    scoreList(clip),
  ];
  $("clip").replaceChildren(...parts.filter(Boolean));
  if (row) row.flag = clip.flag ? clip.flag.value : null;
  $("clip").scrollTop = 0;
}

function clipTexts(clip) {
  const hasText = clip.captions.length > 0;
  const text = (i) => (clip.captions[i] ? el("p", {}, prose(clip.captions[i])) : null);
  const reason = el("input", {
    id: "flag-reason",
    placeholder: "reason, if you like",
    maxlength: 200,
    "aria-label": "Reason of the flag",
  });
  reason.value = clip.flag?.value || "";
  reason.addEventListener("keydown", (event) => {
    if (event.key === "Enter") flag(true);
  });
  return [
    el("div", { class: hasText ? "" : "without-text" }, timeLine(clip, text)),
    el(
      "p",
      { class: "caption" },
      clip.captioner ? pill("plain", clip.captioner) : null,
      clip.caption ? " " : null,
      prose(clip.caption || (hasText ? "" : "This clip has no captions.")),
    ),
    el(
      "div",
      { class: "actions" },
      button(
        clip.flag ? "Withdraw the flag" : "Flag",
        () => flag(!state.clip.flag),
        { id: "flag", "aria-pressed": String(Boolean(clip.flag)) },
        "f",
      ),
      clip.flag?.reviewer
        ? el(
            "span",
            { class: "flag" },
            `flagged by ${clip.flag.reviewer}${clip.flag.value ? `: ${clip.flag.value}` : ""}`,
          )
        : reason,
      hasText ? button("Edit the captions", edit, { id: "edit" }, "e") : null,
    ),
  ];
}

function scoreList(clip) {
  const policy = state.info.policy;
  const failing = new Set(
    clip.reasons.map((text) => (/^\S+ s [<>]/.test(text) ? "duration_s" : text.split(" ")[0])),
  );
  const line = (score) =>
    el(
      "div",
      { class: failing.has(score.name) ? "fails" : "" },
      el("dt", {}, score.name),
      el(
        "dd",
        {},
        score.value === null
          ? el("span", { title: score.why || "" }, "not measured")
          : valueText(score.value),
      ),
      el("dd", { class: "range" }, ruleText(policy[score.name])),
    );
  const within = clip.scores.filter((score) => policy[score.name]);
  const others = clip.scores.filter((score) => !policy[score.name]);
  return el(
    "div",
    {},
    el("h3", {}, "Scores and the policy's ranges"),
    el("dl", { class: "scores" }, ...within.map(line)),
    el(
      "details",
      {},
      el("summary", {}, "Scores that are in no rule"),
      el("dl", { class: "scores" }, ...others.map(line)),
    ),
  );
}

function otherClip(clip) {
  const other = clip.other;
  if (!other)
    return el(
      "div",
      { class: "other" },
      el("h3", {}, "In the other output"),
      el("p", {}, "It has no such clip."),
    );
  const equal =
    other.caption === clip.caption &&
    JSON.stringify(other.captions) === JSON.stringify(clip.captions);
  return el(
    "div",
    { class: "other" },
    el("h3", {}, "In the other output ", pill(other.status), other.rule ? ` ${other.rule}` : ""),
    equal
      ? el("p", { class: "quiet" }, "The same captions.")
      : el("p", {}, prose(other.caption || "no captions")),
    equal
      ? null
      : el("ol", {}, ...other.captions.map((text) => el("li", { class: "quiet" }, prose(text)))),
  );
}

async function flag(on) {
  const clip = state.clip;
  if (!clip || state.view !== "clips") return;
  const value = on ? ($("flag-reason")?.value.trim() ?? "") : null;
  if (
    !(await saveReview(
      { clip_id: clip.clip_id, kind: "flag", value },
      on ? "Flag saved" : "Flag withdrawn",
    ))
  )
    return;
  clip.flag = on ? { value, reviewer: $("reviewer").value.trim() } : null;
  redraw(clip);
  $("flag")?.focus();
}

function redraw(clip) {
  const video = $("clip").querySelector("video");
  const at = video?.currentTime;
  drawClip();
  if (at)
    $("clip")
      .querySelector("video")
      ?.addEventListener(
        "loadedmetadata",
        (event) => {
          event.target.currentTime = at;
        },
        { once: true },
      );
  const row = state.rows.find((one) => one.clip_id === clip.clip_id);
  if (row) Object.assign(row, { is_corrected: clip.is_corrected, caption: clip.caption });
  drawList();
}

function edit() {
  if (!state.clip?.captions.length || state.view !== "clips") return;
  state.editing = true;
  redraw(state.clip);
  $("edit-0")?.focus();
}

function stopEditing() {
  state.editing = false;
  redraw(state.clip);
  $("edit")?.focus();
}

function captionForm(clip) {
  const area = (i, text, label) => {
    const node = el("textarea", {
      id: `edit-${i}`,
      "aria-label": label,
      maxlength: 4000,
      dir: "auto",
    });
    node.value = text;
    return node;
  };
  return el(
    "form",
    {
      class: "edit line-of-time",
      onsubmit: (event) => {
        event.preventDefault();
        saveCaptions();
      },
    },
    timeLine(clip, (i) => area(i, clip.captions[i] ?? "", `Sub-caption ${i + 1}`)),
    el(
      "label",
      {},
      "Caption of the whole clip",
      area("all", clip.caption ?? "", "Caption of the whole clip"),
    ),
    el(
      "div",
      { class: "actions" },
      el(
        "button",
        { class: "primary" },
        "Save ",
        el("kbd", { "aria-hidden": "true" }, "Ctrl Enter"),
      ),
      button("Cancel", stopEditing, {}, "Esc"),
      el("span", { class: "grow" }),
      clip.is_corrected ? button("Restore the captioner's", () => saveCaptions(true)) : null,
    ),
  );
}

async function saveCaptions(withdraw = false) {
  const clip = state.clip;
  const captions = clip.captions.map((_, i) => $(`edit-${i}`).value);
  const review = {
    clip_id: clip.clip_id,
    kind: "caption",
    caption: $("edit-all").value,
    captions,
    withdraw,
  };
  const done = withdraw
    ? "The captioner's captions are back"
    : "Captions saved. longtake export writes them to the shards";
  if (!(await saveReview(review, done))) return;
  const found = await guarded(() => ask(`/api/clips/${encodeURIComponent(clip.clip_id)}`));
  if (!found) return;
  state.clip = found;
  stopEditing();
}

// ---- the policy ----

const inOrder = (rules) =>
  Object.fromEntries(Object.entries(rules).map(([name, rule]) => [name, { ...rule }]));

function drawRules() {
  $("rules").replaceChildren(
    ...Object.keys({ ...state.info.policy, ...state.policy }).map(ruleItem),
  );
  const free = state.info.scores.filter(
    (score) =>
      score.measured && !(score.name in state.policy) && !(score.name in state.info.policy),
  );
  options(
    $("add-rule"),
    [["", "choose a score"], ...free.map((score) => [score.name, score.name])],
    "",
  );
}

function ruleItem(name) {
  const score = state.info.scores.find((one) => one.name === name);
  const recorded = state.info.policy[name];
  const rule = state.policy[name] ?? recorded ?? {};
  const item = el("li", { class: "rule", "data-rule": name });
  const on = el("input", { type: "checkbox" });
  on.checked = name in state.policy;
  on.addEventListener("change", () => {
    if (on.checked) state.policy[name] = { ...(recorded ?? rule) };
    else delete state.policy[name];
    item.replaceWith(ruleItem(name));
    preview();
  });
  item.classList.toggle("off", !on.checked);
  const mark = () =>
    item.classList.toggle(
      "changed",
      JSON.stringify(state.policy[name]) !== JSON.stringify(recorded),
    );
  mark();
  item.append(
    el(
      "div",
      { class: "head" },
      el("label", {}, on, name),
      el("span", { class: "quiet" }, recorded ? `now ${ruleText(recorded)}` : "new"),
    ),
  );
  if (score?.what) item.append(el("p", { class: "quiet" }, score.what));
  if (on.checked && score && !("is" in rule) && !("in" in rule)) fillRange(item, name, mark);
  return item;
}

function histogramBars(bins, x) {
  const most = Math.max(1, ...bins.kept, ...bins.others);
  return bins.edges.slice(0, -1).flatMap((edge, i) => {
    const width = Math.max(0.6, x(bins.edges[i + 1]) - x(edge) - 0.4);
    const bar = (n, kind) => {
      const height = n ? Math.max(1, 19 * Math.sqrt(n / most)) : 0;
      const y = kind === "kept" ? 20 - height : 20;
      return svg("rect", { class: kind, x: x(edge), y, width, height });
    };
    return [bar(bins.kept[i], "kept"), bar(bins.others[i], "others")];
  });
}

async function fillRange(item, name, mark) {
  const bins = await guarded(() => ask(`/api/histogram/${encodeURIComponent(name)}`));
  if (!bins || !bins.edges.length) return;
  const rule = state.policy[name];
  const ends = [rule.min, rule.max].filter((value) => value !== undefined);
  const low = Math.min(bins.edges[0], ...ends),
    high = Math.max(bins.edges.at(-1), ...ends);
  const plot = svg("svg", {
    viewBox: "0 0 200 40",
    preserveAspectRatio: "none",
    role: "img",
    "aria-label": `Histogram of ${name}: kept above, others below`,
  });
  const x = (value) => (200 * (Math.min(high, Math.max(low, value)) - low)) / (high - low || 1);
  const drawn = [...histogramBars(bins, x), svg("path", { class: "axis", d: "M0 20H200" })];
  const outside = (from, to) =>
    svg("rect", { class: "outside", x: from, y: 0, width: to - from, height: 40 });
  const draw = () => {
    const { min, max } = state.policy[name] ?? {};
    plot.replaceChildren(
      ...drawn,
      ...(min === undefined ? [] : [outside(0, x(min))]),
      ...(max === undefined ? [] : [outside(x(max), 200)]),
    );
  };
  draw();
  item.append(plot);
  const step = Number(((high - low) / 200 || 0.01).toPrecision(1));
  const unused = el("div", { class: "row" });
  for (const [end, label, what] of [
    ["min", "at least", "minimum"],
    ["max", "at most", "maximum"],
  ]) {
    if (rule[end] === undefined) {
      unused.append(
        button(
          `Add a ${what}`,
          () => {
            state.policy[name] = { ...state.policy[name], [end]: end === "min" ? low : high };
            item.replaceWith(ruleItem(name));
            preview();
          },
          { class: "add" },
        ),
      );
      continue;
    }
    const number = el("input", { type: "number", step: "any", "aria-label": `${name} ${label}` });
    const slider = el("input", {
      type: "range",
      min: low,
      max: high,
      step,
      "aria-label": `${name} ${label}, slider`,
    });
    number.value = rule[end];
    slider.value = rule[end];
    const set = (text) => {
      const value = text === "" ? undefined : Number(text);
      if (value !== undefined && !Number.isFinite(value)) return;
      const next = { ...state.policy[name], [end]: value };
      if (value === undefined) delete next[end];
      state.policy[name] = next;
      draw();
      mark();
      preview();
    };
    slider.addEventListener("input", () => {
      number.value = Number(Number(slider.value).toPrecision(4));
      set(number.value);
    });
    number.addEventListener("input", () => {
      if (number.value !== "") slider.value = number.value;
      set(number.value);
    });
    item.append(
      el("div", { class: "end" }, el("span", { "aria-hidden": "true" }, label), slider, number),
    );
  }
  item.append(unused);
}

let previewRequest = null,
  exactTimer = 0;
function previewQuery() {
  const policy = Object.fromEntries(
    Object.entries(state.policy).filter(([, rule]) => Object.keys(rule).length),
  );
  return { policy, reject_flagged: $("reject-flagged").checked };
}

function note(text) {
  $("policy-note").textContent = text;
  $("policy-note").hidden = !text;
}

let soon = 0;
function preview() {
  // a moved slider sends many events
  clearTimeout(soon);
  soon = setTimeout(sendPreview, 60);
}

async function sendPreview() {
  note("");
  clearTimeout(exactTimer);
  previewRequest?.abort();
  previewRequest = new AbortController();
  const { signal } = previewRequest;
  const found = await guarded(() => ask("/api/preview", previewQuery(), signal));
  if (!found) return;
  drawFunnel(found);
  exactTimer = setTimeout(async () => {
    $("exactness").textContent = "searching duplicates again …";
    try {
      drawFunnel(await ask("/api/preview", { ...previewQuery(), exact: true }, signal));
    } catch (error) {
      if (error.name === "AbortError") return;
      $("exactness").textContent = "by the rules alone";
      note(error.message);
    }
  }, EXACT_AFTER_MS);
}

function drawFunnel(found) {
  // of a rule with another threshold the count before is that of the same rule
  const key = (row) => `${row.status} ${(row.reason ?? "").replace(/(\S+ [<>]) .*/, "$1")}`;
  state.previewed ??= Object.fromEntries(found.funnel.map((row) => [key(row), row.count]));
  $("exactness").textContent = found.is_exact ? "exact, duplicates included" : "by the rules";
  const total = found.funnel.find((row) => row.status === "all");
  const kept = found.funnel.find((row) => row.status === "kept");
  $("figures").replaceChildren(
    figure("clips kept", thousands(kept.count)),
    figure("before", thousands(found.kept_before)),
    figure("of video kept", hoursText(kept.hours)),
    figure(
      "of all clips",
      total.count ? `${((100 * kept.count) / total.count).toFixed(1)} %` : "–",
    ),
  );
  $("changes").replaceChildren(
    ...["gained", "lost"].map((change) => {
      const { clips, hours } = found[change];
      const text = `${thousands(clips)} ${change}`;
      const label = clips ? `Show ${text}, ${hoursText(hours)}` : text;
      return button(label, () => showChange(change), { disabled: clips === 0 });
    }),
  );
  let left = total.count;
  const percent = 100 / Math.max(1, total.count);
  const line = (label, row, kind, start, width) =>
    el(
      "tr",
      { class: kind },
      el("th", { scope: "row" }, label),
      el(
        "td",
        { class: "picture" },
        svg(
          "svg",
          { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
          svg("rect", { class: "track", width: 100, height: 10 }),
          svg("rect", { class: "remaining", width: start, height: 10 }),
          svg("rect", {
            class: kind === "kept" || kind === "all" ? "kept" : "others",
            x: start,
            width,
            height: 10,
          }),
        ),
      ),
      el("td", { class: "num" }, thousands(row.count)),
      el("td", { class: "num quiet" }, thousands(state.previewed[key(row)] ?? 0)),
      el("td", { class: "num quiet" }, row.reason ? thousands(row.any) : ""),
    );
  const body = [line("all", total, "all", 0, 100)];
  for (const row of found.funnel.filter((one) => one.reason)) {
    left -= row.count;
    if (row.count || row.any)
      body.push(line(row.reason, row, "lost", left * percent, row.count * percent));
  }
  body.push(line("kept", kept, "kept", 0, kept.count * percent));
  $("funnel").replaceChildren(...body);
  $("command").hidden = !found.settings.length;
  const select = `longtake select CONFIG output=${state.info.name}`;
  $("command").querySelector("pre").textContent = [select, ...found.settings].join(" \\\n  ");
}

function showChange(change) {
  state.query = {
    sort: state.query.sort,
    descending: state.query.descending,
    ranges: {},
    preview: { change, ...previewQuery() },
  };
  for (const id of ["text", "filter-status", "filter-rule"]) $(id).value = "";
  drawChips();
  show("clips");
  loadClips(0);
}

function addRule() {
  const name = $("add-rule").value;
  if (!name) return;
  state.policy[name] = {};
  drawRules();
  document.querySelector(`[data-rule="${name}"] input`)?.focus();
}

// ---- two outputs ----

function drawComparison() {
  const other = state.info.other;
  const [before, after] = other.kept;
  const table = (change) => {
    const rows = other.changes[change].map((one) =>
      el(
        "tr",
        {},
        el("th", { scope: "row" }, one.rule),
        el("td", { class: "num" }, thousands(one.clips)),
        el("td", { class: "num" }, hoursText(one.hours)),
      ),
    );
    return el(
      "section",
      {},
      el(
        "h2",
        {},
        change === "gained"
          ? `Gained: ${thousands(other.counts.gained)} kept here alone`
          : `Lost: ${thousands(other.counts.lost)} kept there alone`,
      ),
      rows.length
        ? el(
            "table",
            {},
            el(
              "thead",
              {},
              el(
                "tr",
                {},
                el("th", { scope: "col" }, "by the rule of the other selection"),
                el("th", { scope: "col", class: "num" }, "Clips"),
                el("th", { scope: "col", class: "num" }, "Length"),
              ),
            ),
            el("tbody", {}, ...rows),
          )
        : null,
      other.counts[change] ? button("Show them", () => filterChange(change)) : null,
    );
  };
  $("view-compare").replaceChildren(
    el(
      "header",
      {},
      el("h2", {}, "This output against the other"),
      el("p", { class: "quiet" }, other.name),
    ),
    el(
      "dl",
      { class: "figures" },
      figure("kept there", thousands(before)),
      figure("kept here", thousands(after)),
      figure("captions differ", thousands(other.counts.captions)),
    ),
    table("gained"),
    table("lost"),
    ...(other.counts.captions
      ? [
          el(
            "section",
            {},
            button("Show the clips with other captions", () => filterChange("captions")),
          ),
        ]
      : []),
  );
}

function filterChange(change) {
  state.query = { ...state.query, ranges: {}, change };
  drawChips();
  show("clips");
  loadClips(0);
}

// ---- the audit ----

async function loadSample() {
  const found = await guarded(() =>
    ask(`/api/audit?reviewer=${encodeURIComponent($("reviewer").value.trim())}`),
  );
  if (!found) return;
  state.audit.clips = found.clips;
  const open = found.clips.findIndex((clip) => !clip.mark);
  await goTo(open < 0 ? 0 : open);
}

function drawProgress() {
  const { clips, at } = state.audit;
  const marked = clips.filter((clip) => clip.mark).length;
  $("audit-progress").max = clips.length || 1;
  $("audit-progress").value = marked;
  $("audit-count").textContent = `${marked} of ${clips.length} marked · clip ${at + 1}`;
}

async function goTo(at) {
  const one = state.audit.clips[at];
  if (!one) return;
  state.audit.at = at;
  drawProgress();
  const clip = await guarded(() => ask(`/api/clips/${encodeURIComponent(one.clip_id)}`));
  if (!clip || state.audit.at !== at) return;
  state.clip = clip;
  const marks = ["good", "bad"].map((value) =>
    button(
      value === "good" ? "Good" : "Bad",
      () => mark(value),
      { class: value, id: `mark-${value}`, "aria-pressed": String(one.mark === value) },
      value[0],
    ),
  );
  $("audit-clip").replaceChildren(
    player(clip),
    timeLine(clip, () => null),
    el(
      "div",
      { class: "actions marks" },
      ...marks,
      button("Remove the mark", () => mark(null), { disabled: !one.mark }, "u"),
      el("span", { class: "grow" }),
      button("Previous", () => goTo(at - 1), { disabled: at === 0 }, "k"),
      button("Next", () => goTo(at + 1), { disabled: at + 1 >= state.audit.clips.length }, "j"),
    ),
    el(
      "p",
      { class: "quiet" },
      `${seconds(clip.duration_s)} · ${clip.width} × ${clip.height} · ${valueText(clip.fps)} fps. `,
      "Good: you would train on it. Bad: you would not.",
    ),
  );
  $("audit-clip")
    .querySelector("video")
    ?.play()
    .catch(() => {});
}

async function mark(value) {
  const { clips, at } = state.audit;
  if (state.view !== "audit" || !clips[at]) return;
  if (
    !(await saveReview(
      { clip_id: clips[at].clip_id, kind: "mark", value },
      value ? `Marked ${value}` : "Mark removed",
    ))
  )
    return;
  clips[at].mark = value;
  const next = clips.findIndex((clip, i) => i > at && !clip.mark);
  if (value && next >= 0) await goTo(next);
  else {
    await goTo(at);
    if (value && clips.every((clip) => clip.mark)) show("results");
  }
}

async function drawResults() {
  const found = await guarded(() => ask("/api/audit/results"));
  if (!found) return;
  const percent = (value) => `${(100 * value).toFixed(1)} %`;
  const cell = (share) =>
    share.value === null
      ? el("td", {}, el("span", { class: "quiet" }, "no such clip marked"))
      : el(
          "td",
          {},
          percent(share.value),
          " ",
          el("small", {}, `${percent(share.low)} to ${percent(share.high)}, ${share.marked} clips`),
          svg(
            "svg",
            {
              class: "interval",
              viewBox: "0 0 100 10",
              preserveAspectRatio: "none",
              "aria-hidden": "true",
            },
            svg("rect", {
              x: 100 * share.low,
              y: 3.5,
              width: Math.max(0.5, 100 * (share.high - share.low)),
              height: 3,
            }),
            svg("rect", { x: Math.max(0, 100 * share.value - 0.5), y: 1, width: 1, height: 8 }),
          ),
        );
  const row = (name, of, kind) =>
    el(
      "tr",
      { class: kind },
      el("th", { scope: "row" }, name),
      cell(of.precision),
      cell(of.recall),
    );
  const tables = Object.entries(found.reviewers).map(([name, one]) =>
    el(
      "section",
      {},
      el("h2", {}, `${name}: ${one.marked} of ${state.audit.clips.length} marked`),
      el(
        "table",
        {},
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("th", { scope: "col" }, ""),
            el("th", { scope: "col" }, "Precision"),
            el("th", { scope: "col" }, "Recall"),
          ),
        ),
        el(
          "tbody",
          {},
          row("policy", one, "kept"),
          ...one.rules.map((rule) => row(rule.rule, rule, "")),
        ),
      ),
      one.unmarked_strata.length
        ? el(
            "p",
            { class: "quiet" },
            `Left out, as no clip of it is marked: ${one.unmarked_strata.join(", ")}`,
          )
        : null,
    ),
  );
  const pairs = found.pairs.map((pair) =>
    el(
      "p",
      {},
      `${pair.reviewers.join(" and ")}: ${pair.clips} clips marked by both, ${pair.equal} alike`,
      pair.kappa === null ? "" : `; Cohen's kappa ${pair.kappa.toFixed(2)}`,
      pair.kappa === null ? "" : ` (${pair.low.toFixed(2)} to ${pair.high.toFixed(2)})`,
    ),
  );
  $("view-results").replaceChildren(
    el(
      "p",
      { class: "quiet" },
      "Precision of the policy: of the kept clips, the good ones. Recall: of the good clips, ",
      "the kept ones. Precision of a rule: of the clips that it rejects, the bad ones. Recall: of ",
      "the bad clips, those that it rejects. The small numbers are 95 % intervals.",
    ),
    ...(tables.length ? tables : [el("p", {}, "No clip of the sample is marked yet.")]),
    ...(pairs.length ? [el("section", {}, el("h2", {}, "Agreement"), ...pairs)] : []),
    el("p", { class: "quiet" }, "longtake audit OUT --report prints the same."),
  );
}

// ---- keys ----

function setSpeed(by) {
  const at = Math.min(SPEEDS.length - 1, Math.max(0, SPEEDS.indexOf(state.speed) + by));
  state.speed = SPEEDS[at];
  const video = shownVideo();
  if (video) video.playbackRate = state.speed;
  toast(`Speed ${state.speed} ×`);
}

function togglePlay() {
  const video = shownVideo();
  if (video) video.paused ? video.play().catch(() => {}) : video.pause();
}

const typing = (node) =>
  node?.closest?.("input:not([type=checkbox], [type=range]), textarea, select");

function onKey(event) {
  if ($("help").open) return;
  if (state.editing && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    saveCaptions();
    return;
  }
  if (event.key === "Escape") {
    if (state.editing) stopEditing();
    else if (typing(event.target)) event.target.blur();
    else document.body.classList.remove("shows-clip");
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target) || state.editing)
    return;
  const isAudit = Boolean(state.info?.audit);
  const actions = {
    j: () => step(1),
    k: () => step(-1),
    ".": () => setSpeed(1),
    ",": () => setSpeed(-1),
    "?": () => $("help").showModal(),
    ...(isAudit
      ? {
          g: () => mark("good"),
          b: () => mark("bad"),
          u: () => mark(null),
          r: () => show(state.view === "results" ? "audit" : "results"),
        }
      : {
          f: () => flag(!state.clip?.flag),
          e: edit,
          c: () => show("clips"),
          p: () => show("policy"),
          "/": () => {
            show("clips");
            document.body.classList.remove("shows-clip");
            $("text").focus();
          },
        }),
  };
  const onControl = event.target.closest?.("button, summary, video, input, a");
  if (event.key === " " && !onControl) {
    event.preventDefault();
    togglePlay();
    return;
  }
  if (/^[1-9]$/.test(event.key)) {
    jump(Number(event.key) - 1);
    return;
  }
  const action = actions[event.key];
  if (action) {
    event.preventDefault();
    action();
  }
}

// ---- start ----

async function start() {
  document.addEventListener("keydown", onKey);
  $("help-button").addEventListener("click", () => $("help").showModal());
  for (const tab of document.querySelectorAll("nav [data-view]"))
    tab.addEventListener("click", () => show(tab.dataset.view));
  if (!token) {
    showError(new Error("Open the address that the command printed: it holds the token."));
    return;
  }
  const info = await guarded(() => ask("/api/output"));
  if (!info) return;
  state.info = info;
  $("name").textContent = info.name;
  $("name").title = info.name;
  const isAudit = Boolean(info.audit);
  $("mode").textContent = isAudit ? "audit" : "browse";
  const folder = fileName(info.name.replace(/[?#].*/, "").replace(/\/$/, ""));
  document.title = `longtake ${$("mode").textContent}: ${folder}`;
  $("reviewer").value = localStorage.getItem("reviewer") || info.reviewer;
  $("reviewer").addEventListener("change", () => {
    localStorage.setItem("reviewer", $("reviewer").value.trim());
    if (isAudit) loadSample();
  });
  $("keys").replaceChildren(
    ...KEYS[isAudit ? "audit" : "browse"].flatMap(([keys, what]) => [
      el("dt", {}, ...keys.split("  ").map((key) => el("kbd", {}, key))),
      el("dd", {}, what),
    ]),
  );
  $(isAudit ? "audit-views" : "views").hidden = false;
  checkRun();
  setInterval(checkRun, RUN_INTERVAL_MS);
  if (isAudit) {
    state.speed = 2;
    show("audit");
    await loadSample();
    return;
  }
  document.querySelector('[data-view="compare"]').hidden = !info.other;
  state.policy = inOrder(info.policy);
  $("reject-flagged").checked = info.reject_flagged;
  fillFilters();
  let typingTimer = 0;
  $("text").addEventListener("input", () => {
    clearTimeout(typingTimer);
    typingTimer = setTimeout(readFilters, 200);
  });
  for (const id of ["filter-status", "filter-rule", "sort", "only-flagged", "only-corrected"])
    $(id).addEventListener("change", readFilters);
  $("filters").addEventListener("submit", (event) => {
    event.preventDefault();
    readFilters();
  });
  $("direction").addEventListener("click", () => {
    state.query.descending = !state.query.descending;
    $("direction").setAttribute("aria-pressed", String(state.query.descending));
    $("direction").textContent = state.query.descending ? "Descending" : "Ascending";
    loadClips(0);
  });
  $("range-add").addEventListener("click", () => {
    const ends = ["range-min", "range-max"].map((id) =>
      $(id).value.trim() === "" ? null : Number($(id).value),
    );
    if (ends.every((end) => end === null) || ends.some((end) => Number.isNaN(end)))
      return toast("Enter a number");
    state.query.ranges[$("range-score").value] = ends;
    for (const id of ["range-min", "range-max"]) $(id).value = "";
    return readFilters();
  });
  $("previous").addEventListener("click", () => loadClips(Math.max(0, state.offset - PAGE_CLIPS)));
  $("next").addEventListener("click", () => loadClips(state.offset + PAGE_CLIPS));
  $("reset").addEventListener("click", () => {
    state.policy = inOrder(info.policy);
    $("reject-flagged").checked = info.reject_flagged;
    drawRules();
    preview();
  });
  $("reject-flagged").addEventListener("change", preview);
  $("add-rule").addEventListener("change", addRule);
  show("clips");
  await loadClips(0);
}

start();
