// The page of `miniclip demo`: plain JavaScript, without a build step. All text of a user goes in as text, never as HTML.

const $ = (id) => document.getElementById(id);
const PAGE = 60; // images at first, and with each "Show more"
const DEBOUNCE = 90; // milliseconds between the last key and the search
const PATIENCE = 700; // milliseconds until a query that cannot be parsed is reported
const FILTERS = ["paths", "after", "before", "threshold"];
const state = { image: null, count: PAGE, hits: [], texts: [], current: -1, open: null };
let limits = { upload_bytes: Infinity, hits: PAGE };
let explains = true; // whether the model has patches to explain hits by

// ------------------------------------------------------------------------------------------------ requests

class Refused extends Error {}

async function post(path, body, attempts = 6) {
  const isFile = body instanceof Blob;
  const type = isFile ? body.type || "application/octet-stream" : "application/json";
  const options = { method: "POST", headers: { "Content-Type": type }, body: isFile ? body : JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Refused("The server does not answer. Is `miniclip demo` still running?");
  }
  if (response.status === 503 && attempts > 1) {
    const seconds = Number(response.headers.get("Retry-After")) || 1;
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds * (0.5 + Math.random())));
    return post(path, body, attempts - 1);
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(answer.error || `The server answered with status ${response.status}.`);
  return answer;
}

function show(element, message) {
  element.textContent = message || "";
  element.hidden = !message;
}

// -------------------------------------------------------------------------------------------------- search

function query() {
  const { image, count } = state;
  const threshold = $("threshold").value;
  return {
    text: $("text").value.trim(),
    image: image && image.key,
    count,
    paths: $("paths").value.trim(),
    after: $("after").value,
    before: $("before").value,
    threshold: threshold === "" ? null : Number(threshold),
  };
}

// One search is on its way at a time. Keys typed meanwhile start one more search after it, with the newest text.
const searching = { running: false, again: false, timer: 0, problem: 0 };

function searchSoon() {
  clearTimeout(searching.timer);
  searching.timer = setTimeout(search, DEBOUNCE);
}

async function search() {
  clearTimeout(searching.timer);
  if (searching.running) {
    searching.again = true;
    return;
  }
  searching.running = true;
  $("results").classList.add("stale");
  $("results").setAttribute("aria-busy", "true");
  try {
    do {
      searching.again = false;
      await searchOnce();
    } while (searching.again);
  } finally {
    searching.running = false;
    $("results").classList.remove("stale");
    $("results").removeAttribute("aria-busy");
  }
}

async function searchOnce() {
  const asked = query();
  remember(asked);
  $("clear").hidden = !($("text").value || state.image);
  try {
    const answer = await post("api/search", asked);
    clearTimeout(searching.problem);
    if (searching.again) return; // the text has changed; the next answer is shown
    show($("problem"), "");
    $("text").removeAttribute("aria-invalid");
    state.texts = answer.texts;
    render(answer.hits);
    $("status").textContent = summary(answer, asked);
    $("more").hidden = answer.hits.length < state.count || state.count >= Math.min(limits.hits, answer.total);
  } catch (error) {
    if (searching.again) return;
    if (!(error instanceof Refused)) throw error;
    clearTimeout(searching.problem); // a text that is not finished, such as "beach +", is no reason to complain at once
    searching.problem = setTimeout(() => {
      show($("problem"), error.message);
      $("text").setAttribute("aria-invalid", "true");
    }, asked.text ? PATIENCE : 0);
  }
}

function summary(answer, asked) {
  const count = answer.hits.length.toLocaleString("en");
  const all = `${answer.total.toLocaleString("en")} ${answer.total === 1 ? "image" : "images"}`;
  if (!answer.hits.length) return "No image matches these filters.";
  if (!asked.text && !asked.image) return `${count} of ${all}`;
  return `The ${count} most similar of ${all}, in ${answer.milliseconds} ms`;
}

function remember(asked, push = false) {
  const parts = new URLSearchParams();
  if (asked.text) parts.set("q", asked.text);
  if (asked.image && "item" in asked.image) parts.set("like", asked.image.item);
  for (const id of FILTERS) if ($(id).value) parts.set(id, $(id).value);
  const address = location.pathname + (parts.size ? `#${parts}` : "");
  if (push) history.pushState(state.image, "", address);
  else history.replaceState(state.image, "", address);
}

function restore(image) {
  const parts = new URLSearchParams(location.hash.slice(1));
  $("text").value = parts.get("q") || "";
  for (const id of FILTERS) $(id).value = parts.get(id) || "";
  const item = Number.parseInt(parts.get("like"), 10);
  setImage(image || (Number.isNaN(item) ? null : { key: { item }, name: "an image of the index", source: null }));
  if (FILTERS.some((id) => $(id).value)) toggleFilters(true);
  search();
}

