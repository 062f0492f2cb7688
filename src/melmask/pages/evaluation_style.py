"""How the page of an evaluation looks beyond what it shares with the page of a run, and the little it does."""

from melmask.pages.run_style import STYLE as SHARED

# Okabe and Ito's colours, told apart by colour-blind readers; the name of the model stands beside every use of one.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8f98")

STYLE = (
    SHARED
    + "".join(f".c{i} rect,.key.c{i}{{fill:{colour};background:{colour}}}\n" for i, colour in enumerate(_COLOURS))
    + """
h3{font-size:15px;margin:22px 0 8px}a{color:inherit;text-decoration-color:var(--muted);text-underline-offset:2px}
.lead{font-size:17px;margin-bottom:10px;max-width:75ch}.text p,.text li{max-width:90ch}.text ul{padding-left:20px}
.key{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:6px}
table.scores{border-collapse:separate;border-spacing:0;width:auto;min-width:100%}
.scores td,.scores th{padding:7px 14px;vertical-align:top;white-space:nowrap}
.scores thead th{vertical-align:bottom;font-weight:600;color:var(--ink);text-align:right;white-space:normal;
overflow-wrap:break-word;min-width:118px;max-width:190px}
.scores thead th:first-child,.scores td:first-child{text-align:left}
.scores thead th.group{text-align:left;color:var(--muted);font-weight:400;padding-bottom:0;font-size:13px}
.scores td{text-align:right}.scores tbody tr td,.scores tfoot tr td{border-top:1px solid var(--rule)}
.scores td:first-child,.scores thead th:first-child{position:sticky;left:0;background:var(--card);z-index:1;
white-space:normal;overflow-wrap:anywhere;min-width:190px;max-width:260px}
.scores small{display:block;font-size:12.5px;line-height:1.35}.scores td.best b{font-weight:700}
.scores td b{font-weight:400}.scores td a b{font-weight:600}
.scores .star{color:var(--ok)}.scores .pub{color:var(--muted)}.scores thead .pub{font-weight:400}
.scores .edge{border-left:1px solid var(--rule)}.scores tfoot td{border-top:2px solid var(--rule)}
.scores thead small{font-weight:400}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr));gap:14px}
.card{background:var(--card);border:1px solid var(--rule);border-radius:8px;break-inside:avoid;min-width:0}
.card figcaption{font-size:14px;overflow-wrap:anywhere}.card figcaption small{display:block}
.bars text,.sound text,.confusion text,.roll text{font-size:12px}
.bars .name,.roll .name,.confusion .label{fill:var(--ink)}
.bars .value{fill:var(--ink);font-variant-numeric:tabular-nums}.bars .published text{fill:var(--muted)}
.bars .published rect{fill:none;stroke:var(--muted);stroke-dasharray:3 2}.bars{margin-top:8px}.sound{margin-top:12px}
.bars .name,.bars .value{paint-order:stroke;stroke:var(--card);stroke-width:4px}
.whisker{fill:none;stroke:var(--ink);stroke-width:1.5}
details.task{background:var(--card);border:1px solid var(--rule);border-radius:8px;margin:0 0 10px}
summary{cursor:pointer}details.task>summary{display:flex;flex-wrap:wrap;gap:2px 14px;align-items:baseline;
padding:11px 16px;list-style:none}details.task>summary::-webkit-details-marker{display:none}
details.task>summary::before{content:"▸";color:var(--muted);width:10px}details.task[open]>summary::before{content:"▾"}
summary span{overflow-wrap:anywhere}.result{margin-left:auto;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.body{padding:0 16px 16px;border-top:1px solid var(--rule)}.body>details{margin-top:18px}
.body .card{background:var(--paper)}
.body .scroll{background:none}.body .scores td:first-child,.body .scores thead th:first-child{background:var(--card)}
.matrices{display:flex;flex-wrap:wrap;gap:14px;align-items:flex-start}.matrices .card{max-width:100%;overflow-x:auto}
.confusion{margin-top:10px;max-width:none}.confusion.small .label{font-size:9.5px}.confusion .cell{fill:var(--curve)}
.confusion text{font-size:11.5px}.confusion .on{fill:var(--card);font-weight:600}.confusion .off{fill:var(--ink)}
.confusion .frame{fill:none;stroke:var(--rule)}.pixels{image-rendering:pixelated}
.chosen{font-size:13px;padding-left:18px;overflow-wrap:anywhere}
.mistakes{margin:8px 0 0}.mistakes li{font-size:13px}ol.mistakes{padding-left:18px}
audio{display:block;width:100%;height:36px;margin-top:8px}
.said{display:grid;grid-template-columns:auto 1fr;gap:0 10px;margin:0;font-size:14px}
.said dt{font-size:13px;padding-top:1px}
.said dd{font-size:14px;font-weight:400;overflow-wrap:anywhere}.said .no{color:var(--bad)}.file{margin-top:6px;
overflow-wrap:anywhere}.roll{min-width:640px;margin:12px 0 4px}.roll .reference,.legend .reference{fill:#0072b2}
.roll .predicted{fill:url(#hatch);stroke:#d55e00}
.legend{margin-bottom:6px;display:flex;flex-wrap:wrap;gap:4px 20px;font-size:13px}
.legend svg{display:inline-block;width:26px;height:10px;margin:0 6px 0 0;vertical-align:-1px}
.legend .predicted{fill:url(#hatch);stroke:#d55e00}.hidden{position:absolute;width:0;height:0}
button{font:inherit;font-size:13px;color:var(--ink);background:var(--card);border:1px solid var(--rule);
border-radius:6px;padding:3px 12px;cursor:pointer}.tools{display:flex;justify-content:space-between;gap:12px;
align-items:baseline;flex-wrap:wrap}.tools h2{margin-bottom:10px}
@media(max-width:720px){.scores td,.scores th{padding:6px 10px}.scores td:first-child,.scores thead th:first-child
{min-width:112px;max-width:128px}.result{margin-left:24px;width:100%}.body{padding:0 10px 12px}}
@media print{:root{color-scheme:light;--ink:#1f2933;--muted:#5b6670;--paper:#fff;--card:#fff;--rule:#d5dae0;
--curve:#2f6f9f;--ok:#2b7a4b;--bad:#b3261e}main{max-width:none;padding:0}button,audio{display:none}.scroll{overflow:visible}
.scores td:first-child,.scores thead th:first-child{position:static;min-width:0}.key{print-color-adjust:exact}
table.scores,.scores .muted,.scores thead th.group{font-size:11px}.scores small.muted{font-size:10px}
.scores thead th{min-width:0}.scores td,.scores th{padding:3px 6px}
details.task,.card{break-inside:avoid-page}details.task{border:none}}
"""
)

SCRIPT = """
const tasks = [...document.querySelectorAll('details.task')], all = document.getElementById('all');
const label = () => { all.textContent = tasks.every(task => task.open) ? 'Close all' : 'Open all'; };
if (all) {
  all.hidden = false;
  all.addEventListener('click', () => {
    const open = !tasks.every(task => task.open);
    for (const task of tasks) task.open = open;
  });
  for (const task of tasks) task.addEventListener('toggle', label);
  label();
}
const follow = () => {
  const task = location.hash && document.getElementById(location.hash.slice(1));
  if (task && task.tagName === 'DETAILS') { task.open = true; task.scrollIntoView(); }
};
addEventListener('hashchange', follow);
follow();
addEventListener('beforeprint', () => { for (const one of document.querySelectorAll('details')) one.open = true; });
// One sound at a time.
document.addEventListener('play', event => {
  for (const sound of document.querySelectorAll('audio')) if (sound !== event.target) sound.pause();
}, true);
"""
