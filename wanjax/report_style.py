"""Style and behaviour of the report's page; nothing is fetched from elsewhere."""

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #ffffff; --ink: #23211d; --soft: #665f55;
  --rule: #e5e0d6; --edge: #8d8678; --sun: #b65f00; --sky: #4a6fa5; --leaf: #007a6c; --good: #27754a; --bad: #b3402e; }
@media (prefers-color-scheme: dark) { :root { --paper: #191816; --card: #22201d; --ink: #ece7dd; --soft: #ada697;
  --rule: #383530; --edge: #7d776b; --sun: #f0a040; --sky: #8fb0de; --leaf: #5ccab8; --good: #6fc08f;
  --bad: #e88a78; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system,
  "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 48px 28px 96px; }
h1, h2 { font-family: ui-serif, Georgia, "Noto Serif", serif; font-weight: 500; letter-spacing: -0.01em;
  line-height: 1.2; text-wrap: balance; }
h1 { font-size: 40px; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 26px; margin: 60px 0 6px; scroll-margin-top: 16px; }
h3 { font-size: 16px; font-weight: 600; margin: 0; }
p { margin: 6px 0 14px; max-width: 72ch; }
a { color: inherit; text-decoration-color: var(--sun); text-underline-offset: 3px; }
:focus-visible { outline: 2px solid var(--sky); outline-offset: 2px; }
.eyebrow { margin: 0 0 6px; font-size: 13px; letter-spacing: 0.08em; text-transform: uppercase; color: var(--sun); }
.soft { color: var(--soft); overflow-wrap: anywhere; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.verdict { margin: 26px 0 8px; padding: 18px 22px 10px; background: var(--card); border: 1px solid var(--rule);
  border-left: 5px solid var(--edge); border-radius: 10px; }
.verdict.good { border-left-color: var(--good); } .verdict.bad { border-left-color: var(--bad); }
.verdict .words { font: 500 22px/1.35 ui-serif, Georgia, "Noto Serif", serif; margin: 0 0 8px; max-width: none; }
.verdict.good .words span { color: var(--good); } .verdict.bad .words span { color: var(--bad); }
.verdict li { font-size: 14.5px; font-variant-numeric: tabular-nums; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 14px; margin: 26px 0 8px;
  padding: 0; list-style: none; }
.figures li { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 16px 18px; }
.figures b { display: block; font: 500 34px/1.2 ui-serif, Georgia, serif; font-variant-numeric: tabular-nums; }
.figures li.main b { color: var(--sun); }
.figures span { color: var(--soft); font-size: 14px; line-height: 1.4; display: block; overflow-wrap: anywhere; }
.first { padding-left: 24px; margin: 10px 0; } .first li { margin: 0 0 6px; } .first span { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14.5px; font-variant-numeric: tabular-nums; margin: 14px 0 4px; }
th, td { padding: 6px 18px 6px 0; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
thead th { font-weight: 500; color: var(--soft); vertical-align: bottom; }
tbody th { font-weight: 400; }
th:first-child, td:first-child { text-align: left; }
td small, th small { color: var(--soft); }
td div { color: var(--sky); font-size: 13px; line-height: 1.2; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--sky); }
th[aria-sort="ascending"] button::after { content: " ↑"; } th[aria-sort="descending"] button::after { content: " ↓"; }
nav { display: flex; flex-wrap: wrap; gap: 8px; margin: 14px 0 18px; }
nav button { font: inherit; font-size: 14px; color: var(--ink); background: var(--card); border: 1px solid var(--edge);
  border-radius: 999px; padding: 4px 14px; cursor: pointer; }
nav button[aria-pressed="true"] { background: var(--ink); border-color: var(--ink); color: var(--paper); }
.contents { gap: 4px 20px; margin: 30px 0 0; padding-top: 14px; border-top: 1px solid var(--rule); font-size: 14.5px; }
.contents a { color: var(--soft); text-decoration-color: var(--rule); } .contents a:hover { color: var(--ink); }
article, .scenario { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 20px 22px;
  margin: 0 0 18px; scroll-margin-top: 12px; content-visibility: auto; contain-intrinsic-size: auto 620px; }
article[hidden] { display: none; }
article:target { border-color: var(--sun); }
.head { display: flex; flex-wrap: wrap; gap: 6px 14px; align-items: baseline; justify-content: space-between; }
.caption { font: 400 19px/1.4 ui-serif, Georgia, "Noto Serif CJK SC", "Songti SC", serif; overflow-wrap: anywhere; }
.chips { display: flex; flex-wrap: wrap; gap: 6px; font-size: 13.5px; }
.chip { border: 1px solid var(--rule); border-radius: 999px; padding: 1px 10px; color: var(--soft); }
.chip.good { color: var(--good); border-color: currentColor; }
.chip.bad { color: var(--bad); border-color: currentColor; }
.body { display: flex; flex-wrap: wrap; gap: 18px 26px; margin: 14px 0 12px; }
.screens { display: grid; grid-template-columns: repeat(2, 176px); gap: 12px 14px; align-content: start; }
.screens.one { grid-template-columns: repeat(2, 236px); }
.row { display: flex; flex-wrap: wrap; gap: 14px; margin: 12px 0 6px; } .row figure { width: 166px; }
figure { margin: 0; position: relative; }
figcaption { color: var(--soft); font-size: 13px; line-height: 1.35; margin-top: 4px; overflow-wrap: anywhere; }
figure > video, figure > img { display: block; width: 100%; max-height: 320px; object-fit: contain; border-radius: 6px;
  background: var(--rule); cursor: pointer; }
figure > img { cursor: auto; }
.warning { position: absolute; z-index: 1; left: 6px; top: 6px; background: #000c; color: #fff; font-size: 12px;
  padding: 1px 8px; border-radius: 999px; pointer-events: none; }
.charts { flex: 1 1 430px; display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px 22px;
  align-content: start; }
.sheet { display: block; width: 100%; max-height: 150px; object-fit: contain; object-position: left;
  border-radius: 4px; margin-top: 2px; }
.strips { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: 4px 12px; align-items: center;
  font-size: 13px; color: var(--soft); }
.note { font-size: 14px; margin: 0 0 6px; padding-left: 12px; border-left: 3px solid var(--edge); }
details { font-size: 14px; margin-top: 10px; }
summary { cursor: pointer; color: var(--soft); overflow-wrap: anywhere; }
.chart { width: 100%; height: auto; display: block; overflow: visible; }
.chart text { font-size: 11.5px; fill: var(--soft); }
.chart .title { font-size: 13px; fill: var(--ink); }
.chart .grid { stroke: var(--rule); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.clip { stroke: var(--sun); } .dot.clip { fill: var(--sun); }
.line.reference { stroke: var(--sky); stroke-dasharray: 5 4; } .dot.reference { fill: var(--sky); }
.line.against { stroke: var(--leaf); stroke-dasharray: 1 4; } .dot.against { fill: var(--leaf); }
.mark { fill: none; stroke: var(--bad); stroke-width: 1.5; }
.whisker { width: 150px; height: 18px; display: block; }
.whisker .zero { stroke: var(--edge); } .whisker .bar { stroke: var(--soft); stroke-width: 2; fill: none; }
.whisker circle { fill: var(--soft); }
.whisker.good .bar { stroke: var(--good); } .whisker.good circle { fill: var(--good); }
.whisker.bad .bar { stroke: var(--bad); } .whisker.bad circle { fill: var(--bad); }
.key { display: flex; flex-wrap: wrap; gap: 4px 22px; max-width: none; font-size: 14.5px; }
.key i { display: inline-block; width: 24px; border-top: 2px solid var(--sun); vertical-align: middle;
  margin: 0 6px 0 0; }
.key i.reference { border-top: 2px dashed var(--sky); } .key i.against { border-top: 2px dotted var(--leaf); }
.key .ramp i { width: 84px; height: 10px; border: 0; border-radius: 3px; margin: 0 4px; }
code { font-size: 0.92em; }
ul.plain { padding-left: 18px; margin: 6px 0 12px; } ul.plain li { overflow-wrap: anywhere; max-width: 96ch; }
.warn { border-left: 3px solid var(--bad); padding: 2px 0 2px 14px; margin: 24px 0; }
@media (max-width: 640px) { main { padding: 28px 16px 64px; } h1 { font-size: 30px; }
  h2 { font-size: 23px; margin-top: 44px; }
  article, .scenario { padding: 16px 14px; } .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px; }
  .figures li { padding: 12px 14px; } .figures b { font-size: 26px; }
  .screens, .screens.one { grid-template-columns: repeat(2, minmax(0, 1fr)); width: 100%; }
  .charts { flex-basis: 100%; grid-template-columns: minmax(0, 1fr); } .figures li.main { grid-column: 1 / -1; }
  table { font-size: 13.5px; } th, td { padding-right: 13px; } tbody th small { display: block; }
  .row figure { width: calc(50% - 7px); } }
@media print { article, .scenario { break-inside: avoid; content-visibility: visible; } nav { display: none; } }
""".strip()

SCRIPT = """
const all = selector => [...document.querySelectorAll(selector)];
const clips = all('article'), buttons = all('nav button[data-show]'), pause = document.querySelector('[data-pause]');
const show = wanted => {
  for (const button of buttons) button.setAttribute('aria-pressed', String(button.dataset.show === wanted));
  for (const clip of clips) clip.hidden = !(wanted === 'all' || clip.dataset.tags.split(' ').includes(wanted));
};
for (const button of buttons) button.addEventListener('click', () => show(button.dataset.show));
for (const link of all('a[href^="#clip-"]')) link.addEventListener('click', () => show('all'));

// Only what is in view is loaded and plays: browsers allow a few dozen players, and a long page stays light.
let held = matchMedia('(prefers-reduced-motion: reduce)').matches;
const start = video => video.play().catch(() => {});
const enter = video => {
  const from = video.dataset.of ? document.getElementById(video.dataset.of) : video;
  if (!video.src && from && from.dataset.src) video.src = from.dataset.src;
  if (!held && !('hold' in video.dataset)) start(video);
};
// Clips beside each other start together.
const together = video => {
  const group = [...video.closest('.screens, .row').querySelectorAll('video')];
  if (group.every(other => other.readyState > 1)) for (const other of group) other.currentTime = 0;
};
const leave = video => { if (video.src) { video.pause(); video.removeAttribute('src'); video.load(); } };
const watcher = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) isIntersecting ? enter(target) : leave(target);
});
for (const video of all('video')) {
  watcher.observe(video);
  const toggle = () => video.paused ? start(video) : video.pause();
  video.addEventListener('click', toggle);
  video.addEventListener('loadeddata', () => together(video));
  video.addEventListener('keydown', event => {
    if (event.key === ' ' || event.key === 'Enter') { event.preventDefault(); toggle(); }
  });
}
const hold = () => {
  pause.setAttribute('aria-pressed', String(held));
  for (const video of all('video')) {
    if (held) video.pause(); else if (video.src && !('hold' in video.dataset)) start(video);
  }
};
if (pause) { pause.addEventListener('click', () => { held = !held; hold(); }); hold(); }

for (const table of all('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.addEventListener('click', () => {
    const down = head.getAttribute('aria-sort') !== 'descending';
    for (const other of heads) other.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const value = row => row.cells[column].dataset.order;
    const order = (a, b) => isNaN(value(a)) || isNaN(value(b)) ? value(a).localeCompare(value(b)) : value(a) - value(b);
    body.append(...[...body.rows].sort((a, b) => down ? order(b, a) : order(a, b)));
  }));
}
""".strip()
