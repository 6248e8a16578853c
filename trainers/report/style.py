"""Style and script of the HTML page; both are written into it, and nothing is fetched."""

STYLE = """
:root { color-scheme: light dark;
  --text: #1f2328; --quiet: #57606a; --line: #d4d9df; --ground: #ffffff; --raised: #f6f8fa;
  --accent: #0a58b8; --right: #1a7f37; --wrong: #c62828; --warn: #8a5300; --warn-ground: #fff6e0; }
@media (prefers-color-scheme: dark) { :root {
  --text: #e3e7ec; --quiet: #9ba6b2; --line: #333b45; --ground: #101419; --raised: #191f26;
  --accent: #7db4ff; --right: #57c470; --wrong: #ff8078; --warn: #f0bd62; --warn-ground: #2b2412; }
  .chart .scroll { background: #111; }
  .chart img { filter: invert(.935) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1.5rem clamp(.9rem, 3vw, 2.5rem) 4rem;
  background: var(--ground); color: var(--text); line-height: 1.5; overflow-wrap: anywhere;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .4rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 0 0 .6rem; }
h4 { font-size: .9rem; margin: 1rem 0 .4rem; font-weight: 600; }
p { margin: .3rem 0; max-width: 46rem; }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: 1rem 0 0; padding: .6rem 0;
  border-block: 1px solid var(--line); font-size: .95rem; }
.quiet, .facts { color: var(--quiet); font-size: .8rem; }
.sheet, .run { margin: 1.4rem 0 2.4rem; }
.chart { margin: 1.2rem 0 0; }
.chart + .facts { margin-bottom: 2.4rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
.scroll:focus-visible, button:focus-visible { outline: 2px solid var(--accent);
  outline-offset: -2px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .87rem;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .38rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
th { background: var(--raised); font-weight: 600; vertical-align: bottom; min-width: 4.2rem; }
th.group { text-align: center; border-left: 1px solid var(--line); }
th.edge, td.edge { border-left: 1px solid var(--line); }
th.left, td.left { text-align: left; white-space: normal; }
td.short { white-space: nowrap; }
td.left { min-width: 8.5rem; max-width: 22rem; overflow-wrap: break-word; }
tbody tr:last-child td { border-bottom: 0; }
tbody tr:hover td { background: var(--raised); }
td:first-child, th.first { position: sticky; left: 0; background: var(--ground); z-index: 1; }
th.first { background: var(--raised); }
th span { white-space: nowrap; }
th button { all: unset; cursor: pointer; display: inline; }
th button::after { content: "\\a0\\2195"; color: var(--quiet); font-weight: 400; opacity: .55; }
th[aria-sort="ascending"] button::after { content: "\\a0\\2191"; opacity: 1; }
th[aria-sort="descending"] button::after { content: "\\a0\\2193"; opacity: 1; }
ul { margin: .6rem 0 0; padding-left: 1.1rem; }
ul.facts { list-style: none; padding-left: 0; }
ul.notes { list-style: none; padding: .55rem .8rem; border-radius: 6px; font-size: .84rem;
  background: var(--warn-ground); color: var(--warn); }
.notes b { font-weight: 650; }
.chart .scroll { max-width: 62rem; }
.chart img { display: block; width: 100%; min-width: 38rem; height: auto; }
.gallery { display: grid; gap: 1rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.run { margin: .6rem 0; }
.run h3 { margin: 0; }
.example { display: grid; grid-template-columns: repeat(3, 1fr); gap: .5rem; margin: .7rem 0; }
.example figure { margin: 0; min-width: 0; font-size: .76rem; line-height: 1.35; }
.example img { display: block; width: 100%; max-width: 10rem; aspect-ratio: 1; height: auto;
  object-fit: contain; border: 2px solid var(--line); border-radius: 4px; }
.example img.small { image-rendering: pixelated; }
.right { color: var(--right); } .example img.right { border-color: var(--right); }
.wrong { color: var(--wrong); } .example img.wrong { border-color: var(--wrong); }
@media print { nav { display: none; } .scroll { overflow: visible; } }
@media (max-width: 34rem) { th, td { padding: .32rem .5rem; } td.left { min-width: 9rem; }
  td.short { white-space: normal; } td:first-child { min-width: 6.5rem; max-width: 8.5rem; } }
"""

# a click on a heading sorts by it; figures sort by their mean, dashes stay below
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const texts = new Map([...table.tBodies[0].rows].map(
        row => [row, row.cells[column].textContent.trim()]));
      const compare = (a, b) => {
        const [x, y] = [texts.get(a), texts.get(b)], [p, q] = [parseFloat(x), parseFloat(y)];
        if (isNaN(p) !== isNaN(q)) return isNaN(p) ? 1 : -1;
        return (down ? -1 : 1) * (isNaN(p) ? x.localeCompare(y) : p - q);
      };
      table.tBodies[0].append(...[...texts.keys()].sort(compare));
    });
  });
}
"""