// ------------------------------------------------------------------------------------------- query image

function setImage(image) {
  state.image = image;
  $("chip").hidden = !image;
  $("chip-open").hidden = !image || !image.source; // an image from the address has none
  if (image) {
    $("chip-name").textContent = image.name;
    $("chip-image").src = image.source || "";
  }
  $("text").placeholder = image ? "and describe a change" : "Describe an image";
}

function moreLike(hit) {
  closeDetail();
  $("text").value = "";
  setImage({ key: { item: hit.id }, name: hit.name, source: source(hit, 320), hit });
  state.count = PAGE;
  remember(query(), true);
  search();
  scrollTo({ top: 0, behavior: "instant" });
}

async function upload(file) {
  if (!file) return;
  show($("problem"), "");
  if (file.size > limits.upload_bytes) {
    show($("problem"), `${file.name} is larger than ${limits.upload_bytes / 2 ** 20} MiB; choose a smaller image.`);
    return;
  }
  $("status").textContent = "Reading the image …";
  try {
    const answer = await post("api/uploads", file);
    setImage({ key: { upload: answer.upload }, name: file.name || "pasted image", source: URL.createObjectURL(file) });
    state.count = PAGE;
    remember(query(), true);
    await search();
    $("text").focus();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    $("status").textContent = "";
    show($("problem"), error.message);
  }
}

// ------------------------------------------------------------------------------------------------ results

const source = (hit, side) => `api/images/${hit.id}?v=${hit.version}&side=${side}`;
const rounded = (score) => (score === null ? "" : score.toFixed(3));

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `icons.svg#${name}`);
  svg.append(use);
  return svg;
}

function element(name, classes, ...children) {
  const made = document.createElement(name);
  if (classes) made.className = classes;
  made.append(...children);
  return made;
}

function card(hit, index) {
  const ratio = Math.min(3, Math.max(0.5, hit.width / hit.height || 1));
  const image = element("img");
  image.loading = "lazy";
  image.decoding = "async";
  image.alt = "";
  image.src = source(hit, 320);
  const open = element("button", "open", image);
  open.type = "button";
  open.setAttribute("aria-label", hit.score === null ? hit.name : `${hit.name}, similarity ${rounded(hit.score)}`);
  open.addEventListener("click", () => openDetail(index));
  const like = element("button", "like", icon("like"));
  like.type = "button";
  like.title = "More like this";
  like.setAttribute("aria-label", `More like ${hit.name}`);
  like.addEventListener("click", () => moreLike(hit));
  const facts = element("span", "facts", element("span", "", hit.name.split("/").pop()), element("span", "score", rounded(hit.score)));
  facts.setAttribute("aria-hidden", "true");
  const item = element("li", "card", open, facts, like);
  item.style.flex = `${ratio} 1 calc(var(--row) * ${ratio})`;
  item.style.aspectRatio = String(ratio);
  let attempts = 4;
  image.addEventListener("error", () => {
    if (attempts-- > 0) setTimeout(() => (image.src = `${source(hit, 320)}&again=${attempts}`), 700 * (5 - attempts));
    else item.classList.add("broken");
  });
  open.tabIndex = like.tabIndex = index === 0 ? 0 : -1;
  return item;
}

function render(hits) {
  const same = hits.length >= state.hits.length && state.hits.every((hit, i) => hit.id === hits[i].id && hit.score === hits[i].score);
  const list = $("results");
  if (same) list.append(...hits.slice(state.hits.length).map((hit, i) => card(hit, state.hits.length + i)));
  else list.replaceChildren(...hits.map(card));
  if (!same) state.current = -1;
  state.hits = hits;
}

function focusCard(index) {
  const cards = $("results").children;
  if (!cards.length) return;
  const next = Math.max(0, Math.min(cards.length - 1, index));
  for (const button of $("results").querySelectorAll("[tabindex='0']")) button.tabIndex = -1;
  for (const button of cards[next].querySelectorAll("button")) button.tabIndex = 0; // one stop of the tab key
  state.current = next;
  cards[next].querySelector(".open").focus();
  cards[next].scrollIntoView({ block: "nearest" });
}

