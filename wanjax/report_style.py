"""Style and behaviour of the report's page; nothing is fetched from elsewhere."""

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #ffffff; --ink: #23211d; --soft: #6d675d;
  --rule: #e5e0d6; --sun: #c26a00; --sky: #4a6fa5; --good: #2e7d4f; --bad: #b3402e; }
@media (prefers-color-scheme: dark) { :root { --paper: #191816; --card: #22201d; --ink: #ece7dd; --soft: #a39c8f;
  --rule: #383530; --sun: #f0a040; --sky: #8fb0de; --good: #6fc08f; --bad: #e88a78; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system,
  "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 56px 28px 96px; }
h1, h2 { font-family: ui-serif, Georgia, "Noto Serif", serif; font-weight: 500; letter-spacing: -0.01em;
  line-height: 1.2; }
h1 { font-size: 40px; margin: 0 0 8px; }
h2 { font-size: 26px; margin: 64px 0 6px; }
h3 { font-size: 16px; font-weight: 600; margin: 0; }
p { margin: 6px 0 14px; max-width: 72ch; }
.soft { color: var(--soft); }
.figures { display: flex; flex-wrap: wrap; gap: 14px; margin: 32px 0 8px; padding: 0; list-style: none; }
.figures li { flex: 1 1 170px; background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 16px 18px; }
.figures b { display: block; font: 500 34px/1.2 ui-serif, Georgia, serif; font-variant-numeric: tabular-nums; }
.figures li.main b { color: var(--sun); }
.figures span { color: var(--soft); font-size: 14px; line-height: 1.4; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14.5px; font-variant-numeric: tabular-nums; margin: 14px 0 4px; }
th, td { padding: 6px 18px 6px 0; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { font-weight: 500; color: var(--soft); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
td small { color: var(--soft); }
td div { color: var(--sky); font-size: 13px; line-height: 1.2; }
nav { display: flex; flex-wrap: wrap; gap: 8px; margin: 14px 0 18px; }
button { font: inherit; font-size: 14px; color: var(--ink); background: var(--card); border: 1px solid var(--rule);
  border-radius: 999px; padding: 4px 14px; cursor: pointer; }
button[aria-pressed="true"] { border-color: var(--ink); }
article { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 20px 22px;
  margin: 0 0 18px; }
article[hidden] { display: none; }
.head { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: baseline; justify-content: space-between; }
.caption { font-family: ui-serif, Georgia, "Noto Serif CJK SC", "Songti SC", serif; font-size: 19px;
  line-height: 1.4; }
.chips { display: flex; flex-wrap: wrap; gap: 6px; font-size: 13.5px; }
.chip { border: 1px solid var(--rule); border-radius: 999px; padding: 1px 10px; color: var(--soft); }
.chip.good { color: var(--good); border-color: currentColor; }
.chip.bad { color: var(--bad); border-color: currentColor; }
.body { display: flex; flex-wrap: wrap; gap: 18px 26px; margin: 14px 0 12px; }
.players { display: flex; gap: 14px; }
figure { margin: 0; }
figcaption { color: var(--soft); font-size: 13px; margin-top: 4px; }
video { display: block; height: 176px; border-radius: 6px; background: var(--rule); }
.charts { flex: 1 1 520px; display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 16px; }
.sheet { display: block; width: 100%; max-height: 150px; object-fit: contain; object-position: left;
  border-radius: 4px; margin-top: 2px; }
.strips { display: grid; grid-template-columns: auto 1fr; gap: 4px 12px; align-items: center; font-size: 13px;
  color: var(--soft); }
details { font-size: 14px; margin-top: 10px; }
summary { cursor: pointer; color: var(--soft); }
.chart { width: 100%; height: auto; display: block; overflow: visible; }
.chart text { font-size: 11.5px; fill: var(--soft); }
.chart .title { font-size: 13px; fill: var(--ink); }
.chart .grid { stroke: var(--rule); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.clip { stroke: var(--sun); } .dot.clip { fill: var(--sun); }
.line.reference { stroke: var(--sky); stroke-dasharray: 5 4; } .dot.reference { fill: var(--sky); }
.key i { display: inline-block; width: 22px; border-top: 2px solid var(--sun); vertical-align: middle;
  margin: 0 6px 0 0; }
.key i.reference { border-top: 2px dashed var(--sky); margin-left: 18px; }
code { font-size: 0.92em; }
ul.plain { padding-left: 18px; }
.warn { border-left: 3px solid var(--bad); padding: 2px 0 2px 14px; margin: 24px 0; }
""".strip()

SCRIPT = """
const clips = [...document.querySelectorAll('article')];
const buttons = [...document.querySelectorAll('nav button[data-show]')];
for (const button of buttons) button.addEventListener('click', () => {
  for (const other of buttons) other.setAttribute('aria-pressed', String(other === button));
  const show = button.dataset.show;
  for (const clip of clips) clip.hidden = !(show === 'all' || clip.dataset.tags.split(' ').includes(show));
});
// Only what is in view plays, so that a long page stays light.
const watcher = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) target.play().catch(() => {}); else target.pause();
  }
});
for (const video of document.querySelectorAll('video')) watcher.observe(video);
""".strip()
