"use strict";
// Values without a number or a word stay last, whichever way the column is sorted.
function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  const [x, y] = [Number(a), Number(b)];
  const numbers = a !== "" && b !== "" && !Number.isNaN(x) && !Number.isNaN(y);
  return sign * (numbers ? x - y : a.localeCompare(b));
}
function sort(button) {
  const head = button.closest("th"), body = button.closest("table").tBodies[0];
  const now = head.getAttribute("aria-sort"), first = button.dataset.first;
  const other = first === "ascending" ? "descending" : "ascending";
  const way = now === first ? other : first;
  for (const one of head.parentNode.children)
    if (one.hasAttribute("aria-sort")) one.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", way);
  const value = row => row.cells[head.cellIndex].getAttribute("data-value");
  const sign = way === "ascending" ? 1 : -1;
  body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b), sign)));
}
function filter(form) {
  const section = form.closest("section"), words = form.words.value.toLowerCase().split(/\s+/);
  let shown = 0, all = 0;
  for (const row of section.querySelectorAll("table.rows tbody tr")) {
    const text = row.textContent.toLowerCase();
    const fits = words.every(word => text.includes(word)) &&
      (!form.kind.value || row.dataset.kind === form.kind.value) &&
      (!form.rule.value || row.dataset.rule === form.rule.value);
    for (const same of section.querySelectorAll(`[data-row="${row.dataset.row}"]`))
      same.toggleAttribute("hidden", !fits);
    shown += fits; all += 1;
  }
  form.querySelector("[role=status]").textContent =
    shown === all ? `${all} rows` : `${shown} of ${all} rows`;
}
for (const button of document.querySelectorAll("th button"))
  button.addEventListener("click", () => sort(button));
for (const form of document.querySelectorAll("form")) {
  form.addEventListener("input", () => filter(form));
  form.addEventListener("submit", event => event.preventDefault());
}
