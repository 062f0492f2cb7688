"""How the page of a run looks, and the little it does: values under the pointer, the age of its numbers."""

from melmask.figures.figure import INK, MUTED
from melmask.pages.charts import BOTTOM, LEFT, RIGHT, TOP

STYLE = (
    f":root{{--ink:{INK};--muted:{MUTED}}}"
    + """
:root{color-scheme:light dark;--paper:#f6f7f9;--card:#fff;--rule:#e3e7eb;--curve:#2f6f9f;--ok:#2b7a4b;--warn:#9a6700;
--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ec;--muted:#98a4b0;--paper:#14181c;--card:#1c2227;--rule:#313940;
--curve:#74b3de;--ok:#6cc08b;--warn:#e0b04c;--bad:#f28b82}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1100px;margin:auto;padding:24px 16px 48px}
p{margin:0 0 8px}h1{font-size:26px;line-height:1.3;margin:0 0 14px;overflow-wrap:anywhere}
h2{font-size:17px;margin:32px 0 10px}small,.muted,.note,.unit,dt{color:var(--muted)}
small,.muted,.note,.unit,dt,output{font-size:13px}small{font-weight:400}
.pill{display:inline-block;font-size:13px;font-weight:600;padding:1px 10px;border:1px solid;border-radius:99px;
vertical-align:4px;color:var(--muted)}
.pill.running{color:var(--curve)}.ok .sign,.pill.done,.pill.ok{color:var(--ok)}.warn .sign,.pill.warn{color:var(--warn)}
.bad .sign,.pill.bad{color:var(--bad)}.wait .sign{color:var(--muted)}
.bar{height:8px;border-radius:4px;background:var(--rule);overflow:hidden}.bar div{height:100%;background:var(--curve)}
dl{display:flex;flex-wrap:wrap;gap:10px 36px;margin:16px 0 12px}
dd{margin:0;font-size:18px;font-weight:600;font-variant-numeric:tabular-nums}
.health,.chart,.pictures figure,pre,.scroll{background:var(--card);border:1px solid var(--rule);border-radius:8px}
.health{list-style:none;margin:0;padding:4px 16px}.health li{display:flex;gap:12px;padding:8px 0}
.health li+li{border-top:1px solid var(--rule)}.sign{flex:none;width:14px;font-weight:700;text-align:center}
.charts,.pictures{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:14px}
figure{margin:0;padding:12px 14px}.chart figcaption{display:flex;gap:8px;align-items:baseline}
output{margin-left:auto;font-variant-numeric:tabular-nums}.note{margin:4px 0 0}
svg{display:block;overflow:visible;width:100%;height:auto;margin-top:6px;touch-action:pan-y}
text{font-size:12px;fill:var(--muted)}.grid{stroke:var(--rule)}.axis{stroke:var(--muted)}
.line{fill:none;stroke:var(--curve);stroke-width:1.6;stroke-linejoin:round}.dot{fill:var(--curve)}
.envelope{fill:var(--curve);opacity:.22}.mark line{stroke:var(--muted);stroke-dasharray:3 3}
.trouble line{stroke:var(--bad);stroke-dasharray:3 3}g .wide{stroke:transparent!important;stroke-width:10}
.cursor{visibility:hidden}.cursor line{stroke:var(--muted)}.cursor circle{fill:var(--curve)}
.pictures figure:first-child{grid-column:1/-1}img{display:block;width:100%;height:auto;border-radius:4px;margin-top:6px}
pre,.scroll{overflow-x:auto}pre{margin:0 0 14px;padding:10px 14px}pre,code{font:13px/1.5 ui-monospace,monospace}
table{border-collapse:collapse;width:100%;font-size:14px}td,th{padding:5px 16px;text-align:left;vertical-align:top}
tr+tr td{border-top:1px solid var(--rule)}td{overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
th{color:var(--muted);font-weight:400}.settings{columns:2;column-gap:14px}
.settings .scroll{break-inside:avoid;margin-bottom:14px}.settings td:first-child{width:55%;color:var(--muted)}
.events td:first-child,.events th:first-child{width:90px;text-align:right}.events td:nth-child(2){width:110px}
@media(max-width:720px){.charts,.pictures{grid-template-columns:minmax(0,1fr)}.settings{columns:1}text{font-size:14px}}
"""
)

# Reads a point's value back from its place in the chart, so the page holds every number once.
SCRIPT = (
    f"const LEFT = {LEFT}, RIGHT = {RIGHT}, TOP = {TOP}, BOTTOM = {BOTTOM};"
    + """
const four = v => Math.abs(v) >= 1000 ? Math.round(v).toLocaleString('en') : String(+v.toPrecision(4));
for (const svg of document.querySelectorAll('svg[data-axes]')) {
  const [x0, x1, y0, y1, log, percent] = svg.dataset.axes.split(' ').map(Number);
  const path = svg.querySelector('.line').getAttribute('d');
  const points = [...path.matchAll(/([\\d.]+),([\\d.]+)/g)].map(m => [+m[1], +m[2]]);
  const output = svg.parentNode.querySelector('output'), newest = output.textContent;
  const [cursor, line, dot] = ['.cursor', '.cursor line', '.cursor circle'].map(name => svg.querySelector(name));
  const value = y => {
    const share = (BOTTOM - y) / (BOTTOM - TOP);
    const v = log ? y0 * (y1 / y0) ** share : y0 + share * (y1 - y0);
    return percent ? (100 * v).toFixed(1) + ' %' : four(v);
  };
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    const near = points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
    for (const name of ['x1', 'x2']) line.setAttribute(name, near[0]);
    dot.setAttribute('cx', near[0]);
    dot.setAttribute('cy', near[1]);
    cursor.style.visibility = 'visible';
    const step = x0 + (near[0] - LEFT) / (RIGHT - LEFT) * (x1 - x0);
    output.textContent = `step ${Math.round(step).toLocaleString('en')}: ${value(near[1])}`;
  });
  svg.addEventListener('pointerleave', () => { cursor.style.visibility = ''; output.textContent = newest; });
}
const age = document.getElementById('age');
if (age) {
  const minutes = Math.round((Date.now() / 1000 - document.querySelector('time').dataset.written) / 60);
  const hours = Math.round(minutes / 60);
  age.textContent = minutes < 1 ? ', just now' : minutes < 90 ? `, ${minutes} min ago` : `, ${hours} hours ago`;
  if (age.dataset.state === 'running' && minutes >= 30) age.textContent += ': the run may have been killed';
}
"""
)
