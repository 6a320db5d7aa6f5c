for (const table of document.querySelectorAll("table.sortable"))
  table.querySelectorAll("th").forEach((head, column) => head.addEventListener("click", () => {
    const up = head.dataset.up !== "1", body = table.tBodies[0];
    const key = row => row.cells[column].textContent.replace(/,/g, "");
    table.querySelectorAll("th").forEach(each => delete each.dataset.up);
    head.dataset.up = up ? "1" : "0";
    [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)], order = parseFloat(x) - parseFloat(y);
      return (up ? 1 : -1) * (isNaN(order) ? x.localeCompare(y, undefined, {numeric: true}) : order);
    }).forEach(row => body.append(row));
  }));
for (const button of document.querySelectorAll("button.copy"))
  button.addEventListener("click", () => {
    getSelection().selectAllChildren(button.parentElement.querySelector("pre"));
    document.execCommand("copy");
    button.textContent = "copied";
  });
