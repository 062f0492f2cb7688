// The button opens or closes all tasks.
const tasks = [...document.querySelectorAll('details.task')], all = document.getElementById('all');
const label = () => { all.textContent = tasks.every(task => task.open) ? 'Close all' : 'Open all'; };
all.hidden = false;
all.addEventListener('click', () => {
  const open = !tasks.every(task => task.open);
  for (const task of tasks) task.open = open;
});
for (const task of tasks) task.addEventListener('toggle', label);
label();

// A link to a task opens it.
const follow = () => {
  const task = location.hash && document.getElementById(location.hash.slice(1));
  if (task && task.tagName === 'DETAILS') { task.open = true; task.scrollIntoView(); }
};
addEventListener('hashchange', follow);
follow();
addEventListener('beforeprint', () => { for (const one of document.querySelectorAll('details')) one.open = true; });

// Only one sound plays at a time.
document.addEventListener('play', event => {
  for (const sound of document.querySelectorAll('audio')) if (sound !== event.target) sound.pause();
}, true);