// The image above or below: the nearest one of the next row, by the positions on the screen.
function neighbour(index, direction) {
  const boxes = [...$("results").children].map((item) => item.getBoundingClientRect());
  const from = boxes[index];
  const middle = from.left + from.width / 2;
  const others = boxes.map((box, i) => ({ i, box })).filter(({ box }) => direction * (box.top - from.top) > 4);
  if (!others.length) return direction < 0 ? -1 : index;
  const tops = others.map(({ box }) => box.top);
  const row = direction > 0 ? Math.min(...tops) : Math.max(...tops);
  const inRow = others.filter(({ box }) => Math.abs(box.top - row) < 4);
  const distance = ({ box }) => Math.abs(box.left + box.width / 2 - middle);
  return inRow.reduce((best, other) => (distance(other) < distance(best) ? other : best)).i;
}

// ------------------------------------------------------------------------------------------------- detail

function openDetail(index) {
  state.current = index;
  showDetail(state.hits[index]);
}

// Show an image of the index, or the uploaded one: {key, name, source}.
function showDetail(hit) {
  const isItem = "id" in hit;
  state.open = hit;
  $("detail-name").textContent = hit.name;
  const score = isItem && hit.score !== null ? `, similarity ${rounded(hit.score)}` : "";
  $("detail-facts").textContent = isItem ? `${hit.width} × ${hit.height} pixels${score}` : "the query image";
  $("shown").src = isItem ? source(hit, 320) : hit.source;
  $("shown").alt = hit.name;
  if (isItem) sharpen(hit);
  $("explain-part").hidden = !isItem || !explains;
  $("like").hidden = !isItem;
  if (state.texts.length) $("explain-text").value = state.texts.join(", ");
  $("previous").disabled = !isItem || state.current <= 0;
  $("next").disabled = !isItem || state.current >= state.hits.length - 1;
  clearExplanation();
  show($("detail-problem"), "");
  if ($("labels").value.trim()) classify();
  else $("bars").replaceChildren();
  if (!$("detail").open) $("detail").showModal();
}

// The large image replaces the thumbnail when it has arrived.
function sharpen(hit) {
  const large = new Image();
  large.src = source(hit, 1280);
  large.decode().then(() => {
    if (state.open === hit && $("heat").hidden) $("shown").src = large.src;
  }, () => {});
}

function closeDetail() {
  if ($("detail").open) $("detail").close();
}

function step(direction) {
  const next = state.current + direction;
  if (state.open && "id" in state.open && next >= 0 && next < state.hits.length) openDetail(next);
}

function clearExplanation() {
  $("heat").hidden = true;
  $("explanation").hidden = true;
}

async function explain() {
  const hit = state.open;
  show($("detail-problem"), "");
  $("explain").setAttribute("aria-busy", "true");
  try {
    const answer = await post("api/explain", { item: hit.id, text: $("explain-text").value });
    if (state.open !== hit) return;
    $("shown").src = answer.image;
    $("heat").src = answer.heat;
    $("heat").hidden = $("explanation").hidden = false;
    fade();
    $("words").replaceChildren(...answer.words.map(({ text, relevance }) => {
      const word = element("span", "", text);
      word.style.background = `rgb(242 142 43 / ${Math.round(70 * relevance)}%)`;
      word.title = `relevance ${relevance.toFixed(2)}`;
      return word;
    }));
    $("explain-facts").textContent = `Similarity ${answer.similarity.toFixed(3)}; without the most relevant fifth of the image ${answer.without_top.toFixed(3)}.`;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    show($("detail-problem"), error.message);
  } finally {
    $("explain").removeAttribute("aria-busy");
  }
}

function fade() {
  $("heat").style.opacity = String($("strength").value / 100);
}

const classifying = { timer: 0, number: 0 };

async function classify() {
  clearTimeout(classifying.timer);
  const labels = [...new Set($("labels").value.split(",").map((label) => label.trim()).filter(Boolean))];
  const number = ++classifying.number;
  if (!labels.length || !state.open) {
    $("bars").replaceChildren();
    return;
  }
  const image = "id" in state.open ? { item: state.open.id } : state.open.key;
  try {
    const answer = await post("api/labels", { image, labels, template: $("template").value });
    if (number !== classifying.number) return;
    show($("detail-problem"), "");
    const ranked = answer.labels.map((label, i) => ({ label, value: answer.probabilities[i] })).sort((a, b) => b.value - a.value);
    $("bars").replaceChildren(...ranked.map(({ label, value }) => {
      const bar = element("i");
      bar.style.width = `${100 * value}%`;
      const track = element("span", "track", bar);
      track.setAttribute("aria-hidden", "true");
      return element("li", "", element("span", "", label), element("span", "number", `${(100 * value).toFixed(1)} %`), track);
    }));
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (number === classifying.number) show($("detail-problem"), error.message);
  }
}

function classifySoon() {
  clearTimeout(classifying.timer);
  classifying.timer = setTimeout(classify, 2 * DEBOUNCE);
}

// ------------------------------------------------------------------------------------------------- events

