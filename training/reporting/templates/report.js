"use strict";
// Sorting, filtering, export and threshold sliders. Without it everything is shown, in one order.
function readNumber(cell) {
  const found = cell.textContent.trim().match(/^[-+]?[\d.]+/);
  return found ? Number(found[0]) : null;
}
function compareRows(a, b, column, direction) {
  const [left, right] = [a.cells[column], b.cells[column]];
  const [x, y] = [readNumber(left), readNumber(right)];
  if (column > 0 && (x !== null || y !== null)) {
    if (x === null || y === null) return x === null ? 1 : -1;
    return direction * (x - y);
  }
  return direction * left.textContent.localeCompare(right.textContent);
}
// On a phone a row is a block of labelled figures, see the style sheet.
function labelCells(table) {
  const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent);
  for (const row of table.tBodies[0].rows) [...row.cells].forEach((cell, column) => (cell.dataset.label = heads[column]));
  table.classList.add("labelled");
}
function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort((a, b) => compareRows(a, b, column, direction)));
    });
  });
}
function addFilter(box, rows) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  const status = document.createElement("span");
  label.className = "control";
  input.type = "search";
  status.setAttribute("role", "status");
  label.append(`Filter ${box.dataset.filter} `, input, " ", status);
  box.before(label);
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
      shown += row.hidden ? 0 : 1;
    }
    status.textContent = wanted ? `${shown} of ${rows.length}` : "";
  });
}
function addExport(box) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "control";
  button.textContent = "Export the listed photos as a manifest (JSON lines)";
  box.before(button);
  button.addEventListener("click", () => {
    const rows = [...box.children].filter((one) => !one.hidden).map((one) => one.dataset.manifestRow);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([rows.join("\n") + "\n"], { type: "application/x-ndjson" }));
    link.download = box.dataset.export;
    link.click();
  });
}
function makeSlider(box) {
  const points = [...box.querySelectorAll("tbody tr")];
  const label = document.createElement("label");
  const input = document.createElement("input");
  const output = document.createElement("output");
  label.className = "control";
  // The table begins with the strictest threshold, a slider ends with it.
  const last = points.length - 1;
  Object.assign(input, { type: "range", min: 0, max: last, value: last - Number(box.dataset.start) });
  label.append(`${box.dataset.slider}: threshold `, input);
  const show = () => {
    const cells = [...points[last - input.value].cells].map((cell) => cell.textContent.trim());
    output.textContent = `filled ${cells[0]}: ${cells[2]} % of the tune listings, ${cells[3]} % of these right`;
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", show);
  box.prepend(label, output);
  show();
}
document.querySelectorAll(".table:not(.matrix) > table").forEach(labelCells);
document.querySelectorAll("table[data-sortable]").forEach(makeSortable);
document.querySelectorAll("[data-filter]").forEach((box) => {
  const table = box.querySelector("table");
  addFilter(box, table ? [...table.tBodies[0].rows] : [...box.children]);
});
document.querySelectorAll("[data-export]").forEach(addExport);
document.querySelectorAll("[data-slider]").forEach(makeSlider);
