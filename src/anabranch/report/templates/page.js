// Everything is readable without this script: it adds hover texts, sorting, a filter, and one task lit up in all charts.
(() => {
  const all = (css, root = document) => [...root.querySelectorAll(css)];
  const tip = Object.assign(document.createElement("div"), { id: "tip", hidden: true });
  tip.setAttribute("aria-hidden", "true");
  document.body.append(tip);

  const heats = {};
  for (const data of all("script[data-matrix]")) {
    const { names, matrix } = JSON.parse(data.textContent), bytes = atob(matrix);
    heats[data.id] = { names, at: (r, c) => ((bytes.charCodeAt(r * names.length + c) << 24) >> 24) / 100 };
  }
  const told = (event) => {
    const heat = event.target.closest && event.target.closest("[data-heat]");
    if (heat) {
      const { names, at: value } = heats[heat.dataset.heat], box = heat.getBoundingClientRect();
      const at = (from, size, n) => Math.max(0, Math.min(n - 1, Math.floor(((from) / size) * n)));
      const r = at(event.clientY - box.top, box.height, names.length), c = at(event.clientX - box.left, box.width, names.length);
      return `${names[r]} and ${names[c]}: ${value(r, c).toFixed(2)}`;
    }
    const element = event.target.closest && event.target.closest("[data-tip]");
    return element ? element.dataset.tip : "";
  };
  document.addEventListener("pointermove", (event) => {
    tip.textContent = told(event);
    tip.hidden = !tip.textContent;
    if (tip.hidden) return;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18}px`;
  });
  document.addEventListener("pointerleave", () => { tip.hidden = true; });

  let picked = "";
  const light = (task) => {
    document.body.classList.toggle("picked", Boolean(task));
    for (const element of all("[data-task]")) element.classList.toggle("hot", element.dataset.task === task);
  };
  const task = (event) => { const e = event.target.closest && event.target.closest("[data-task]"); return e ? e.dataset.task : ""; };
  for (const kind of ["pointerover", "focusin"]) document.addEventListener(kind, (event) => light(task(event) || picked));
  document.addEventListener("click", (event) => {
    if (event.target.closest("svg")) { picked = task(event) === picked ? "" : task(event); light(picked); }
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") { picked = ""; light(""); tip.hidden = true; } });

  for (const table of all("table.sorts")) {
    all("thead th", table).forEach((head, column) => {
      if (!head.textContent.trim() || head.hasAttribute("data-fixed")) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") === "descending";
        const key = (row) => { const cell = row.cells[column], v = cell.dataset.v ?? cell.textContent.trim(); return v !== "" && isFinite(v) ? Number(v) : v === "" || v === "–" ? -Infinity : v; };
        const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
        rows.sort(([a], [b]) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1) * (up ? 1 : -1));
        table.tBodies[0].append(...rows.map(([, row]) => row));
        all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
      });
    });
  }
  for (const box of all("input[data-filter]")) {
    const items = all(box.dataset.filter), none = document.getElementById(box.dataset.none || "");
    const apply = () => {
      const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const item of items) { item.hidden = !words.every((w) => (item.dataset.words || item.textContent).toLowerCase().includes(w)); shown += !item.hidden; }
      if (none) none.textContent = shown ? "" : "no task has these words";
    };
    box.addEventListener("input", apply);
  }
  for (const form of all("form[data-quick]")) {
    form.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit(); });
  }
  for (const element of all("[data-needs-script]")) element.hidden = false;
  const open = () => { const place = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1))); if (place && place.tagName === "DETAILS") place.open = true; };
  addEventListener("hashchange", open);
  addEventListener("beforeprint", () => { for (const d of all("details[data-print]")) d.open = true; });
  open();
})();
