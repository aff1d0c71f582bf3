"""The look of the report's page, light and dark, on a phone, on a screen and on paper."""

LOOK = """
:root { --ink: #1c2127; --muted: #626a73; --line: #e4e7ea; --paper: #fff; --soft: #f6f7f8;
  --accent: #2777c9; --warn: #8a5a00; --warn-soft: #fdf3df; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e3e6e9; --muted: #9aa3ad; --line: #2f353c; --paper: #15181c; --soft: #1c2025;
    --accent: #6aa9e9; --warn: #e3b35c; --warn-soft: #2c2415; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 3.5rem 1.5rem 6rem; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.015em; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3.6rem 0 .6rem; letter-spacing: -.005em; }
h3 { font-size: 1rem; margin: 2rem 0 .4rem; }
p, figcaption, ul.words { max-width: 44rem; }
p { margin: .6rem 0; }
.kicker { color: var(--muted); font-size: .85rem; margin: 0 0 .4rem; }
.lead { font-size: 1.1rem; color: var(--muted); }
.finding { font-size: 1.1rem; margin: .9rem 0; }
.lead + .finding { margin-top: 1.8rem; }
.note { color: var(--muted); font-size: .92rem; }
code { font: .86em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
figure { margin: 1.4rem 0 0; }
figcaption { color: var(--muted); font-size: .92rem; margin-top: .8rem; }
.chart { width: 100%; min-width: 0; }
.chart.vega-embed { display: block; padding: 0; }
.chart .role-axis text, .chart .role-axis-title text { fill: var(--muted); }
.chart .role-axis-grid line { stroke: var(--line); }
.chart .role-mark text { fill: var(--ink); paint-order: stroke; stroke: var(--paper);
  stroke-width: 4px; stroke-linejoin: round; }
.chart svg { max-width: 100%; overflow: visible; }
.chart .mark-rect path { shape-rendering: crispEdges; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; padding: 0;
  margin: 0 0 .8rem; font-size: .88rem; }
button { font: inherit; color: inherit; background: none; border: 0; padding: .2rem 0; margin: 0;
  cursor: pointer; text-align: inherit; }
button:focus-visible, summary:focus-visible { outline: 2px solid var(--accent);
  outline-offset: 2px; border-radius: .2rem; }
.legend button { color: var(--muted); }
.legend [aria-pressed="false"] { text-decoration: line-through; }
.legend [aria-pressed="false"] i { opacity: .25; }
th button { padding: 0; font-weight: 600; white-space: nowrap; }
th[aria-sort] button::after { content: " ▴"; color: var(--accent); }
th[aria-sort="descending"] button::after { content: " ▾"; }
.legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%;
  margin-right: .45rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(13rem, 44%), 1fr));
  gap: 1.2rem 1.6rem; }
.grid figure { margin: 0; min-width: 0; }
.grid figcaption { margin: 0; font-size: .8rem; text-align: center; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 1.2rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  min-width: 100%; }
th { font-weight: 600; color: var(--muted); font-size: .82rem; }
th, td { padding: .42rem 1.1rem .42rem 0; border-bottom: 1px solid var(--line);
  text-align: right; vertical-align: top; white-space: nowrap; }
.word { text-align: left; }
td small, th small { color: var(--muted); font-size: .86em; }
td .wrap { display: block; white-space: normal; min-width: 12rem; max-width: 44rem;
  overflow-wrap: anywhere; }
.tag { display: inline-block; font-size: .76rem; line-height: 1.5; padding: 0 .5em;
  border-radius: .7em; background: var(--soft); color: var(--muted); margin-left: .45rem;
  font-weight: 400; letter-spacing: 0; vertical-align: .12em; white-space: nowrap; }
.tag.warn { background: var(--warn-soft); color: var(--warn); }
.notice { background: var(--warn-soft); color: var(--warn); padding: .8rem 1.1rem;
  border-radius: .4rem; max-width: none; }
details { margin: .9rem 0; }
summary { cursor: pointer; color: var(--accent); }
#vg-tooltip-element { background: var(--paper) !important; color: var(--ink) !important;
  border: 1px solid var(--line) !important; max-width: min(24rem, 92vw);
  font-family: inherit !important; font-size: .82rem !important; }
#vg-tooltip-element td.value { display: table-cell !important; white-space: normal !important;
  max-width: 17rem !important; max-height: none !important; overflow-wrap: anywhere; }
#vg-tooltip-element table { min-width: 0; }
#vg-tooltip-element td { border: 0; padding: .1rem .5rem .1rem 0; }
#vg-tooltip-element td.key { color: var(--muted) !important; }
@media (max-width: 40rem) {
  body { font-size: 15px; } main { padding: 2rem 1rem 4rem; }
  h1 { font-size: 1.7rem; } h2 { margin-top: 2.8rem; }
  th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper);
    white-space: normal; min-width: 6.5rem; } }
@media print {
  main { max-width: none; padding: 0; } h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; } .wide { overflow: visible; }
  html { font-size: 11px; } body { font-size: 1rem; }
  .chart svg { height: auto; }
  th[aria-sort] button::after { content: ""; }
  th, td { padding-right: .6rem; white-space: normal; } }
"""
