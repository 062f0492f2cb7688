// Show the value under the pointer. It is read back from the curve, so the page holds every number only once.
const four = v => Math.abs(v) >= 1000 ? Math.round(v).toLocaleString('en') : String(+v.toPrecision(4));
for (const svg of document.querySelectorAll('svg[data-axes]')) {
  const [x0, x1, y0, y1, log, percent] = svg.dataset.axes.split(' ').map(Number);
  const [left, right, top, bottom] = svg.dataset.edges.split(' ').map(Number);
  const path = svg.querySelector('.line').getAttribute('d');
  const points = [...path.matchAll(/([\d.]+),([\d.]+)/g)].map(m => [+m[1], +m[2]]);
  const output = svg.parentNode.querySelector('output'), newest = output.textContent;
  const [cursor, line, dot] = ['.cursor', '.cursor line', '.cursor circle'].map(name => svg.querySelector(name));
  const value = y => {
    const share = (bottom - y) / (bottom - top);
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
    const step = x0 + (near[0] - left) / (right - left) * (x1 - x0);
    output.textContent = `step ${Math.round(step).toLocaleString('en')}: ${value(near[1])}`;
  });
  svg.addEventListener('pointerleave', () => { cursor.style.visibility = ''; output.textContent = newest; });
}

// Say how old the numbers are: the page cannot know when it is opened.
const age = document.getElementById('age');
if (age) {
  const minutes = Math.round((Date.now() / 1000 - document.querySelector('time').dataset.written) / 60);
  const hours = Math.round(minutes / 60);
  age.textContent = minutes < 1 ? ', just now' : minutes < 90 ? `, ${minutes} min ago`
    : hours < 48 ? `, ${hours} hours ago` : `, ${Math.round(hours / 24)} days ago`;
  if (age.dataset.state === 'running' && minutes >= 30) age.textContent += '. The run may have been killed.';
}