function toggleFilters(open) {
  $("filters").hidden = !open;
  $("toggle").setAttribute("aria-expanded", String(open));
}

function clear() {
  $("text").value = "";
  setImage(null);
  state.count = PAGE;
  show($("problem"), "");
  search();
  $("text").focus();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const typing = event.target.matches("input");
  if ($("detail").open) {
    if (typing) return;
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else if (event.key.toLowerCase() === "m" && "id" in state.open) moreLike(state.open);
    return;
  }
  if (event.key === "/" && !typing) {
    event.preventDefault();
    $("text").focus();
    $("text").select();
  } else if (event.target === $("text")) {
    if (event.key === "ArrowDown") { event.preventDefault(); focusCard(0); }
    else if (event.key === "Escape" && ($("text").value || state.image)) { event.preventDefault(); clear(); }
  } else if (event.target.matches(".card button")) {
    onCardKey(event);
  }
}

function onCardKey(event) {
  const current = [...$("results").children].indexOf(event.target.closest(".card"));
  state.current = current;
  if (event.key === "Escape") $("text").focus();
  else if (event.key.toLowerCase() === "m") moreLike(state.hits[current]);
  else {
    const moves = { ArrowLeft: () => current - 1, ArrowRight: () => current + 1, Home: () => 0, End: () => state.hits.length - 1,
      ArrowUp: () => neighbour(current, -1), ArrowDown: () => neighbour(current, 1) };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const next = moves[event.key]();
    if (next < 0 && event.key === "ArrowUp") $("text").focus();
    else focusCard(next);
  }
}

function listen() {
  $("search").addEventListener("submit", (event) => { event.preventDefault(); search(); });
  $("text").addEventListener("input", () => { state.count = PAGE; searchSoon(); });
  for (const id of FILTERS) $(id).addEventListener("input", searchSoon);
  $("toggle").addEventListener("click", () => toggleFilters($("filters").hidden));
  $("clear").addEventListener("click", clear);
  $("chip-remove").addEventListener("click", () => { setImage(null); search(); $("text").focus(); });
  $("chip-open").addEventListener("click", () => { state.current = -1; showDetail(state.image.hit || state.image); });
  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => { upload($("file").files[0]); $("file").value = ""; });
  $("more").addEventListener("click", async () => {
    const first = state.hits.length;
    state.count = Math.min(limits.hits, state.count + PAGE);
    await search();
    focusCard(first);
  });
  $("explain").addEventListener("submit", (event) => { event.preventDefault(); explain(); });
  $("strength").addEventListener("input", fade);
  $("classify").addEventListener("submit", (event) => { event.preventDefault(); classify(); });
  $("labels").addEventListener("input", classifySoon);
  $("template").addEventListener("input", classifySoon);
  $("like").addEventListener("click", () => moreLike(state.open));
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("close").addEventListener("click", closeDetail);
  $("detail").addEventListener("click", (event) => { if (event.target === $("detail")) closeDetail(); });
  $("detail").addEventListener("close", () => {
    state.open = null;
    classifying.number++;
    if (state.current >= 0) focusCard(state.current);
  });
  document.addEventListener("keydown", onKey);
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (!file) return;
    event.preventDefault();
    closeDetail();
    upload(file);
  });
  addEventListener("popstate", (event) => restore(event.state));
  listenToDrops();
}

function listenToDrops() {
  let depth = 0;
  const hasFile = (event) => event.dataTransfer.types.includes("Files");
  const shown = (change) => {
    depth = Math.max(0, depth + change);
    $("drop").classList.toggle("shown", depth > 0);
  };
  document.addEventListener("dragenter", (event) => { if (hasFile(event)) shown(1); });
  document.addEventListener("dragleave", (event) => { if (hasFile(event)) shown(-1); });
  document.addEventListener("dragover", (event) => { if (hasFile(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    shown(-depth);
    closeDetail();
    upload(event.dataTransfer.files[0]);
  });
}

async function start() {
  const address = new URL(location.href);
  if (address.searchParams.has("token")) { // the cookie has it now; it does not stay in the history
    address.searchParams.delete("token");
    history.replaceState(null, "", address);
  }
  listen();
  restore(history.state);
  const about = await (await fetch("api/about")).json();
  limits = about.limits;
  explains = about.explains;
  $("about").textContent = `${about.images.toLocaleString("en")} images, ${about.model}`;
  $("template").value = about.template;
  $("examples").hidden = !about.examples.length;
  $("examples").replaceChildren(...about.examples.map((text) => {
    const button = element("button", "", text);
    button.type = "button";
    button.addEventListener("click", () => { $("text").value = text; setImage(null); search(); });
    return button;
  }));
}

start();
